"""The contents of a dataset as the shard builder gets them: samples by number, in the dataset's own order.

Letters: N samples of a split, n of them, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from moe_dist.data.datasets.source import Tree
from moe_dist.data.image.crops import Region
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.data.longtail import UNLABELLED

SPLITS = ("train", "val", "test")
"""In the order they are built; a dataset without a published validation split has no val."""
_KEY_CHARACTERS = 48


@dataclass(frozen=True)
class Sample:
    """One image as its dataset holds it, with its label or UNLABELLED.

    key: unique in its split; image: the encoded bytes, of a format that `extension` names; group: the track it was
    taken from, -1 without; roi: region of interest in its own pixels; origin: where the bytes came from, for messages;
    name: what a user calls the image, if not by its key.
    """

    key: str
    label: int
    image: bytes
    extension: str
    group: int = -1
    roi: Region | None = None
    origin: str = ""
    name: str = ""


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

    @property
    def shuffled(self) -> bool:
        """Whether its own order is known to be a shuffled one, so that a class's first images are a fair draw."""

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] int64 of `split`, in the dataset's own order."""

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`. Raises UserError where it cannot be read."""


class PathContents:
    """A dataset of image files and their labels. It is compact, for hundreds of thousands of files.

    splits: for each split the paths of its files in `tree` and their labels [N], in the dataset's order. named_below:
    samples are called by their paths below this folder of the tree ("" or one with a slash at its end); None: by keys.
    A sample's key is made of its class, its number in the class and the file's name.
    """

    shuffled = False

    def __init__(
        self,
        tree: Tree,
        class_names: Sequence[str],
        splits: Mapping[str, tuple[Sequence[str], np.ndarray]],
        superclasses: Sequence[str] | None = None,
        named_below: str | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self._named_below = named_below
        self.superclasses = None if superclasses is None else tuple(superclasses)
        self.counts = {split: len(paths) for split, (paths, _) in splits.items()}
        self._reader = tree.reader
        self._paths = {split: list(paths) for split, (paths, _) in splits.items()}
        self._labels = {split: labels.astype(np.int64) for split, (_, labels) in splits.items()}
        self._numbers_in_class = {split: _numbers_in_class(labels) for split, labels in self._labels.items()}

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return self._labels[split]

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`. Raises UserError where its file cannot be read."""
        path, label = PurePosixPath(self._paths[split][number]), int(self._labels[split][number])
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:_KEY_CHARACTERS]
        of_class = "unlabelled" if label == UNLABELLED else f"{label:05d}"
        key = f"{of_class}/{self._numbers_in_class[split][number]:06d}_{stem}"
        image = self._reader.read(str(path))
        name = "" if self._named_below is None else str(path).removeprefix(self._named_below)
        return Sample(key, label, image, path.suffix[1:].lower(), origin=f"{self._reader.where}: {path}", name=name)


class KeptContents:
    """A dataset with only the samples `kept` [n] of its training split, and all of its other splits."""

    def __init__(self, contents: Contents, kept: np.ndarray) -> None:
        self.class_names = contents.class_names
        self.superclasses = contents.superclasses
        self.shuffled = contents.shuffled
        self.counts = {**contents.counts, "train": len(kept)}
        self._contents = contents
        self.kept = kept

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        labels = self._contents.labels(split)
        return labels[self.kept] if split == "train" else labels

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`, with the key it has in the whole dataset."""
        return self._contents.sample(split, int(self.kept[number]) if split == "train" else number)


def is_image(path: str) -> bool:
    """Whether a file's name has the extension of an image that can be read."""
    return path.rpartition(".")[2].lower() in EXTENSIONS


def scaled_region(region: Region, size: tuple[int, int], new_size: tuple[int, int]) -> Region:
    """`region` of an image of `size` (width, height) in the same image of `new_size`, grown to whole pixels."""
    (x1, y1, x2, y2), (width, height), (new_width, new_height) = region, size, new_size
    return (
        x1 * new_width // width,
        y1 * new_height // height,
        -(-x2 * new_width // width),
        -(-y2 * new_height // height),
    )


def _numbers_in_class(labels: np.ndarray) -> np.ndarray:
    """For labels [N], how many samples of the same class come before each, [N]."""
    order = np.argsort(labels, kind="stable")
    numbers = np.empty(len(labels), np.int64)
    numbers[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return numbers
