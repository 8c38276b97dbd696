"""A set of iNaturalist 2018's shape is indexed, ordered and streamed exactly once, in little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inat_shaped import CLASSES, IMAGES, pareto_counts, write_inat_shaped
from benchmarks.inat_stream import stream_epoch
from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.images import open_images
from moe_dist.data.order import sampled_order
from moe_dist.data.shards.index import read_index
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Stream
from moe_dist.settings.data import DataConfig

PART = 20


@pytest.fixture(scope="module")
def twentieth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twentieth of the set: as many images of a class, a twentieth of the classes."""
    folder = tmp_path_factory.mktemp("inat") / "train"
    write_inat_shaped(folder, pareto_counts(CLASSES // PART, IMAGES // PART))
    return folder


def test_the_set_has_the_shape_of_inaturalist_2018():
    counts = pareto_counts(CLASSES, IMAGES)
    assert (len(counts), counts.sum(), counts.min(), counts.max()) == (8142, 437_513, 2, 1000)
    assert (np.diff(counts) <= 1).all() and np.median(counts) < 20, "a long tail"


def test_the_index_holds_every_image_of_every_class(twentieth: Path):
    index = read_index(twentieth)
    assert index.class_counts.tolist() == pareto_counts(CLASSES // PART, IMAGES // PART).tolist()
    assert sum(shard.samples for shard in index.shards) == len(index.rows) == IMAGES // PART


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_from_disk_shows_every_image_once_over_the_ranks(twentieth: Path, ranks: int):
    shards = ShardSet.open(twentieth)
    config = DataConfig(image_size=8, decode="each_time")
    images = open_images(shards, config, twentieth)
    everything = TrainingSet(np.arange(len(shards)), shards.labels)
    settings = {"seed": 0, "global_batch": 384, "ranks": ranks}
    streams = [Stream(images, everything, config, rank=rank, **settings) for rank in range(ranks)]
    shown = [[batch.samples[batch.weight > 0] for batch in rank.epoch()] for rank in streams]
    assert {len(batches) for batches in shown} == {-(-len(shards) // 384)}
    seen = np.concatenate([batch.numpy() for batches in shown for batch in batches])
    assert np.array_equal(np.sort(seen), np.arange(len(shards)))


def test_a_balanced_epoch_gives_every_class_its_share(twentieth: Path):
    """21,875 places for 407 classes: 53 for each and one more for 304 of them."""
    labels = ShardSet.open(twentieth).labels
    samples, _ = sampled_order(labels, "balanced", seed=0, epoch=0, epochs=1)
    assert np.bincount(np.bincount(labels[samples]))[[53, 54]].tolist() == [103, 304]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_set_is_shown_once_by_ranks_and_workers_of_little_memory(tmp_path: Path):
    write_inat_shaped(tmp_path / "train", pareto_counts(CLASSES, IMAGES))
    for ranks in (1, 2, 3):
        epoch = stream_epoch(tmp_path / "train", ranks)
        assert np.array_equal(np.sort(epoch["samples"]), np.arange(IMAGES))
        assert len({rank["steps"] for rank in epoch["ranks"]}) == 1
        for rank in epoch["ranks"]:
            assert 0 < rank["rank_mib_over_interpreter"] < 300
            assert 0 < rank["worker_mib_over_interpreter"] < 300
