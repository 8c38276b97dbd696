"""Images in memory, as a stream reads them, without shards: what benchmarks time a training on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.image.crops import RandomCrop


class HeldImages:
    """`pixels` [N, 3, S, S] uint8 as a split's images."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The images `samples`; no random part of them can be asked for."""
        assert crop is None
        return torch.from_numpy(self.pixels[samples])

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """All of them are."""
        return np.ones(len(samples), bool)
