"""A job's dataset, opened: its shards, decoded images, and the train / validation split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.data.bad_samples import BadSamples
from moe_dist.data.batch import DatasetInfo, Images
from moe_dist.data.longtail import class_counts
from moe_dist.data.opened.images import EncodedImages, open_images
from moe_dist.data.opened.job_shards import open_shards
from moe_dist.data.order import divide, limit
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage.store import shown
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig


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

    shards: the folder or URL of its shards; train_samples, val_samples, test_samples: sorted sample numbers of their
    splits. A validation split that the dataset does not publish is a part of the training images: `val` is then
    `train`, and val_samples are numbers of it; without validation there are none. digests: over the images and sample
    numbers of `train`, `val` and `test`, each by itself; split_digest: over all of them, equal for two runs that saw
    the same data the same way; bad_samples: those that this process has met.
    """

    config: DataConfig
    shards: str
    info: DatasetInfo
    train: OpenedSplit
    val: OpenedSplit
    test: OpenedSplit
    train_samples: np.ndarray
    val_samples: np.ndarray
    test_samples: np.ndarray
    digests: Mapping[str, str]
    split_digest: str
    bad_samples: BadSamples

    @property
    def untested_classes(self) -> list[str]:
        """The classes of which the test split has no image."""
        counts = class_counts(self.test.labels[self.test_samples], self.info.classes)
        return [name for name, count in zip(self.info.class_names, counts) if not count]


def open_data(config: DataConfig, seed: int, cache: Path, place: str) -> OpenedData:
    """Open the job's dataset; the split depends on the labels, the groups, `val_fraction` and the seed alone.

    place: the folder or URL of its shards, which the driver found or built (`ensure_shards`).
    Raises UserError where they are not there, or of another dataset or form than the job's.
    """
    shards = open_shards(config, place, cache)
    bad_samples = BadSamples(config.bad_samples_limit if config.on_bad_sample == "skip" else None)
    splits = {name: _opened(opened, config, cache, bad_samples) for name, opened in shards.items()}
    train = splits["train"]
    if isinstance(train.images, EncodedImages):
        shards["train"].require_room(config.window_shards)
    _require_images_of_every_class(train.labels, shards["train"].class_names, shown(place))

    samples = _limited(train, config.max_train_images, seed)
    if "val" in splits:
        val_samples = _limited(splits["val"], config.max_test_images, seed)
    else:
        samples, val_samples = _set_aside(train, samples, config.val_fraction, seed)
    parts = {"train": samples, "val": val_samples, "test": _limited(splits["test"], config.max_test_images, seed)}
    return OpenedData(
        config=config,
        shards=place,
        info=_info(config, shards["train"].class_names, train.labels[samples]),
        train=train,
        val=splits.get("val", train),
        test=splits["test"],
        train_samples=parts["train"],
        val_samples=parts["val"],
        test_samples=parts["test"],
        digests={name: _digest([shards.get(name, shards["train"])], [part]) for name, part in parts.items()},
        split_digest=_digest(shards.values(), parts.values()),
        bad_samples=bad_samples,
    )


def _info(config: DataConfig, class_names: tuple[str, ...], labels: np.ndarray) -> DatasetInfo:
    """What methods may know; `labels` [N] are those of the training images, validation left out."""
    return DatasetInfo(
        classes=len(class_names),
        class_names=class_names,
        image_size=config.image_size,
        train_images=len(labels),
        class_counts=tuple(class_counts(labels, len(class_names)).tolist()),
    )


def _set_aside(train: OpenedSplit, samples: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the training `samples`, those to train on and those to validate on: none where `fraction` is 0."""
    if not fraction:
        return samples, samples[:0]
    rest, held = divide(train.labels[samples], train.groups[samples], fraction, seed)
    return samples[rest], samples[held]


def _opened(shards: ShardSet, config: DataConfig, cache: Path, bad_samples: BadSamples) -> OpenedSplit:
    images = open_images(shards, config, cache / "decoded", bad_samples)
    return OpenedSplit(
        images, np.asarray(shards.labels, np.int64), np.asarray(shards.groups, np.int64), shards.shard_of
    )


def _require_images_of_every_class(labels: np.ndarray, names: tuple[str, ...], place: str) -> None:
    missing = sorted(set(range(len(names))) - set(np.unique(labels).tolist()))
    if missing:
        raise UserError(f"{place}/train: no images of class {', '.join(names[label] for label in missing)}")


def _limited(opened: OpenedSplit, count: int | None, seed: int) -> np.ndarray:
    """All sample numbers, or those of about `count` samples of all classes."""
    if count is None:
        return np.arange(len(opened.labels))
    return limit(opened.labels, opened.groups, count, seed)


def _digest(shards: Iterable[ShardSet], parts: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps([of_split.digest for of_split in shards]).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part, np.int64).tobytes())
    return digest.hexdigest()
