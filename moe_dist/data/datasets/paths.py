"""A dataset that is image files and their labels, and nothing else: compact, for hundreds of thousands of files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from moe_dist.data.datasets.samples import Sample
from moe_dist.data.datasets.source import Tree
from moe_dist.data.image.decode import EXTENSIONS

_KEY_CHARACTERS = 48


class PathContents:
    """Image files of a tree, listed per split as their paths and labels [N] in the dataset's order.

    A sample's key carries its class, its number in the class and the file's name.
    """

    def __init__(
        self,
        tree: Tree,
        class_names: Sequence[str],
        splits: Mapping[str, tuple[Sequence[str], np.ndarray]],
        superclasses: Sequence[str] | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.superclasses = None if superclasses is None else tuple(superclasses)
        self.counts = {split: len(paths) for split, (paths, _) in splits.items()}
        self._where, self._reader = tree.where, tree.reader
        self._paths = {split: list(paths) for split, (paths, _) in splits.items()}
        self._labels = {split: labels.astype(np.int64) for split, (_, labels) in splits.items()}
        self._numbers_in_class = {split: _numbers_in_class(labels) for split, labels in self._labels.items()}

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return self._labels[split]

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`."""
        path, label = PurePosixPath(self._paths[split][number]), int(self._labels[split][number])
        key = f"{label:05d}/{self._numbers_in_class[split][number]:06d}_{_key_text(path.stem)}"
        image = self._reader.read(str(path))
        return Sample(key, label, image, path.suffix[1:].lower(), origin=f"{self._where}: {path}")


def is_image(path: str) -> bool:
    """Whether a file's name ends as one of the images that are read."""
    return path.rpartition(".")[2].lower() in EXTENSIONS


def _numbers_in_class(labels: np.ndarray) -> np.ndarray:
    """For labels [N], how many samples of the same class come before each, [N]."""
    order = np.argsort(labels, kind="stable")
    numbers = np.empty(len(labels), np.int64)
    numbers[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return numbers


def _key_text(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:_KEY_CHARACTERS]
