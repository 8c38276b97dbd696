"""The log of an epoch and of a step has the values that were used in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import log_of
from small_jobs import quiet, traditional

from moe_dist.engine.engine import LocalEngine
from moe_dist.run.run import run_job
from moe_dist.settings.training import ScheduleConfig


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reports, which take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def logged(folder: Path, kind: str, **method: Any) -> list[dict[str, Any]]:
    job = traditional()
    method = job.method.model_dump(mode="json") | method
    run_job(traditional().model_copy(update={"method": type(job.method)(**method)}), folder, "local", quiet())
    return [line for line in log_of(folder / "traditional_moe") if line["kind"] == kind]


def test_an_epoch_s_rate_factor_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    """Cosine over three epochs: 1, then (1 + cos(pi/3)) / 2 = 3/4, then (1 + cos(2 pi/3)) / 2 = 1/4."""
    lines = logged(tmp_path, "epoch", schedule=ScheduleConfig(kind="cosine").model_dump())
    assert [line["rate_factor"] for line in lines] == pytest.approx([1, 0.75, 0.25])


def test_the_gradient_s_norm_is_logged_as_it_was_before_clipping() -> None:
    """The gradient of 3 a + 4 b is (3, 4), of norm 5; clipped to norm 1, a step of rate 1 moves by (0.6, 0.8)."""
    from moe_dist.settings.training import OptimiserConfig

    network = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    sgd = {"": OptimiserConfig(kind="sgd", learning_rate=1.0, momentum=0.0)}
    engine = LocalEngine(network, sgd, accumulate=1, clip_norm=1.0, device=torch.device("cpu"), bf16=False)
    engine.backward(network(torch.tensor([[3.0, 4.0]])).sum())
    engine.step()
    assert float(engine.gradient_norm) == pytest.approx(5)
    assert network.weight.tolist()[0] == pytest.approx([-0.6, -0.8], rel=1e-5)
    unclipped = LocalEngine(network, sgd, accumulate=1, clip_norm=None, device=torch.device("cpu"), bf16=False)
    assert unclipped.gradient_norm is None


def test_steps_carry_the_norm_where_gradients_are_clipped(tmp_path: Path) -> None:
    clipped = logged(tmp_path / "clipped", "step", clip_norm=0.1)
    assert all(math.isfinite(line["gradient_norm"]) and line["gradient_norm"] > 0 for line in clipped)
    assert "gradient_norm" not in logged(tmp_path / "free", "step")[0]
