"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as published for Python, or as folders of images.

Published: cifar-10-batches-py/ (data_batch_1 ... data_batch_5, test_batch, batches.meta) and cifar-100-python/ (train,
test, meta), each file a pickle; the folder, a tar of it, or the .tar.gz as downloaded, which is read in memory.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moe_dist.data.datasets.image_folder import class_folders
from moe_dist.data.datasets.pixels import PixelContents, PixelSplit
from moe_dist.data.datasets.safe_pickle import load_arrays
from moe_dist.data.datasets.samples import PathContents
from moe_dist.data.datasets.source import open_tree
from moe_dist.errors import UserError

_SIDE = 32
_GZIP = b"\x1f\x8b"
Files = dict[str, Callable[[], bytes]]
"""The published files found in a source, by their name, and how to read each."""


@dataclass(frozen=True)
class Layout:
    """How one of the two is published: its folder, the files of each split, and the names of their fields."""

    dataset: str
    folder: str
    splits: Mapping[str, Sequence[str]]
    labels: str
    meta: str
    names: str
    classes: int

    @property
    def files(self) -> list[str]:
        """The names of all files."""
        return [self.meta, *(file for files in self.splits.values() for file in files)]


CIFAR10 = Layout(
    dataset="cifar10",
    folder="cifar-10-batches-py",
    splits={"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    labels="labels",
    meta="batches.meta",
    names="label_names",
    classes=10,
)
CIFAR100 = Layout(
    dataset="cifar100",
    folder="cifar-100-python",
    splits={"train": ["train"], "test": ["test"]},
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
    classes=100,
)


def open_cifar(source: Path | None, layout: Layout) -> PixelContents | PathContents:
    """The images of `layout`, from its pickles or else from train|test/<class>/*.

    Raises UserError where the source holds neither, a file is missing, holds anything but plain arrays, or labels that
    do not fit, and where the number of classes is wrong.
    """
    if source is None:
        raise UserError(
            f"dataset {layout.dataset} needs data.source (--from): the folder {layout.folder}, the .tar.gz it comes "
            "in, or a folder or tar of train/<class>/* and test/<class>/*"
        )
    files = _find(source, layout)
    if files:
        names, splits = _class_names(source, files, layout), _splits(source, layout, files)
        return PixelContents(source, names, splits, partial(_splits, layout=layout), shuffled=True)
    contents = class_folders(open_tree(source))
    if len(contents.class_names) != layout.classes:
        raise UserError(f"{source}: {layout.dataset} has {layout.classes} classes, got {len(contents.class_names)}")
    return contents


def _find(source: Path, layout: Layout) -> Files:
    """The published files in `source`; none where it is another layout. Raises UserError where only some are there."""
    is_gzip = False
    if source.is_file():
        with source.open("rb") as file:
            is_gzip = file.read(len(_GZIP)) == _GZIP
    files = _gzip_files(source, layout) if is_gzip else _tree_files(source, layout)
    if files and (missing := [file for file in layout.files if file not in files]):
        raise UserError(f"{source}: {layout.folder}/{missing[0]} is missing; get the archive again")
    return files


def _tree_files(source: Path, layout: Layout) -> Files:
    """The published files of a folder or tar: in their folder, or at the top where the source is that folder."""
    tree = open_tree(source)
    paths = [PurePosixPath(path) for path in tree.files]
    in_folder = [path for path in paths if (path.parent.name or source.name) == layout.folder]
    return {path.name: partial(tree.read, str(path)) for path in in_folder if path.name in layout.files}


def _gzip_files(source: Path, layout: Layout) -> Files:
    """The published files of a compressed tar, unpacked in memory; none where it holds train/<class>/* instead.

    Raises UserError where it is damaged or holds neither.
    """
    contents: dict[str, bytes] = {}
    has_class_folders = False
    try:
        with tarfile.open(source, "r:gz") as tar:
            for info in tar:
                path = PurePosixPath(info.name)
                has_class_folders |= "train" in path.parts[:-1]
                member = tar.extractfile(info) if info.isreg() and path.name in layout.files else None
                if member is not None and path.parent.name == layout.folder:
                    contents[path.name] = member.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{source}: not a compressed tar, or damaged ({error}); download it again") from None
    if not contents and not has_class_folders:
        raise UserError(f"{source}: the archive holds no {layout.folder}; unpack archives of another layout first")
    return {name: partial(bytes, content) for name, content in contents.items()}


def _class_names(source: Path, files: Files, layout: Layout) -> list[str]:
    """The classes' names. Raises UserError where the file of names does not list them all."""
    names = _load(source, files, layout.meta).get(layout.names)
    if not isinstance(names, list) or len(names) != layout.classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: {layout.meta}: {layout.names} is not a list of {layout.classes} names")
    return names


def _splits(source: Path, layout: Layout, files: Files | None = None) -> dict[str, PixelSplit]:
    """The images of every split, from the published `files`, which are looked for in `source` where they are None."""
    files = _find(source, layout) if files is None else files
    splits = {}
    for split, names in layout.splits.items():
        parts = [_batch(source, name, _load(source, files, name), layout) for name in names]
        splits[split] = PixelSplit(
            np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts])
        )
    return splits


def _load(source: Path, files: Files, name: str) -> dict[str, Any]:
    """The content of the file called `name`. Raises UserError where it is not a pickle of plain arrays."""
    try:
        return load_arrays(files[name]())
    except ValueError as error:
        raise UserError(f"{source}: {name}: {error}; download it again") from None


def _batch(source: Path, name: str, content: dict[str, Any], layout: Layout) -> PixelSplit:
    """The images of one file: rows [N, 3072] of a red, a green and a blue plane."""
    data, labels = content.get("data"), content.get(layout.labels)
    if not isinstance(data, np.ndarray) or data.shape[1:] != (3 * _SIDE * _SIDE,):
        raise UserError(f"{source}: {name}: `data` is not an array of N x 3072 bytes")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise UserError(f"{source}: {name}: `{layout.labels}` is not a list of {len(data)} labels")
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < layout.classes:
            raise UserError(f"{source}: {name}: image {number}: label {label!r} is outside 0 to {layout.classes - 1}")
    planes = data.reshape(-1, 3, _SIDE, _SIDE)
    return PixelSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int64))
