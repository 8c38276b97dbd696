"""Batches of decoded images, in this process or by several ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moe_dist.data.crops import CROP_DRAWS, RandomCrop
from moe_dist.data.order import CROPS, uniform
from moe_dist.errors import UserError
from moe_dist.methods.base import Images

Wanted = tuple[int, np.ndarray, np.ndarray]
"""Of a batch: its epoch, its samples [n], and which of its sample's copies in the epoch each is [n]."""
Decoded = tuple[Tensor, Tensor]
"""Images [n, 3, S, S] uint8, and which of them are no bad ones [n] bool."""


class Loader:
    """Fetches batches of `images`, by so many `processes` ahead of time; with 0 in this process.

    crop_scale: of random crops, drawn here so that no more of an image is decoded than is needed; None: no crops.
    """

    def __init__(
        self,
        images: Images,
        seed: int,
        crop_scale: tuple[float, float] | None,
        processes: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._remaining = _Remaining()
        self._loader = DataLoader(
            _Decoder(images, seed, crop_scale),
            batch_size=None,  # a sample of this loader is a batch already
            sampler=self._remaining,
            num_workers=processes,
            persistent_workers=processes > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the global one would move at every pass, and a resumed run differ
        )

    def load(self, batches: list[Wanted]) -> Iterator[Decoded]:
        """What each of `batches` is decoded to, in order. Raises UserError where one cannot be."""
        self._remaining.batches = batches
        for decoded in self._loader:
            if isinstance(decoded, UserError):
                raise decoded
            yield decoded


class _Remaining(Sampler[Wanted]):
    """The batches still to come, set anew before every pass over the loader."""

    def __init__(self) -> None:
        self.batches: list[Wanted] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Wanted]:
        return iter(self.batches)


class _Decoder(Dataset[Decoded | UserError]):
    """Whole batches; an error travels as a value, or a worker would wrap it in its own traceback."""

    def __init__(self, images: Images, seed: int, crop_scale: tuple[float, float] | None) -> None:
        self._images = images
        self._seed = seed
        self._crop_scale = crop_scale

    def __getitem__(self, wanted: Wanted) -> Decoded | UserError:
        epoch, samples, repeats = wanted
        crop = None
        if self._crop_scale is not None:
            crop = RandomCrop(self._crop_scale, uniform(self._seed, epoch, samples, CROP_DRAWS, repeats, CROPS))
        try:
            return self._images.uint8(samples, crop), torch.from_numpy(self._images.readable(samples))
        except UserError as error:
            return error
