"""Batches of decoded images, in this process or by several ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from moe_dist.data.batch import Images
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop
from moe_dist.data.order import CROPS, uniform
from moe_dist.errors import UserError

Wanted = tuple[int, np.ndarray, np.ndarray]
"""Of a batch: its epoch, its samples [n], and which of its sample's copies in the epoch each is [n]."""
Numbered = tuple[int, Wanted]
"""A batch, and the number of its decoder."""
Decoded = tuple[Tensor, Tensor]
"""Images [n, 3, S, S] uint8, and which of them are no bad ones [n] bool."""


class Loader:
    """Decodes batches by so many `processes` ahead of time; with 0 in this process.

    Streams that are read one after another share one: its processes start once and serve the images of all of them.
    """

    def __init__(self, processes: int = 0, pin_memory: bool = False) -> None:
        self.processes = processes
        self._decoders: list[_Decoder] = []
        self._remaining = _Remaining()
        self._passes = 0
        self._loader = DataLoader(
            _Batches(self._decoders),
            batch_size=None,  # a sample of this loader is a batch already
            sampler=self._remaining,
            num_workers=processes,
            persistent_workers=processes > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the global one would move at every pass, and a resumed run differ
        )

    def add(self, images: Images, seed: int, crop_scale: tuple[float, float] | None) -> int:
        """Take on the batches of a stream, before the first are loaded; the number by which `load` knows them.

        crop_scale: of random crops, drawn where an image is decoded, so that no more of it is than is needed; None: no
        crops.
        """
        assert not self._passes, "processes that have started know of no further images"
        self._decoders.append(_Decoder(images, seed, crop_scale))
        return len(self._decoders) - 1

    def load(self, decoder: int, batches: list[Wanted]) -> Iterator[Decoded]:
        """What each of `batches` of what `add` called `decoder` is decoded to, in order.

        Raises UserError where one cannot be.
        """
        self._passes += 1
        this = self._passes
        self._remaining.batches = [(decoder, wanted) for wanted in batches]
        for decoded in self._loader:
            assert this == self._passes, "a pass goes on that another one has ended"
            if isinstance(decoded, UserError):
                raise decoded
            yield decoded


class _Remaining(Sampler[Numbered]):
    """The batches still to come, set anew before every pass over the loader."""

    def __init__(self) -> None:
        self.batches: list[Numbered] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Numbered]:
        return iter(self.batches)


class _Batches(Dataset[Decoded | UserError]):
    """The batches of several decoders."""

    def __init__(self, decoders: list[_Decoder]) -> None:
        self._decoders = decoders

    def __getitem__(self, numbered: Numbered) -> Decoded | UserError:
        decoder, wanted = numbered
        return self._decoders[decoder].decode(wanted)


class _Decoder:
    """Whole batches of one stream; an error travels as a value, or a worker would wrap it in its own traceback."""

    def __init__(self, images: Images, seed: int, crop_scale: tuple[float, float] | None) -> None:
        self._images = images
        self._seed = seed
        self._crop_scale = crop_scale

    def decode(self, wanted: Wanted) -> Decoded | UserError:
        epoch, samples, repeats = wanted
        crop = None
        if self._crop_scale is not None:
            crop = RandomCrop(self._crop_scale, uniform(self._seed, epoch, samples, CROP_DRAWS, repeats, CROPS))
        try:
            return self._images.uint8(samples, crop), torch.from_numpy(self._images.readable(samples))
        except UserError as error:
            return error
