"""resources.compile gives the same training by compiled graphs; and the settings with which it is an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_folders import checkpoints_of, training_of
from small_jobs import quiet, traditional
from torch._dynamo.utils import counters

from moe_dist.engine.checkpoint import read_state
from moe_dist.errors import UserError
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import checkpoints


def train(folder: Path, **changes: Any) -> list[float]:
    """A small training in this process; the loss of every step."""
    run_job(traditional(epochs=1, **changes), folder, "local", quiet())
    lines = (training_of(folder / "traditional_moe") / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "step"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_training_equals_eager_up_to_rounding(tmp_path: Path) -> None:
    eager = train(tmp_path / "eager")
    graphs = counters["stats"]["unique_graphs"]
    compiled = train(tmp_path / "compiled", resources={"compile": True})
    assert counters["stats"]["unique_graphs"] > graphs, "nothing was compiled"
    assert compiled == pytest.approx(eager, rel=1e-5) and len(eager) == 6
    training = checkpoints_of(tmp_path / "compiled/traditional_moe")
    assert read_state(checkpoints(training)[-1])["step"] == 6


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler, and no-such-compiler is not on the path"):
        train(tmp_path / "run", resources={"compile": True})


def test_it_is_refused_beside_expert_parallelism(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resources\.compile with parallel\.expert = 2"):
        train(tmp_path / "run", resources={"compile": True}, workers=2, parallel={"expert": 2})
