"""What a dataset's reader gives to the shard builder: its samples by number, in the dataset's own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moe_dist.data.datasets.source import Tree
from moe_dist.data.image.crops import Region
from moe_dist.data.image.decode import image_size
from moe_dist.errors import UserError

SPLITS = ("train", "val", "test")
"""In the order they are built; a dataset without a published validation split has no val."""


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
    """An opened dataset. It can be pickled, so that several processes can read it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, by label."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of samples of each split it has."""

    @property
    def superclasses(self) -> tuple[str, ...] | None:
        """The superclass's name of every class, by label; None for a dataset without superclasses."""

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] int64 of `split`, in the dataset's own order."""

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`. Raises UserError where it cannot be read."""


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
    """A dataset of image files with tracks and regions of interest."""

    superclasses = None

    def __init__(self, tree: Tree, class_names: Sequence[str], entries: Mapping[str, Sequence[FileEntry]]) -> None:
        self.class_names = tuple(class_names)
        self.counts = {split: len(of_split) for split, of_split in entries.items()}
        self._where, self._reader = tree.where, tree.reader
        self._entries = entries

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return np.array([entry.label for entry in self._entries[split]], np.int64)

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`."""
        entry = self._entries[split][number]
        image = self._reader.read(entry.path)
        origin = f"{self._where}: {entry.path}"
        extension = entry.path.rpartition(".")[2].lower()
        try:
            roi = _in_stored_pixels(entry, image)
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        return Sample(entry.key, entry.label, image, extension, entry.group, roi, origin)


class KeptContents:
    """A dataset of whose training split only the samples `kept` [n] are left; its other splits are untouched."""

    def __init__(self, contents: Contents, kept: np.ndarray) -> None:
        self.class_names = contents.class_names
        self.superclasses = contents.superclasses
        self.counts = {**contents.counts, "train": len(kept)}
        self._contents = contents
        self._kept = kept

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        labels = self._contents.labels(split)
        return labels[self._kept] if split == "train" else labels

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`, with the key it has in the whole dataset."""
        return self._contents.sample(split, int(self._kept[number]) if split == "train" else number)


def _in_stored_pixels(entry: FileEntry, image: bytes) -> Region | None:
    """The entry's region in pixels of the image as stored."""
    if entry.region is None or entry.region_size is None:
        return None
    return scaled_region(entry.region, entry.region_size, image_size(image))


def scaled_region(region: Region, size: tuple[int, int], new_size: tuple[int, int]) -> Region:
    """`region` of an image of `size` (width, height) in the same image of `new_size`, grown to whole pixels."""
    (x1, y1, x2, y2), (width, height), (new_width, new_height) = region, size, new_size
    return (
        x1 * new_width // width,
        y1 * new_height // height,
        -(-x2 * new_width // width),
        -(-y2 * new_height // height),
    )
