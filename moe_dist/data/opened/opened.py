"""A job's dataset, opened: its shards, its images, and which of them are for training, validation and test.

Letters: N images of a split.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.data.bad_samples import BadSamples
from moe_dist.data.batch import DatasetInfo, Images
from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.longtail import UNLABELLED, LongTail, class_counts
from moe_dist.data.opened.changed import JoinedImages, with_noise
from moe_dist.data.opened.images import EncodedImages, open_images
from moe_dist.data.opened.vectors import Vectors
from moe_dist.data.order import divide, limit
from moe_dist.data.shards.index import INDEX_FILE
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage.store import exists, join, shown
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig


@dataclass(frozen=True)
class OpenedSplit:
    """One split: its images, and the labels, groups (tracks, -1: none) and shards [N] of each.

    names: reads what users call the images [N] from all shards.
    """

    images: Images
    labels: np.ndarray
    groups: np.ndarray
    shard_of: np.ndarray
    names: Callable[[], list[str]]


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
        return self._absent_from(self.test.labels[self.test_samples])

    @property
    def unvalidated_classes(self) -> list[str]:
        """The classes of which the validation split has no image; none without validation."""
        return self._absent_from(self.val.labels[self.val_samples]) if len(self.val_samples) else []

    def _absent_from(self, labels: np.ndarray) -> list[str]:
        counts = class_counts(labels, self.info.classes)
        return [name for name, count in zip(self.info.class_names, counts) if not count]


def open_data(config: DataConfig, seed: int, cache: Path, place: str) -> OpenedData:
    """Open the job's dataset; the split depends on the labels, the groups, `val_fraction` and the seed alone.

    place: the folder or URL of its shards, which the driver found or built (`ensure_shards`).
    Raises UserError where they are not there, or of another dataset or form than the job's.
    """
    shards = open_shards(config, place, cache)
    names = shards["train"].class_names
    bad_samples = BadSamples(config.bad_samples_limit if config.on_bad_sample == "skip" else None)
    splits = {}
    for number, (name, of_split) in enumerate(shards.items()):
        images = open_images(of_split, config, cache / "decoded", bad_samples)
        if isinstance(images, EncodedImages) and name == "train":
            of_split.require_room(config.window_shards)
        if config.noise is not None:
            images = with_noise(images, config.noise, number)
        splits[name] = OpenedSplit(images, of_split.labels, of_split.groups, of_split.shard_of, of_split.names)
    if config.use != "split":
        used = splits["test"] if config.use == "test" else _joined(list(splits.values()))
        splits = {"train": used, "test": used}
    vectors = images.size if isinstance(images, Vectors) else 0
    parts = _parts(splits, config, seed)
    counts = class_counts(splits["train"].labels[parts["train"]], len(names))
    return OpenedData(
        config=config,
        shards=place,
        info=DatasetInfo(
            len(names),
            names,
            config.image_size,
            len(parts["train"]),
            tuple(counts.tolist()),
            vectors,
            shards["train"].superclasses,
        ),
        train=splits["train"],
        val=splits.get("val", splits["train"]),
        test=splits["test"],
        train_samples=parts["train"],
        val_samples=parts["val"],
        test_samples=parts["test"],
        digests={
            name: _digest([shards.get(name, shards["train"])] if config.use == "split" else shards.values(), [part])
            for name, part in parts.items()
        },
        split_digest=_digest(shards.values(), parts.values()),
        bad_samples=bad_samples,
    )


def _joined(splits: Sequence[OpenedSplit]) -> OpenedSplit:
    """All splits as one, in their order."""
    labels, groups = (np.concatenate([getattr(split, name) for split in splits]) for name in ("labels", "groups"))
    first_shards = np.cumsum([0] + [int(split.shard_of.max()) + 1 for split in splits])
    shard_of = np.concatenate([split.shard_of + first for split, first in zip(splits, first_shards)])
    images = JoinedImages([split.images for split in splits], [len(split.labels) for split in splits])
    return OpenedSplit(images, labels, groups, shard_of, lambda: [name for split in splits for name in split.names()])


def are_whole(place: str, config: DataConfig) -> bool:
    """Whether shards were built at `place` to the end."""
    return all(exists(join(place, split, INDEX_FILE), config.remote) for split in ("train", "test"))


def long_tail_of(config: DataConfig) -> LongTail | None:
    """The long-tailed form that the job trains on; None for the dataset as it is."""
    if config.imbalance is None:
        return None
    return LongTail(config.imbalance, config.imbalance_choice, config.imbalance_seed)


def open_shards(config: DataConfig, place: str, cache: Path) -> dict[str, ShardSet]:
    """The splits at `place`: train, val where there is one, test.

    Raises UserError where they cannot be seen there from this node, or are not the job's.
    """
    if not are_whole(place, config):
        raise UserError(
            f"{shown(place)}: holds no whole shards as {platform.node()} sees it; name a place that every node reaches "
            "in data.shards or MOE_DIST_CACHE, or, if they were removed, run the job again"
        )
    has_val = exists(join(place, "val", INDEX_FILE), config.remote)
    shards = {
        split: ShardSet.open(join(place, split), config.remote, cache / "fetched")
        for split in SPLITS
        if split != "val" or has_val
    }
    _require_shards_of(config, shards["train"], shown(place))
    for split, opened in shards.items():
        if (split != "train" or config.use != "split") and (opened.labels == UNLABELLED).any():
            raise UserError(
                f"{shown(place)}: some {split} images have no label; only training images may have none, and only with "
                "data.use = split"
            )
        if opened.class_names != shards["train"].class_names:
            raise UserError(f"{shown(place)}: the train and {split} shards name different classes; build them again")
    return shards


def _require_shards_of(config: DataConfig, train: ShardSet, where: str) -> None:
    """Raise UserError where the training shards are not of the job's dataset and long tail, or a class has no image."""
    if train.dataset != config.dataset:
        raise UserError(
            f"{where}: these are shards of {train.dataset}, the job says data.dataset = {config.dataset}; "
            "change one or the other"
        )
    asked = long_tail_of(config)
    if train.long_tail != (None if asked is None else asked.decided(train.shuffled)):
        raise UserError(
            f"{where}: these shards hold {_in_words(train.long_tail)}, the job says {_in_words(asked)} "
            "(data.imbalance, data.imbalance_choice, data.imbalance_seed); change the job or data.shards"
        )
    missing = np.flatnonzero(class_counts(train.labels, len(train.class_names)) == 0)
    if missing.size:
        raise UserError(f"{where}/train: no images of class {', '.join(train.class_names[label] for label in missing)}")


def _in_words(long_tail: LongTail | None) -> str:
    """A long tail for messages."""
    if long_tail is None:
        return "the dataset as it is"
    images = {
        "first": "first images",
        "random": f"random images by seed {long_tail.seed}",
        "auto": f"auto: random images by seed {long_tail.seed}, or the first of an order known to be shuffled",
    }[long_tail.choice]
    return f"a long tail of imbalance {long_tail.imbalance:g} ({images})"


def _parts(splits: Mapping[str, OpenedSplit], config: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """The sorted sample numbers to train, validate and test on; those of `val` may be numbers of the training split."""

    def limited(split: OpenedSplit, count: int | None) -> np.ndarray:
        return np.arange(len(split.labels)) if count is None else limit(split.labels, split.groups, count, seed)

    train = splits["train"]
    samples = limited(train, config.max_train_images)
    if "val" in splits:
        val_samples = limited(splits["val"], config.max_test_images)
    elif config.val_fraction:
        labelled = samples[train.labels[samples] != UNLABELLED]
        _, held = divide(train.labels[labelled], train.groups[labelled], config.val_fraction, seed)
        if not len(held):
            raise UserError(
                f"data.val_fraction = {config.val_fraction:g} sets none of {len(labelled):,} images aside: those of a "
                "class are of one track, or a single one, and such are not divided; give a validation split, raise "
                "data.max_train_images, or set data.val_fraction to 0"
            )
        val_samples = labelled[held]
        samples = np.setdiff1d(samples, val_samples)
    else:
        val_samples = samples[:0]
    return {"train": samples, "val": val_samples, "test": limited(splits["test"], config.max_test_images)}


def _digest(shards: Iterable[ShardSet], parts: Iterable[np.ndarray]) -> str:
    """The sha256 over the images of `shards` and the sample numbers `parts`."""
    digest = hashlib.sha256(json.dumps([of_split.digest for of_split in shards]).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part, np.int64).tobytes())
    return digest.hexdigest()
