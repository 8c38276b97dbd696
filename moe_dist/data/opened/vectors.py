"""A split whose samples are vectors, read into memory. Letters: N samples of the split, n of them, D numbers of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.bad_samples import NONE_ALLOWED, BadSample, BadSamples
from moe_dist.data.image.crops import RandomCrop
from moe_dist.data.image.vectors import decode_vector
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError


class Vectors:
    """Vectors [N, D] float32 in place of images. A pickled object leaves them behind and reads them again."""

    def __init__(self, shards: ShardSet, bad_samples: BadSamples = NONE_ALLOWED) -> None:
        self._shards, self._bad_samples = shards, bad_samples
        self._unreadable = np.zeros(len(shards), bool)
        values: list[np.ndarray | None] = []
        for sample in range(len(shards)):
            try:
                values.append(decode_vector(shards.read(sample)))
            except (BadSample, ValueError) as error:
                bad_samples.take(BadSample(str(error) if isinstance(error, BadSample) else f"sample {sample}: {error}"))
                values.append(None)
                self._unreadable[sample] = True
        self.size = next((len(vector) for vector in values if vector is not None), 0)
        self.values = np.zeros((len(values), self.size), np.float32)
        for sample, vector in enumerate(values):
            if vector is not None:
                if len(vector) != self.size:
                    raise UserError(f"{shards.where(sample)}: {len(vector)} numbers, the first sample has {self.size}")
                self.values[sample] = vector

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vectors, (self._shards, self._bad_samples)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The vectors `samples` [n, D] float32; a bad one that the job lets pass is 0. They are not cropped."""
        assert crop is None
        return torch.from_numpy(self.values[samples])

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] are readable, [n] bool."""
        return ~self._unreadable[samples]
