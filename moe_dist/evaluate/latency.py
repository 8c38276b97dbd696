"""The time of a prediction at batch size 1, after warm-up."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor


class Latency(TypedDict):
    """Milliseconds per image over `images` timed predictions."""

    median_ms: float
    p99_ms: float
    mean_ms: float
    images: int


def measure_latency(
    predict: Callable[[Tensor], Any],
    image: Tensor,
    warm_up: int = 20,
    images: int = 200,
    device: torch.device | str = "cpu",
) -> Latency:
    """Time `images` calls of `predict` on an image [1, 3, S, S], one by one, after `warm_up` untimed calls.

    The image is moved to `device` before, so decoding and transfer are not timed. On a GPU a call ends when the device
    has finished.
    """
    device = torch.device(device)
    image = image.to(device)
    with torch.inference_mode():
        for _ in range(warm_up):
            predict(image)
        milliseconds = np.array([_time_once(predict, image, device) for _ in range(images)]) / 1e6
    return {
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "mean_ms": float(milliseconds.mean()),
        "images": images,
    }


def _time_once(predict: Callable[[Tensor], Any], image: Tensor, device: torch.device) -> int:
    """The nanoseconds of one call."""
    _wait_for(device)
    start = perf_counter_ns()
    predict(image)
    _wait_for(device)
    return perf_counter_ns() - start


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished: CUDA calls return before their work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
