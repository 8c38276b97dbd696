"""Whole runs of the sparse mixture, in one process and over two ranks by DeepSpeed's layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import evaluation_of, training_of
from small_jobs import quiet, sparse

from moe_dist.run.run import run_job


def terms(folder: Path) -> list[dict[str, float]]:
    lines = [
        json.loads(line) for line in (training_of(folder / "sparse_moe") / "metrics.jsonl").read_text().splitlines()
    ]
    return [line for line in lines if line["kind"] == "step"]


def test_a_run_learns_and_tells_which_experts_were_used(tmp_path: Path) -> None:
    run_job(sparse(), tmp_path / "run", "local", quiet())
    steps = terms(tmp_path / "run")
    assert all(step["loss"] == pytest.approx(step["loss/cross_entropy"] + step["loss/balance"]) for step in steps)
    assert steps[-1]["loss/cross_entropy"] < steps[0]["loss/cross_entropy"] - 0.1
    with np.load(evaluation_of(tmp_path / "run" / "sparse_moe") / "predictions.npz") as predictions:
        assert predictions["gate"].shape == (len(predictions["labels"]), 4)
        np.testing.assert_allclose(predictions["gate"].sum(1), 1, atol=1e-5)
    assert "gate_load_sparse_moe" in {path.stem for path in (tmp_path / "run" / "figures").iterdir()}


@pytest.mark.slow
def test_two_ranks_give_the_curve_of_one_with_two_micro_batches(tmp_path: Path) -> None:
    run_job(sparse(epochs=1, parallel={"micro_batches": 2}), tmp_path / "one", "local", quiet())
    spread = sparse(epochs=1, workers=2, parallel={"expert": 2, "zero": 1, "micro_batches": 2})
    run_job(spread, tmp_path / "two", "local", quiet())
    one, two = (
        [step["loss/cross_entropy"] for step in terms(folder)] for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert two == pytest.approx(one, abs=1e-5)
    names = [evaluation_of(tmp_path / run / "sparse_moe") / "predictions.npz" for run in ("one", "two")]
    with np.load(names[0]) as alone, np.load(names[1]) as spread_out:
        np.testing.assert_allclose(spread_out["log_probs"], alone["log_probs"], atol=1e-4)
