"""The stream's promises: every sample once, equal steps, the same global batches and an exact resume on any ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_dist.data.bad_samples import BadSamples, read_bad_samples
from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.data.opened.images import open_images
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Position, Stream, evaluation_batches
from moe_dist.errors import UserError
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig

CONFIG = DataConfig(image_size=8)
AUGMENT = AugmentConfig(shift=0.2, rotate=10, flip=True, brightness=0.2)
IMAGES = 60


class Pictures:
    """Noise of 8 x 8 pixels in memory."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 8, 8), np.uint8)

    def __len__(self) -> int:
        return IMAGES

    def uint8(self, samples: np.ndarray, crop: object = None) -> Tensor:
        return torch.from_numpy(self.pixels[samples])

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples), bool)


PICTURES = Pictures()


def training_set(samples: int, first: int = 0) -> TrainingSet:
    """`samples` of the pictures, in steps of 7 through them: their numbers are not their places."""
    numbers = (first + 7 * np.arange(samples)) % IMAGES
    return TrainingSet(numbers, numbers % 5, {"cluster": numbers % 3, "score": numbers / 4})


def stream(samples: int, batch: int, rank: int = 0, ranks: int = 1, seed: int = 0, **settings) -> Stream:
    return Stream(
        PICTURES,
        training_set(samples),
        CONFIG,
        seed=seed,
        global_batch=batch,
        rank=rank,
        ranks=ranks,
        augment=AUGMENT,
        **settings,
    )


def run(streams: list[Stream], steps: int) -> list[Batch]:
    """The next `steps` global batches, put together from all ranks' shares in order of their places."""
    return [interleave(shares) for shares in zip(*(islice(endless(rank), steps) for rank in streams))]


def endless(rank: Stream) -> Iterator[Batch]:
    while True:
        for batch in rank.epoch():
            rank.advance()
            yield batch


def interleave(shares: tuple[Batch, ...]) -> Batch:
    def together(values: list[Tensor]) -> Tensor:
        return torch.stack(values, dim=1).flatten(0, 1)

    return Batch(
        *(together([getattr(share, name) for share in shares]) for name in ("images", "labels", "samples")),
        weight=together([share.weight / len(shares) for share in shares]),
        rows=together([share.rows for share in shares]),
        columns={name: together([share.columns[name] for share in shares]) for name in shares[0].columns},
    )


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "samples")
    ) and torch.allclose(one.weight, other.weight)


sizes = st.integers(1, 40)
samplings = st.sampled_from(["instance", "balanced", "square_root", "progressive"])
worlds = st.sampled_from([1, 2, 3])
batches = st.sampled_from([6, 12, 18])
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=40)
@given(sizes, batches, worlds, seeds)
def test_ranks_take_equal_steps_and_every_sample_once(samples: int, batch: int, ranks: int, seed: int):
    streams = [stream(samples, batch, rank, ranks, seed) for rank in range(ranks)]
    epochs = [list(rank.epoch()) for rank in streams]
    assert {len(epoch) for epoch in epochs} == {len(streams[0])} == {-(-samples // batch)}
    seen = torch.cat([batch.samples[batch.weight > 0] for epoch in epochs for batch in epoch])
    assert sorted(seen.tolist()) == sorted(training_set(samples).samples.tolist())


@settings(max_examples=25)
@given(sizes, batches, st.sampled_from([2, 3]), seeds, samplings)
def test_any_number_of_ranks_sees_the_same_global_batches(
    samples: int, batch: int, ranks: int, seed: int, sampling: str
):
    steps = 2 * -(-samples // batch)
    shown: dict = {"sampling": sampling, "epochs": 2}
    alone = run([stream(samples, batch, seed=seed, **shown)], steps)
    together = run([stream(samples, batch, rank, ranks, seed, **shown) for rank in range(ranks)], steps)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


@settings(max_examples=25)
@given(sizes, batches, worlds, worlds, st.integers(0, 12), seeds, samplings)
def test_a_resume_gives_the_exact_next_batches_on_any_ranks(
    samples: int, batch: int, before: int, after: int, steps: int, seed: int, sampling: str
):
    shown: dict = {"sampling": sampling, "epochs": 20}
    unbroken = run([stream(samples, batch, seed=seed, **shown)], steps + 4)
    streams = [stream(samples, batch, rank, before, seed, **shown) for rank in range(before)]
    run(streams, steps)
    state = json.dumps(streams[-1].state())
    resumed = [stream(samples, batch, rank, after, seed, **shown) for rank in range(after)]
    for rank in resumed:
        rank.load(json.loads(state))
    found = run(resumed, 4)
    assert all(same(one, other) for one, other in zip(unbroken[steps:], found, strict=True))


def test_the_weighted_means_of_the_ranks_average_to_the_global_mean():
    """8 samples in batches of 6 on 3 ranks: the second batch holds 2 samples and 4 of padding."""
    epochs = [list(stream(8, 6, rank, 3).epoch()) for rank in range(3)]
    for shares in zip(*epochs):
        values = [share.samples.float() ** 2 for share in shares]
        average = sum(share.mean(value) for share, value in zip(shares, values)) / 3
        valid = torch.cat([value[share.weight > 0] for share, value in zip(shares, values)])
        assert torch.allclose(average, valid.mean())
    assert [share.weight.tolist() for share in (epoch[1] for epoch in epochs)] == [[1.5, 0], [1.5, 0], [0, 0]]


def test_a_batch_carries_its_samples_labels_columns_and_pixels():
    plain = Stream(PICTURES, training_set(20), CONFIG, seed=1, global_batch=6, rank=0, ranks=1, augment=None)
    for batch in plain.epoch():
        assert torch.equal(batch.labels, batch.samples % 5)
        assert torch.equal(batch.columns["cluster"], batch.samples % 3)
        assert torch.equal(batch.columns["score"], batch.samples.float() / 4)
        expected = (PICTURES.pixels[batch.samples.numpy()] / 255 - 0.5) / 0.5
        assert np.abs(batch.images.numpy() - expected).max() < 1e-6
        assert (batch.labels.dtype, batch.images.dtype, batch.weight.dtype) == (
            torch.int64,
            torch.float32,
            torch.float32,
        )


def test_epochs_differ_in_order_and_augmentation():
    first, second = (interleave((batch,)) for batch in islice(endless(stream(30, 30)), 2))
    assert first.samples.tolist() != second.samples.tolist()
    by_number = [torch.argsort(batch.samples) for batch in (first, second)]
    assert not torch.allclose(first.images[by_number[0]], second.images[by_number[1]])


def test_a_batch_not_finished_is_given_again():
    unbroken = [batch.samples for batch in stream(30, 6).epoch()]
    broken = stream(30, 6)
    batches = broken.epoch()
    for _ in range(3):
        next(batches)
    broken.advance()
    broken.advance()
    assert broken.state()["steps"] == 2
    assert torch.equal(next(broken.epoch()).samples, unbroken[2])


def test_a_position_moves_through_steps_and_epochs():
    """7 samples in batches of 3 are 3 steps an epoch."""
    moving = stream(7, 3)
    for expected in (Position(0, 1), Position(0, 2), Position(1, 0), Position(1, 1)):
        moving.advance()
        assert moving.position == expected


def test_streaming_leaves_the_global_random_state_alone():
    """Or a run resumed inside an epoch would draw other dropout masks than an unbroken one."""
    before = torch.get_rng_state()
    list(stream(30, 6).epoch())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (stream(30, 12), "global_batch = 12"),
        (stream(30, 6, seed=1), "seed = 1"),
        (stream(29, 6), "samples = 29"),
        (stream(30, 6, sampling="balanced"), "sampling = balanced"),
        (stream(30, 6, sampling="progressive", epochs=3), "sampling = progressive over 3 epochs"),
    ],
)
def test_the_state_of_another_stream_is_refused(other: Stream, named: str):
    with pytest.raises(UserError, match=f"has {named} and this job's has"):
        stream(30, 6).load(other.state())


def test_the_state_of_other_labels_is_refused():
    relabelled = training_set(30)
    relabelled.labels[3] += 1
    other = Stream(PICTURES, relabelled, CONFIG, seed=0, global_batch=6, rank=0, ranks=1)
    with pytest.raises(UserError, match="digest"):
        stream(30, 6).load(other.state())


def test_a_batch_size_the_workers_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"batch_size = 8 .* not a multiple of workers = 3"):
        stream(30, 8, 0, 3)


def test_a_stage_without_samples_is_refused():
    with pytest.raises(UserError, match="no samples"):
        stream(0, 6)


def test_a_balanced_epoch_shows_classes_equally_often_and_copies_of_an_image_changed_differently():
    """31 pictures of class 0 and 5 of class 1: 18 places each, so that the 5 come three or four times."""
    numbers = np.arange(36)
    unequal = TrainingSet(numbers, (numbers >= 31).astype(np.int64))
    settings: dict = {"seed": 0, "global_batch": 12, "rank": 0, "ranks": 1, "augment": AUGMENT, "sampling": "balanced"}
    shown = list(Stream(PICTURES, unequal, CONFIG, **settings).epoch())
    labels, samples = (torch.cat([getattr(batch, name) for batch in shown]) for name in ("labels", "samples"))
    images = torch.cat([batch.images for batch in shown])
    assert torch.bincount(labels).tolist() == [18, 18]
    assert set(torch.bincount(samples)[31:].tolist()) == {3, 4}
    for sample in range(31, 36):
        copies = images[samples == sample].flatten(1)
        assert len(torch.unique(copies, dim=0)) == len(copies)


def test_sampling_classes_from_windows_of_shards_is_refused():
    windows = DataConfig(image_size=8, window_shards=2)
    with pytest.raises(UserError, match=r"data.window_shards = 2 .* cannot be joined with sampling = square_root"):
        Stream(PICTURES, training_set(9), windows, seed=0, global_batch=3, rank=0, ranks=1, sampling="square_root")


def test_slow_storage_is_read_in_windows_of_shards():
    """Six shards of ten samples, a window of two: each third of an epoch comes from two shards alone."""
    shard_of = np.arange(IMAGES) // 10
    windowed = Stream(
        PICTURES,
        training_set(IMAGES),
        DataConfig(image_size=8, window_shards=2),
        seed=0,
        global_batch=20,
        rank=0,
        ranks=1,
        shard_of=shard_of,
    )
    shards = [set(shard_of[batch.samples.numpy()].tolist()) for batch in windowed.epoch()]
    assert [len(of_batch) for of_batch in shards] == [2, 2, 2]
    assert set.union(*shards) == set(range(6))


def test_evaluation_sees_every_sample_once_in_order_and_unchanged():
    samples = np.array([4, 9, 2, 40, 11])
    whole = list(evaluation_batches(PICTURES, samples, samples % 5, CONFIG, batch_size=2))
    seen = torch.cat([batch.samples[batch.weight > 0] for batch in whole])
    images = torch.cat([batch.images[batch.weight > 0] for batch in whole])
    assert seen.tolist() == samples.tolist()
    assert np.abs(images.numpy() - (PICTURES.pixels[samples] / 127.5 - 1)).max() < 1e-6


def test_evaluation_of_few_samples_is_not_padded_to_a_whole_batch():
    (batch,) = evaluation_batches(PICTURES, np.array([4, 9, 2]), np.zeros(3, np.int64), CONFIG, batch_size=256)
    assert batch.samples.tolist() == [4, 9, 2] and (batch.weight > 0).all()


def disk_stream(shards: Path, workers: int, split: str = "train", beside: Stream | None = None) -> Stream:
    opened = ShardSet.open(shards / split)
    config = DataConfig(image_size=8, decode="each_time", loader_workers=workers)
    images = open_images(opened, config, shards / "cache")
    everything = TrainingSet(np.arange(len(opened)), opened.labels)
    return Stream(images, everything, config, seed=0, global_batch=5, rank=0, ranks=1, augment=AUGMENT, beside=beside)


def test_loader_workers_give_the_same_batches_also_after_a_break(shards: Path):
    alone, helped = disk_stream(shards, 0), disk_stream(shards, 2)
    next(helped.epoch())  # a pass that is broken off leaves batches in flight
    for one, other in zip(run([alone], 8), run([helped], 8), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_beside_each_other_share_processes_and_give_the_batches_they_give_alone(shards: Path, workers: int):
    others = set(multiprocessing.active_children())
    alone = [disk_stream(shards, 0, split) for split in ("train", "test")]
    training = disk_stream(shards, workers)
    validation = disk_stream(shards, workers, "test", beside=training)
    next(training.epoch())  # broken off, as where a checkpoint is gone on from
    processes = set(multiprocessing.active_children()) - others
    assert len(processes) == workers
    for _ in range(2):
        for one, other in zip(alone, (training, validation), strict=True):
            for expected, found in zip(run([one], len(one)), run([other], len(other)), strict=True):
                assert same(expected, found)
        assert set(multiprocessing.active_children()) - others == processes


def test_streams_that_share_processes_are_not_read_at_the_same_time(shards: Path):
    training = disk_stream(shards, 1)
    validation = disk_stream(shards, 1, "test", beside=training)
    batches = training.epoch()
    next(batches)
    next(validation.epoch())
    with pytest.raises(AssertionError, match="a pass goes on that another one has ended"):
        list(batches)


def test_images_in_memory_need_no_processes_beside_a_stream_that_has_some(shards: Path):
    training = disk_stream(shards, 1)
    held = Stream(PICTURES, training_set(6), CONFIG, seed=0, global_batch=3, rank=0, ranks=1, beside=training)
    batches = training.epoch()
    next(batches)
    assert len(list(held.epoch())) == 2 and len(list(batches)) == len(training) - 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_stream_with_one_sentence(shards: Path, workers: int):
    broken = disk_stream(shards, workers)
    path = shards / "train/train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT"))
    with pytest.raises(UserError, match=r"train-000001.tar: \S+.png: changed or cut short") as refused:
        list(broken.epoch())
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_a_skipped_image_is_black_and_weighs_nothing_and_the_others_weigh_what_they_did(
    shards: Path, tmp_path: Path, decode: str, workers: int
):
    whole = [batch for batch in disk_stream(shards, 0).epoch()]
    damage(shards, sample=12)
    noted = BadSamples(limit=1)
    noted.write_to(tmp_path / "noted")
    opened = ShardSet.open(shards / "train")
    config = DataConfig(image_size=8, decode=decode, loader_workers=workers)
    images = open_images(opened, config, tmp_path / "cache", noted)
    everything = TrainingSet(np.arange(len(opened)), opened.labels)
    found = list(Stream(images, everything, config, seed=0, global_batch=5, rank=0, ranks=1).epoch())
    assert len(found) == len(whole)
    for batch, before in zip(found, whole):
        bad = batch.samples == 12
        assert torch.equal(batch.samples, before.samples) and torch.equal(batch.weight[~bad], before.weight[~bad])
        assert not batch.weight[bad].any() and (batch.images[bad] == -1).all()
    (sentence,) = read_bad_samples(tmp_path / "noted")
    assert "train-000001.tar: " in sentence and ".png: changed or cut short" in sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_more_bad_images_than_the_limit_end_the_stream_with_one_sentence(shards: Path, workers: int):
    for sample in (3, 12, 20):
        damage(shards, sample)
    opened = ShardSet.open(shards / "train")
    config = DataConfig(image_size=8, decode="each_time", loader_workers=workers)
    images = open_images(opened, config, shards, BadSamples(limit=2))
    everything = TrainingSet(np.arange(len(opened)), opened.labels)
    stream = Stream(images, everything, config, seed=0, global_batch=6, rank=0, ranks=1)
    with pytest.raises(UserError, match=r"3 bad samples are more than data.bad_samples_limit = 2 allows .*\.png: "):
        list(stream.epoch())


def damage(shards: Path, sample: int) -> None:
    """Flip one bit in the middle of a training image's bytes."""
    opened = ShardSet.open(shards / "train")
    data, path = opened.read(sample), shards / f"train/train-{opened.shard_of[sample]:06d}.tar"
    middle = path.read_bytes().index(data) + len(data) // 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes([data[len(data) // 2] ^ 1]))


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu():
    host, device = stream(20, 6), stream(20, 6, device="cuda")
    for one, other in zip(run([host], 4), run([device], 4), strict=True):
        assert other.images.is_cuda and other.labels.is_cuda and other.columns["score"].is_cuda
        assert torch.equal(one.samples, other.samples.cpu())
        assert torch.allclose(one.images, other.images.cpu(), atol=1e-4)


CIFAR = AugmentConfig(pad_crop=2, flip=True, policy="autoaugment_cifar10", cutout=0.5)


def of_device(device: str, workers: int | None, augment: AugmentConfig | None = CIFAR, **settings) -> Stream:
    config, where = DataConfig(image_size=8, loader_workers=workers), {"rank": 0, "ranks": 1, "device": device}
    return Stream(PICTURES, training_set(20), config, seed=0, global_batch=6, augment=augment, **where, **settings)


@pytest.mark.parametrize(("workers", "processes"), [(None, min(4, os.cpu_count() or 1)), (0, 0), (2, 2)])
def test_images_held_in_memory_are_changed_by_loaders_for_a_gpu_alone(workers: int | None, processes: int):
    training = of_device("cuda", workers)
    assert training._loader.processes == processes
    assert of_device("cuda", workers, augment=None, beside=training)._loader.processes == 0
    assert of_device("cuda", workers, augment=AugmentConfig())._loader.processes == 0
    assert of_device("cpu", workers)._loader.processes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_gpu_trains_on_the_pixels_of_a_cpu(workers: int | None):
    """Changed by the processor, to the bit: only the normalisation is the GPU's."""
    for one, other in zip(run([of_device("cpu", 0)], 4), run([of_device("cuda", workers)], 4), strict=True):
        torch.testing.assert_close(one.images, other.images.cpu(), atol=1e-6, rtol=1e-6)


def pairs_of_a_label(labels: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
    """Three steps, each of rows of one label side by side, its last place empty."""
    random = np.random.default_rng([seed, epoch])
    steps = [random.choice(np.flatnonzero(labels == label), batch) for label in (0, 1, 2)]
    rows = np.stack(steps)
    rows[:, -1] = -1
    return rows


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_order_of_its_own_is_what_an_epoch_shows(ranks: int):
    """Rows may come several times and places may be empty; an empty place weighs nothing, the others their share."""
    streams = [stream(30, 6, rank, ranks, order=pairs_of_a_label) for rank in range(ranks)]
    assert {len(each) for each in streams} == {3}
    expected = [pairs_of_a_label(training_set(30).labels, 0, epoch, 6) for epoch in (0, 1)]
    for step, batch in enumerate(run(streams, 6)):
        rows = expected[step // 3][step % 3]
        assert batch.samples.tolist()[:-1] == training_set(30).samples[rows[:-1]].tolist()
        torch.testing.assert_close(batch.weight, torch.tensor([1 / 5] * 5 + [0.0]))


def test_copies_of_a_row_are_augmented_differently_and_alike_on_any_ranks():
    def twice(labels: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
        return np.array([[4, 4, 4, 9, 9, 9]])

    alone = run([stream(30, 6, order=twice)], 2)
    together = run([stream(30, 6, rank, 2, order=twice) for rank in range(2)], 2)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in alone[0].images}) == 6


NEIGHBOURS = np.stack([(np.arange(20) + 1) % 20, np.where(np.arange(20) % 3 == 0, -1, np.arange(20) // 2)], axis=1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_companions_are_the_images_of_the_rows_that_are_named(ranks: int):
    """Unaugmented, they are the very images; black where the row is -1; whatever the number of ranks."""
    streams = [
        Stream(PICTURES, training_set(20), CONFIG, seed=0, global_batch=4, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    plain = next(iter(Stream(PICTURES, training_set(20), CONFIG, seed=0, global_batch=20, rank=0, ranks=1).epoch()))
    image_of = {int(row): image for row, image in zip(plain.rows, plain.images)}
    for each in streams:
        for batch in each.epoch({"near": NEIGHBOURS}, "near"):
            assert batch.companions is not None and batch.companions.shape == (4 // ranks, 2, 3, 8, 8)
            assert torch.equal(batch.columns["near"], torch.from_numpy(NEIGHBOURS)[batch.rows])
            for row, companions in zip(batch.rows.tolist(), batch.companions):
                for neighbour, companion in zip(NEIGHBOURS[row], companions):
                    expected = image_of[int(neighbour)] if neighbour >= 0 else torch.zeros(3, 8, 8)
                    assert torch.equal(companion, expected)


def test_companions_are_augmented_by_draws_of_their_own():
    """The same on one rank and on two, and neither as the sample itself nor twice alike."""
    itself = np.stack([np.arange(20), np.arange(20)], axis=1)
    alone = list(stream(20, 4).epoch({"near": itself}, "near"))
    streams = [list(stream(20, 4, rank, 2).epoch({"near": itself}, "near")) for rank in range(2)]
    for batch, shares in zip(alone, zip(*streams)):
        assert batch.companions is not None
        together = torch.stack([share.companions for share in shares], dim=1).flatten(0, 1)
        assert torch.equal(batch.companions, together)
        for image, companions in zip(batch.images, batch.companions):
            assert not torch.equal(image, companions[0]) and not torch.equal(companions[0], companions[1])


def test_an_epoch_can_be_read_in_parts():
    """`most` ends a reading early; the next one goes on from there with other arrays."""
    whole = [batch.samples.tolist() for batch in stream(20, 4).epoch()]
    parts, reader = [], stream(20, 4)
    for number, most in enumerate((2, 2, 4)):
        for batch in reader.epoch({"reading": np.full(20, number)}, most=most):
            parts.append(batch.samples.tolist())
            assert batch.columns["reading"].tolist() == [number] * 4
            reader.advance()
    assert parts == whole
