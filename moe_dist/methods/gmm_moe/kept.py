"""Maps of a frozen backbone, kept by image in files that runs share, so that each map is computed once.

<folder>/<backbone>/<random>.maps     rows, one an image: the bytes of its maps, one after another
<folder>/<backbone>/<random>.index    what each row is of, and a check of its bytes

<backbone> is a digest of all that a map depends on beside its image (`backbone_digest`). A process appends to a pair of
files of its own and reads those of others, so no two write to one. Those that are at work on one set of images compute
in turn, and look first at what the others have left: together they compute each map once. A row whose check fails, as
after a power cut, is computed again.

Letters in shapes: B samples of a batch, K channels of a map, s map side, S image side.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from moe_dist.data.storage.locks import in_turn
from moe_dist.processor import has_avx512, multiplies_bf16

CHUNK = 32
"""Images that the backbone sees at a time, always as many: convolutions round by the shape of what they are given."""
IMAGE_DIGEST, CHECK = 16, 8
"""Bytes of an image's digest and of a row's check, which are an entry of an index."""
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


def backbone_digest(backbone: nn.Module, name: str, taps: Sequence[str], device: torch.device) -> str:
    """A digest of what a map depends on beside its image: weights, taps, precision, and what rounds differently."""
    kind = device.type
    on = torch.cuda.get_device_name(device) if kind == "cuda" else (has_avx512(), multiplies_bf16())
    about = (name, *taps, CHUNK, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
    found = hashlib.sha256(repr((about, torch.__version__, kind, on, torch.get_num_threads())).encode())
    for key, value in backbone.state_dict().items():
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(_bytes(value))
    return found.hexdigest()[:24]


@dataclass(frozen=True)
class Row:
    """Where the maps of an image lie: a file, the offset in it, and the check of the bytes there."""

    file: IO[bytes]
    offset: int
    check: bytes


class KeptMaps:
    """The maps of a set's samples, found again by image; what exceeds the limit is computed each time."""

    def __init__(self, folder: Path | None, limit_gib: float, of: str = "all") -> None:
        """folder: of the backbone's maps, made where it is missing; None: a temporary one, of this process alone.

        limit_gib: of what this process adds to it; of: the name of the set of images.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="moe-dist-maps-") if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else folder
        self._room = limit_gib * GIB
        self._of = of
        self._others: dict[Path, tuple[IO[bytes], int]] = {}
        self._of_image: dict[bytes, list[Row]] = {}
        self._of_sample: dict[int, list[Row]] = {}
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []
        self._own: tuple[IO[bytes], IO[bytes]] | None = None

    def maps(self, backbone: Backbone, images: Tensor, samples: Tensor) -> list[Tensor]:
        """The maps of images [B, 3, S, S], which are the samples [B]; kept from now on as far as there is room."""
        numbers = samples.tolist()
        if not self._shapes:
            self._open(in_chunks(backbone, images[:1]))
        rows = self._found(numbers, images)
        if None in rows:
            with self._turn():
                self._look()
                rows = self._found(numbers, images)
                unknown = [place for place, row in enumerate(rows) if row is None]
                computed = in_chunks(backbone, images[unknown]) if unknown else []
                for index, place in enumerate(unknown):
                    row = b"".join(_bytes(each[index]) for each in computed)
                    self._keep(numbers[place], _image_digest(images[place]), row)
                    rows[place] = bytearray(row)
        return self._unpacked([row for row in rows if row is not None], images.device)

    def _found(self, numbers: Sequence[int], images: Tensor) -> list[bytearray | None]:
        """The rows of images [B, 3, S, S], which are the samples `numbers`; None where there is none yet."""
        for number, image in zip(numbers, images):
            if number not in self._of_sample and (digest := _image_digest(image)) in self._of_image:
                self._of_sample[number] = self._of_image[digest]
        return [self._read(number) for number in numbers]

    def _turn(self) -> AbstractContextManager[None]:
        """The block in which a process computes maps to keep. None waits for those that it has no room for."""
        if self._temporary or self._room < self._size:
            return nullcontext()
        assert self._folder is not None
        return in_turn(self._folder / f"{self._of}.lock")

    def _open(self, maps: Sequence[Tensor]) -> None:
        """Learn the maps' shapes, and which images others have left maps of."""
        self._shapes = [(each.shape[1:], each.dtype) for each in maps]
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._look()

    def _look(self) -> None:
        """Learn which images others have left maps of since the last look."""
        assert self._folder is not None
        entry_bytes = IMAGE_DIGEST + CHECK
        own = Path(self._own[1].name) if self._own else None
        for path in sorted(self._folder.glob("*.index")):
            file, before = self._others.get(path, (None, 0))
            if path == own or path.stat().st_size < (before + 1) * entry_bytes:
                continue
            with path.open("rb") as index:
                index.seek(before * entry_bytes)
                entries = index.read()
            file = file or path.with_suffix(".maps").open("rb")
            for number in range(len(entries) // entry_bytes):
                entry = entries[number * entry_bytes :][:entry_bytes]
                row = Row(file, (before + number) * self._size, entry[IMAGE_DIGEST:])
                self._of_image.setdefault(entry[:IMAGE_DIGEST], []).append(row)
            self._others[path] = file, before + len(entries) // entry_bytes

    @property
    def _size(self) -> int:
        """Bytes of a row."""
        return sum(shape.numel() * dtype.itemsize for shape, dtype in self._shapes)

    def _read(self, sample: int) -> bytearray | None:
        """The row of a sample; None where there is none, or not the bytes that were written."""
        for row in self._of_sample.get(sample, ()):
            values = bytearray(self._size)
            read = os.preadv(row.file.fileno(), [values], row.offset)
            if read == len(values) and _check(values) == row.check:
                return values
        return None

    def _keep(self, sample: int, image: bytes, row: bytes) -> None:
        """Append a row to this process's files, if there is room."""
        if len(row) > self._room:
            return
        if self._own is None:
            assert self._folder is not None
            path = self._folder / f"{secrets.token_hex(8)}.maps"
            self._own = path.open("xb+"), path.with_suffix(".index").open("xb")
        self._room -= len(row)
        maps, index = self._own
        offset = os.fstat(maps.fileno()).st_size
        for file, content in ((maps, row), (index, image + _check(row))):
            file.write(content)
            file.flush()
        self._of_sample[sample] = [Row(maps, offset, _check(row))]

    def _unpacked(self, rows: Sequence[bytearray], device: torch.device) -> list[Tensor]:
        """The maps [B, K, s, s] of rows."""
        whole = torch.stack([torch.frombuffer(row, dtype=torch.uint8) for row in rows])
        maps, begin = [], 0
        for shape, dtype in self._shapes:
            end = begin + shape.numel() * dtype.itemsize
            maps.append(whole[:, begin:end].contiguous().view(dtype).view(len(rows), *shape).to(device))
            begin = end
        return maps


def _bytes(values: Tensor) -> bytes:
    """The bytes of a tensor's values."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _image_digest(image: Tensor) -> bytes:
    return hashlib.blake2b(_bytes(image), digest_size=IMAGE_DIGEST).digest()


def _check(row: bytes | bytearray) -> bytes:
    return hashlib.blake2b(row, digest_size=CHECK).digest()
