"""The calls and statistics of latency; no test depends on the speed of this machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_dist.evaluate import latency
from moe_dist.evaluate.latency import measure_latency


def test_only_the_calls_after_warm_up_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves when the network is called: call n takes n milliseconds.
    now, calls = [0], []

    def predict(image: torch.Tensor) -> None:
        assert torch.is_inference_mode_enabled()
        calls.append(tuple(image.shape))
        now[0] += len(calls) * 1_000_000

    monkeypatch.setattr(latency, "perf_counter_ns", lambda: now[0])
    measured = measure_latency(predict, torch.zeros(1, 3, 8, 8), warm_up=20, images=101)
    assert calls == [(1, 3, 8, 8)] * 121
    # Timed: 21 ... 121 ms. The median is the 51st value; the 99th percentile of 101 values is the 100th.
    assert measured == {"median_ms": 71, "p99_ms": 120, "mean_ms": 71, "images": 101}


def test_a_gpu_is_waited_for_before_and_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    measure_latency(lambda image: events.append("call"), torch.zeros(1), warm_up=1, images=2, device="cuda")
    assert events == ["call", "wait", "call", "wait", "wait", "call", "wait"]


def test_real_times_are_ordered() -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    measured = measure_latency(layer, torch.zeros(1, 3, 8, 8), warm_up=1, images=20)
    assert 0 < measured["median_ms"] <= measured["p99_ms"]
    assert np.isfinite(measured["mean_ms"])
