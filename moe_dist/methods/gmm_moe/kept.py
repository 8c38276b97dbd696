"""Maps of a frozen backbone, kept by sample once they have been computed, in memory and in a temporary file.

Letters in shapes: B samples of a batch, K channels of a map, s map side, S image side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
import torch
from torch import Tensor

CHUNK = 32
"""Images that the backbone sees at a time, always as many: convolutions round by the shape of what they are given."""
BLOCK = 64
"""Samples for which room is made at a time."""
GIB = 2**30

Backbone = Callable[[Tensor], Sequence[Tensor]]


@torch.no_grad()
def in_chunks(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """The maps of images [B, 3, S, S], each computed as one of CHUNK images: it depends on its own image alone."""
    parts = []
    for part in images.split(CHUNK):
        padded = torch.cat([part, part.new_zeros(CHUNK - len(part), *part.shape[1:])]) if len(part) < CHUNK else part
        parts.append([each[: len(part)] for each in backbone(padded)])
    return [torch.cat(each).contiguous() for each in zip(*parts)]  # in memory as kept maps are: rounding goes by it


class KeptMaps:
    """The maps of a set's samples. What exceeds both limits is computed each time."""

    def __init__(self, memory_gib: float, disk_gib: float) -> None:
        self._memory, self._disk = memory_gib * GIB, disk_gib * GIB
        self._rows: dict[int, int] = {}
        self._blocks: list[list[Tensor]] = []
        self._files: list[IO[bytes]] = []
        self._full = False

    def maps(self, backbone: Backbone, images: Tensor, samples: Tensor) -> list[Tensor]:
        """The maps of images [B, 3, S, S], which are the samples [B]; kept from now on as far as there is room."""
        numbers = samples.tolist()
        if all(number in self._rows for number in numbers):
            return self._read(numbers, images.device)
        maps = in_chunks(backbone, images)
        for place, number in enumerate(numbers):
            if number not in self._rows and self._has_room([each[place] for each in maps]):
                row = self._rows[number] = len(self._rows)
                for kept, each in zip(self._blocks[row // BLOCK], maps):
                    kept[row % BLOCK] = each[place].cpu()
        return maps

    def _read(self, numbers: Sequence[int], device: torch.device) -> list[Tensor]:
        places = [divmod(self._rows[number], BLOCK) for number in numbers]
        kept = [torch.stack(each) for each in zip(*([m[row] for m in self._blocks[block]] for block, row in places))]
        return [each.to(device, non_blocking=True) for each in kept]

    def _has_room(self, maps: Sequence[Tensor]) -> bool:
        """Whether one more sample, with such maps [K, s, s], has room; makes a block where one is needed."""
        if len(self._rows) < BLOCK * len(self._blocks):
            return True
        size = BLOCK * sum(each.numel() * each.element_size() for each in maps)
        if self._full:
            return False
        if size <= self._memory:
            self._memory -= size
            self._blocks.append([each.new_empty((BLOCK, *each.shape), device="cpu") for each in maps])
        elif size <= self._disk:
            self._disk -= size
            self._blocks.append(self._block_in_a_file(maps, size))
        else:
            self._full = True
        return not self._full

    def _block_in_a_file(self, maps: Sequence[Tensor], size: int) -> list[Tensor]:
        """A block in a temporary file, whose bytes are set aside now: a full disk says so here."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the block)
        os.posix_fallocate(file.fileno(), 0, size)
        self._files.append(file)
        block, offset = [], 0
        for each in maps:
            length = BLOCK * each.numel() * each.element_size()
            values = np.memmap(file, np.uint8, "r+", offset, (length,))
            block.append(torch.from_numpy(values).view(each.dtype).view(BLOCK, *each.shape))
            offset += length
        return block
