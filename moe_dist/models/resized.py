"""Images at the size that a network wants. Letters in shapes: B samples of a batch, S image side, s the wanted side."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resized(images: Tensor, side: int | None) -> Tensor:
    """Images [B, 3, S, S] as [B, 3, s, s], bilinear and antialiased; the same where `side` is None or theirs."""
    if side is None or side == images.shape[-1]:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
