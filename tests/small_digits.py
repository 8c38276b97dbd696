"""scikit-learn's digits in memory, as a step is given its images."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from moe_dist.data.image.crops import RandomCrop


class SmallDigits:
    """The digits of the first `classes` classes, the first `limit` of them, 16 x 16 RGB; labels [N] int64."""

    def __init__(self, classes: int, limit: int | None = None) -> None:
        digits = load_digits(n_class=classes)
        pixels = torch.from_numpy(digits.images * (255 / 16)).to(torch.uint8)[:limit, None]
        self.pixels = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
        self.labels = digits.target[:limit].astype(np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> torch.Tensor:
        assert crop is None
        return self.pixels[samples]

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples), bool)
