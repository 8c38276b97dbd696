"""A job's dataset, opened: shards (built where they are missing), decoded images, and the train / validation split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.config import DataConfig
from moe_dist.data.images import open_images
from moe_dist.data.order import split
from moe_dist.data.shards import OnProgress, ShardSet, build_shards, source_fingerprint
from moe_dist.errors import UserError
from moe_dist.methods.base import DatasetInfo, Images


@dataclass(frozen=True)
class OpenedSplit:
    """Images, labels [N] and groups [N] (tracks, -1: none) of one split."""

    images: Images
    labels: np.ndarray
    groups: np.ndarray
    shard_of: np.ndarray


@dataclass(frozen=True)
class OpenedData:
    """What every part of a run reads.

    train_samples, val_samples, test_samples: sorted sample numbers, the first two within the training images;
    split_digest: over the images' digests and the split, equal for two runs that saw the same data the same way.
    """

    config: DataConfig
    info: DatasetInfo
    train: OpenedSplit
    test: OpenedSplit
    train_samples: np.ndarray
    val_samples: np.ndarray
    test_samples: np.ndarray
    split_digest: str


def shards_folder(config: DataConfig, cache: Path) -> Path:
    """Where the job's shards are, or will be built."""
    if config.shards is not None:
        return config.shards.resolve()
    return cache / "shards" / f"{config.dataset}-{source_fingerprint(config.dataset, config.source)[:12]}"


def ensure_shards(config: DataConfig, cache: Path, on_progress: OnProgress | None = None) -> Path:
    """The folder of the job's shards, built from the source if it is not there yet."""
    folder = shards_folder(config, cache)
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        build_shards(config.dataset, config.source, folder, on_progress=on_progress)
    return folder


def open_data(config: DataConfig, seed: int, cache: Path) -> OpenedData:
    """Open the job's dataset; the split depends on the labels, the groups, `val_fraction` and the seed alone."""
    folder = ensure_shards(config, cache)
    shards = {name: ShardSet.open(folder / name) for name in ("train", "test")}
    if shards["train"].class_names != shards["test"].class_names:
        raise UserError(f"{folder}: the train and test shards name different classes; build them again")
    train, test = (_opened(shards[name], config, cache) for name in ("train", "test"))
    _require_images_of_every_class(train.labels, shards["train"].class_names, folder)

    samples = _limited(train, config.max_train_images, seed)
    test_samples = _limited(test, config.max_test_images, seed)
    train_part, val_part = split(train.labels[samples], train.groups[samples], config.val_fraction, seed)
    info = DatasetInfo(
        classes=len(shards["train"].class_names),
        class_names=tuple(shards["train"].class_names),
        image_size=config.image_size,
        train_images=len(train_part),
    )
    parts = (samples[train_part], samples[val_part], test_samples)
    return OpenedData(config, info, train, test, *parts, _digest(shards, parts))


def _opened(shards: ShardSet, config: DataConfig, cache: Path) -> OpenedSplit:
    images = open_images(shards, config, cache / "decoded")
    return OpenedSplit(
        images, np.asarray(shards.labels, np.int64), np.asarray(shards.groups, np.int64), shards.shard_of
    )


def _require_images_of_every_class(labels: np.ndarray, names: tuple[str, ...], folder: Path) -> None:
    missing = sorted(set(range(len(names))) - set(np.unique(labels).tolist()))
    if missing:
        raise UserError(f"{folder}/train: no images of class {', '.join(names[label] for label in missing)}")


def _limited(opened: OpenedSplit, limit: int | None, seed: int) -> np.ndarray:
    """All sample numbers, or a stratified part of about `limit` of them in whole groups."""
    count = len(opened.labels)
    if limit is None or limit >= count:
        return np.arange(count)
    return split(opened.labels, opened.groups, limit / count, seed)[1]


def _digest(shards: dict[str, ShardSet], parts: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256(json.dumps([shards["train"].digest, shards["test"].digest]).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part, np.int64).tobytes())
    return digest.hexdigest()
