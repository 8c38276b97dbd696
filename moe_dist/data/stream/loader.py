"""Batches of decoded images, changed or not: by this process or by several ahead of time, and on their way to a GPU.

Letters: n images of a batch as they are loaded, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moe_dist.data.augment.augment import DRAWS, augment
from moe_dist.data.batch import Images
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop
from moe_dist.data.order import CROPS, uniform
from moe_dist.errors import UserError
from moe_dist.settings.augment import AugmentConfig

Wanted = tuple[int, np.ndarray, np.ndarray]
"""A batch to load: its epoch, its samples [n], and which of its sample's copies in the epoch each is [n]."""
Loaded = tuple[Tensor, Tensor]
"""Images [n, 3, S, S] uint8 (changed ones may be float32), and which of them are readable [n] bool."""
Beside = TypeVar("Beside")


class Loader:
    """Decodes, and where asked changes, batches in `processes` ahead of time; with 0 in this process.

    Streams that are read one after another share a loader: its processes start once and serve the images of all.
    """

    def __init__(self, processes: int = 0, pin_memory: bool = False) -> None:
        self.processes = processes
        self._decoders = _Decoders()
        self._coming: list[tuple[int, Wanted]] = []
        self._passes = 0
        self._loader = DataLoader(
            self._decoders,
            batch_size=None,  # what the decoders return is a batch already
            sampler=self._coming,
            num_workers=processes,
            persistent_workers=processes > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the global one would move at every pass, and a resumed run differ
        )

    def add(
        self,
        images: Images,
        seed: int,
        crop_scale: tuple[float, float] | None,
        changes: AugmentConfig | None = None,
    ) -> int:
        """Add the images of a stream before the first batch is loaded; the number by which `load` knows them.

        crop_scale: shares of the area that random crops keep. A crop is drawn where its image is decoded, so that no
        more of the image is decoded than it needs. None: no crops. changes: random changes that are made here, by the
        processor; None: whoever takes the batch makes them.
        """
        assert not self._passes, "processes that have started know of no further images"
        self._decoders.streams.append((images, seed, crop_scale, changes))
        return len(self._decoders.streams) - 1

    def load(self, stream: int, batches: list[Wanted]) -> Iterator[Loaded]:
        """The images of each of `batches`, in order; stream: the number that `add` returned.

        Raises UserError where an image cannot be used and the job does not let it pass.
        """
        self._passes += 1
        this = self._passes
        self._coming[:] = [(stream, wanted) for wanted in batches]
        for loaded in self._loader:
            assert this == self._passes, "a pass goes on that another one has ended"
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded


class _Decoders(Dataset[Loaded | UserError]):
    """Whole batches of several streams. An error is returned: one that a process raises would carry its traceback."""

    def __init__(self) -> None:
        self.streams: list[tuple[Images, int, tuple[float, float] | None, AugmentConfig | None]] = []

    def __getitem__(self, item: tuple[int, Wanted]) -> Loaded | UserError:
        stream, (epoch, samples, repeats) = item
        images, seed, crop_scale, changes = self.streams[stream]
        crop = None
        if crop_scale is not None:
            crop = RandomCrop(crop_scale, uniform(seed, epoch, samples, CROP_DRAWS, repeats, CROPS))
        try:
            pixels = images.uint8(samples, crop)
            if changes is not None:
                pixels = augment(pixels, changes, uniform(seed, epoch, samples, DRAWS, repeats))
            return pixels, torch.from_numpy(images.readable(samples))
        except UserError as error:
            return error


def on_device(batches: Iterator[tuple[Tensor, Beside]], device: torch.device) -> Iterator[tuple[Tensor, Beside]]:
    """`batches` in order, their images (in pinned host memory) on `device`; what lies beside them stays as it is.

    On a CUDA device the next batch is copied, on a stream of its own, while the network works on this one. Before a
    batch is given out the current stream is told to wait for its copy, and the allocator that this stream uses it;
    otherwise its memory could be given away too early.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[Tensor, torch.cuda.Event, Beside] | None = None

    def handed_over(pixels: Tensor, copied: torch.cuda.Event, beside: Beside) -> tuple[Tensor, Beside]:
        current = torch.cuda.current_stream(pixels.device)
        current.wait_event(copied)
        pixels.record_stream(current)
        return pixels, beside

    for pixels, beside in batches:
        with torch.cuda.stream(copies):
            started = (pixels.to(device, non_blocking=True), copies.record_event(), beside)
        if ahead is not None:
            yield handed_over(*ahead)
        ahead = started
    if ahead is not None:
        yield handed_over(*ahead)
