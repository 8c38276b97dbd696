"""MNIST, Fashion-MNIST and USPS: arrays of grey images, as idx files or, for USPS, as one HDF5 file.

An idx file is two zero bytes, the type (8: uint8), the number of dimensions, each dimension as four bytes, the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from moe_dist.data.datasets.pixels import PixelContents, PixelSplit
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.errors import UserError

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}
_UINT8 = 8
_USPS_FILE, _USPS_SIDE = "usps.h5", 16


def open_idx(source: Path | None, dataset: str, class_names: Sequence[str]) -> PixelContents:
    """The images of train-* and t10k-* idx files, plain or .gz, in a folder or tar.

    Raises UserError where one is missing, there twice, damaged, or images and labels do not fit together.
    """
    if source is None:
        raise UserError(
            f"dataset {dataset} needs data.source (--from): the folder of train-images-idx3-ubyte.gz and its like"
        )
    read = partial(_read_idx_splits, classes=len(class_names))
    return PixelContents(source, class_names, read(source), read)


def open_usps(source: Path | None) -> PixelContents:
    """The digits of usps.h5 (the file or its folder), else of idx files. Raises UserError like `open_idx`."""
    if source is not None:
        path = source if source.suffix == ".h5" else source / _USPS_FILE
        if path.is_file():
            return PixelContents(path, DIGIT_NAMES, _read_usps(path), _read_usps)
    return open_idx(source, "usps", DIGIT_NAMES)


def parse_idx(data: bytes) -> np.ndarray:
    """The uint8 array of an idx file. Raises ValueError where it is of another type, cut short or too long."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError("not an idx file")
    kind, dimensions = data[2], data[3]
    if kind != _UINT8:
        raise ValueError(f"an idx file of type {kind:#x}, expected 0x8 (uint8)")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError("cut short in its header")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if math.prod(shape) != len(data) - start:
        raise ValueError(f"has {len(data) - start} bytes of content where {' x '.join(map(str, shape))} were announced")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_idx_splits(source: Path, classes: int) -> dict[str, PixelSplit]:
    """Both splits from their idx files. Raises UserError like `open_idx`."""
    tree = open_tree(source)
    splits = {}
    for split, prefix in _PREFIXES.items():
        pixels = _read_file(tree, f"{prefix}-images-idx3-ubyte", dimensions=3)
        labels = _read_file(tree, f"{prefix}-labels-idx1-ubyte", dimensions=1)
        splits[split] = _fitting(f"{source}: {prefix}-labels-idx1-ubyte", pixels, labels, classes)
    return splits


def _read_file(tree: Tree, name: str, dimensions: int) -> np.ndarray:
    """The array of the idx file `name`, wherever in the tree; a plain one is read rather than a .gz.

    Copies call it train-images.idx3-ubyte, too, and some hold it twice.
    """
    dotted = name.replace("-idx", ".idx")
    names = (name, f"{name}.gz", dotted, f"{dotted}.gz")
    found = [path for path in tree.files if PurePosixPath(path).name in names]
    if not found:
        raise UserError(f"{tree.where}: no {name} or {name}.gz; download it and set data.source to its folder")
    apart = len({PurePosixPath(path).parent for path in found}) > 1
    if apart and len({tree.read(path) for path in found}) > 1:
        raise UserError(f"{tree.where}: {found[0]} and {found[1]}: set data.source to one of the folders")
    path = min(found, key=lambda path: path.endswith(".gz"))
    try:
        data = tree.read(path)
        array = parse_idx(gzip.decompress(data) if path.endswith(".gz") else data)
        if array.ndim != dimensions:
            raise ValueError(f"has {array.ndim} dimensions, expected {dimensions}")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{tree.where}: {path}: {error}; download it again") from None
    return array


def _fitting(where: str, pixels: np.ndarray, labels: np.ndarray, classes: int) -> PixelSplit:
    """The split of images [N, H, W] and labels [N]. Raises UserError where they do not fit together."""
    if len(pixels) != len(labels):
        raise UserError(f"{where}: {len(labels)} labels for {len(pixels)} images")
    if (outside := np.flatnonzero((labels < 0) | (labels >= classes))).size:
        number = int(outside[0])
        raise UserError(f"{where}: image {number}: label {labels[number]} is outside 0 to {classes - 1}")
    return PixelSplit(pixels, labels.astype(np.int64))


def _read_usps(path: Path) -> dict[str, PixelSplit]:
    """Both splits of usps.h5. Raises UserError where h5py is missing or the file is of another form or damaged."""
    try:
        import h5py  # an extra: only this file needs it
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py; install moe-dist[usps]") from None
    try:
        with h5py.File(path, "r") as file:
            arrays = {
                split: (np.asarray(file[split]["data"]), np.asarray(file[split]["target"])) for split in _PREFIXES
            }
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not a usps.h5 (train and test, each data and target), or damaged ({error})") from None
    return {split: _usps_split(f"{path}: {split}", *of_split) for split, of_split in arrays.items()}


def _usps_split(where: str, data: np.ndarray, target: np.ndarray) -> PixelSplit:
    """The split of digits with grey levels [N, 256] in [0, 1] and labels [N]. Raises UserError for anything else."""
    if data.dtype.kind != "f" or data.ndim != 2 or data.shape[1] != _USPS_SIDE**2:
        raise UserError(f"{where}/data: expected N x 256 grey levels, got {data.dtype} {list(data.shape)}")
    if target.dtype.kind not in "iu" or target.ndim != 1:
        raise UserError(f"{where}/target: expected N whole numbers, got {target.dtype} {list(target.shape)}")
    if not ((data >= 0) & (data <= 1)).all():
        raise UserError(f"{where}/data: a grey level is outside 0 to 1")
    pixels = np.round(data * 255).astype(np.uint8).reshape(-1, _USPS_SIDE, _USPS_SIDE)
    return _fitting(f"{where}/target", pixels, target, len(DIGIT_NAMES))
