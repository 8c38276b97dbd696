"""What a dataset's reader gives to the shard builder: samples, one at a time, in a mixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moe_dist.data.decode import Region, image_size
from moe_dist.data.order import epoch_order
from moe_dist.data.source import Tree
from moe_dist.errors import UserError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Sample:
    """One labelled image as its dataset holds it.

    key: unique in its split; image: the encoded bytes, of a format that `extension` names; group: the track it was
    taken from, -1 without; roi: region of interest in its own pixels; origin: where the bytes came from, for messages.
    """

    key: str
    label: int
    image: bytes
    extension: str
    group: int = -1
    roi: Region | None = None
    origin: str = ""


class Contents(Protocol):
    """An opened dataset."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of samples, by split."""

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of `split`. Raises UserError where one cannot be read."""


@dataclass(frozen=True)
class FileEntry:
    """A sample that is a file: its path in the source, and its region in pixels of an image of `region_size`."""

    path: str
    key: str
    label: int
    group: int = -1
    region: Region | None = None
    region_size: tuple[int, int] | None = None


class FileContents:
    """A dataset of image files."""

    def __init__(self, tree: Tree, class_names: Sequence[str], entries: Mapping[str, Sequence[FileEntry]]) -> None:
        self.class_names = tuple(class_names)
        self.counts = {split: len(of_split) for split, of_split in entries.items()}
        self._tree = tree
        self._entries = entries

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of `split` in a fixed mixed order, so that every shard holds samples of all classes."""
        entries = self._entries[split]
        for number in epoch_order(len(entries), seed=0, epoch=0).tolist():
            yield self._sample(entries[number])

    def _sample(self, entry: FileEntry) -> Sample:
        image = self._tree.read(entry.path)
        origin = f"{self._tree.where}: {entry.path}"
        extension = entry.path.rpartition(".")[2].lower()
        try:
            roi = _in_stored_pixels(entry, image)
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        return Sample(entry.key, entry.label, image, extension, entry.group, roi, origin)


def _in_stored_pixels(entry: FileEntry, image: bytes) -> Region | None:
    """The entry's region in pixels of the image as stored, grown to whole pixels."""
    if entry.region is None or entry.region_size is None:
        return None
    (x1, y1, x2, y2), (original_width, original_height) = entry.region, entry.region_size
    width, height = image_size(image)
    return (
        x1 * width // original_width,
        y1 * height // original_height,
        -(-x2 * width // original_width),
        -(-y2 * height // original_height),
    )
