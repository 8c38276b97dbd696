"""Batches of pixels on their way to a GPU: the next one is copied while the network works on this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

Beside = TypeVar("Beside")


def on_device(batches: Iterator[tuple[Tensor, Beside]], device: torch.device) -> Iterator[tuple[Tensor, Beside]]:
    """`batches` in order, their tensors (pinned host memory) on `device`; on a CUDA device one is copied ahead.

    What lies beside a tensor stays as it is. The copies run on a stream of their own. A batch is given out once the
    current stream has been told to wait for its copy, and the allocator that the current stream uses it: else its
    memory could be given away too early.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[Tensor, torch.cuda.Event, Beside] | None = None
    for pixels, beside in batches:
        with torch.cuda.stream(copies):
            started = (pixels.to(device, non_blocking=True), copies.record_event(), beside)
        if ahead is not None:
            yield _handed_over(*ahead)
        ahead = started
    if ahead is not None:
        yield _handed_over(*ahead)


def _handed_over(pixels: Tensor, copied: torch.cuda.Event, beside: Beside) -> tuple[Tensor, Beside]:
    """A copied batch, safe to use on the current stream."""
    current = torch.cuda.current_stream(pixels.device)
    current.wait_event(copied)
    pixels.record_stream(current)
    return pixels, beside
