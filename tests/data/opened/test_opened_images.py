"""Images decoded once and each time: the same pixels; the array is written once and shared."""

from __future__ import annotations

import errno
import fcntl
import io
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encode
from PIL import Image

from moe_dist.data.bad_samples import BadSamples
from moe_dist.data.datasets.samples import Sample
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop
from moe_dist.data.opened import images as images_room
from moe_dist.data.opened.images import DecodedImages, EncodedImages, open_images
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage import locks
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig

EVERY_OTHER = np.array([5, 0, 23, 5])


def config(**settings) -> DataConfig:
    return DataConfig(image_size=8, **settings)


@pytest.fixture
def train(shards: Path) -> ShardSet:
    return ShardSet.open(shards / "train")


def test_pixels_are_pillows_resized_images(train: ShardSet, tmp_path: Path):
    found = open_images(train, config(), tmp_path / "cache").uint8(EVERY_OTHER)
    assert found.shape == (4, 3, 8, 8) and found.dtype == torch.uint8 and found.is_contiguous()
    for row, sample in enumerate(EVERY_OTHER.tolist()):
        expected = Image.open(io.BytesIO(train.read(sample))).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(found[row].numpy().astype(int) - np.array(expected).transpose(2, 0, 1)).max() <= 1


def test_images_decoded_once_and_each_time_have_the_same_pixels(train: ShardSet, tmp_path: Path):
    once = open_images(train, config(decode="once"), tmp_path / "cache")
    each_time = open_images(train, config(decode="each_time"), tmp_path / "cache")
    assert isinstance(once, DecodedImages) and isinstance(each_time, EncodedImages)
    assert len(once) == len(each_time) == 24
    assert torch.equal(once.uint8(np.arange(24)), each_time.uint8(np.arange(24)))


def test_auto_is_once_up_to_the_limit(train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    size_bytes = 24 * 3 * 8 * 8
    monkeypatch.setattr(images_room, "DECODED_LIMIT_BYTES", size_bytes)
    assert isinstance(open_images(train, config(), tmp_path / "cache"), DecodedImages)
    monkeypatch.setattr(images_room, "DECODED_LIMIT_BYTES", size_bytes - 1)
    assert isinstance(open_images(train, config(), tmp_path / "cache"), EncodedImages)


def test_the_array_is_written_once_and_serves_without_the_shards(shards: Path, train: ShardSet, tmp_path: Path):
    first = open_images(train, config(), tmp_path / "cache")
    (array,) = (tmp_path / "cache").iterdir()
    assert np.load(array, allow_pickle=False).shape == (24, 3, 8, 8)
    for shard in shards.glob("train/*.tar"):
        shard.unlink()
    again = open_images(train, config(), tmp_path / "cache")
    assert torch.equal(first.uint8(EVERY_OTHER), again.uint8(EVERY_OTHER))


def test_another_size_crop_or_frame_has_an_array_of_its_own(train: ShardSet, tmp_path: Path):
    whole, centre = config(), config(frame="centre_crop")
    for settings in (whole, DataConfig(image_size=9), config(crop_roi=True), centre):
        open_images(train, settings, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 4
    stretched, framed = (open_images(train, settings, tmp_path / "cache") for settings in (whole, centre))
    assert not torch.equal(stretched.uint8(EVERY_OTHER), framed.uint8(EVERY_OTHER))


@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_a_centre_frame_is_cut_from_the_resized_image(train: ShardSet, tmp_path: Path, decode: str):
    """12 x 10 pixels: the short side becomes round(8 * 8 / 7) = 9, the long one 9 * 12 // 10 = 10; cut at (1, 0)."""
    found = open_images(train, config(decode=decode, frame="centre_crop"), tmp_path / "cache").uint8(EVERY_OTHER)
    for row, sample in enumerate(EVERY_OTHER.tolist()):
        picture = Image.open(io.BytesIO(train.read(sample))).convert("RGB").resize((10, 9), Image.Resampling.BILINEAR)
        expected = np.array(picture.crop((1, 0, 9, 8))).transpose(2, 0, 1)
        assert np.abs(found[row].numpy().astype(int) - expected).max() <= 1


def test_a_random_crop_comes_from_the_region_of_interest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from listed import build_listed

    pixels = np.random.default_rng(7).integers(0, 256, (40, 50, 3), np.uint8)
    roi = (11, 6, 39, 33)
    samples = [Sample("a", 0, encode(pixels, "PNG"), "png", roi=roi)]
    build_listed(monkeypatch, tmp_path / "out", samples)
    opened = ShardSet.open(tmp_path / "out/train")
    crop = RandomCrop((0.1, 0.9), np.random.default_rng(8).random((1, CROP_DRAWS)))
    x1, y1, x2, y2 = crop.region(0, roi)
    picture = Image.fromarray(pixels).crop((x1, y1, x2, y2)).resize((8, 8), Image.Resampling.BILINEAR)
    found = EncodedImages(opened, 8, crop_roi=True).uint8(np.array([0]), crop)[0].numpy().astype(int)
    assert np.abs(found - np.array(picture).transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_images_travel_as_where_they_come_from(train: ShardSet, tmp_path: Path, decode: str):
    images = open_images(train, config(decode=decode), tmp_path / "cache")
    packed = pickle.dumps(images)
    assert len(packed) < 24 * 3 * 8 * 8 + 4000  # the shards' index, not the pixels beside it
    assert torch.equal(pickle.loads(packed).uint8(EVERY_OTHER), images.uint8(EVERY_OTHER))


def test_a_region_is_cut_where_the_sample_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from listed import build_listed

    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    data = encode(pixels, "PNG")
    samples = [Sample("a", 0, data, "png", roi=(3, 4, 11, 12)), Sample("b", 1, data, "png")]
    build_listed(monkeypatch, tmp_path / "out", samples)
    opened = ShardSet.open(tmp_path / "out/train")
    cut = EncodedImages(opened, 8, crop_roi=True).uint8(np.arange(2))
    whole = EncodedImages(opened, 8, crop_roi=False).uint8(np.arange(2))
    (first,), (second,) = np.flatnonzero(opened.labels == 0), np.flatnonzero(opened.labels == 1)
    assert np.array_equal(cut[first].permute(1, 2, 0).numpy(), pixels[4:12, 3:11])
    assert torch.equal(cut[second], whole[second]) and torch.equal(whole[0], whole[1])


def flip_a_bit(shards: Path, sample: int) -> bytes:
    """Damage a training sample's bytes in its shard; the shard's bytes as they were."""
    opened = ShardSet.open(shards / "train")
    path = shards / f"train/train-{opened.shard_of[sample]:06d}.tar"
    whole, data = path.read_bytes(), opened.read(sample)
    path.write_bytes(whole.replace(data, data[:-1] + bytes([data[-1] ^ 1])))
    return whole


@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_a_bad_image_is_black_where_the_job_skips_and_an_error_where_it_fails(
    shards: Path, train: ShardSet, tmp_path: Path, decode: str
):
    before = open_images(train, config(decode=decode), tmp_path / "before").uint8(np.arange(24))
    flip_a_bit(shards, 12)
    skipping = open_images(train, config(decode=decode), tmp_path / "cache", BadSamples(limit=1))
    found = skipping.uint8(np.arange(24))
    good = skipping.readable(np.arange(24))
    assert np.flatnonzero(~good).tolist() == [12]
    assert not found[12].any() and torch.equal(found[good], before[good])
    with pytest.raises(UserError, match=r"train-000001.tar: \S+.png: changed or cut short"):
        open_images(train, config(decode=decode), tmp_path / "cache").uint8(np.arange(24))


def test_a_second_job_that_finds_the_array_knows_its_bad_images_too(shards: Path, train: ShardSet, tmp_path: Path):
    whole = flip_a_bit(shards, 12)
    open_images(train, config(), tmp_path / "cache", BadSamples(limit=1))
    bad_samples = BadSamples(limit=1)
    again = open_images(train, config(), tmp_path / "cache", bad_samples)
    assert np.flatnonzero(~again.readable(np.arange(24))).tolist() == [12]
    assert len(bad_samples.sentences()) == 1
    assert np.flatnonzero(~pickle.loads(pickle.dumps(again)).readable(np.arange(24))).tolist() == [12]

    (shards / "train/train-000001.tar").write_bytes(whole)
    mended = open_images(train, config(), tmp_path / "cache")
    assert mended.uint8(np.array([12])).any() and mended.readable(np.arange(24)).all()
    assert len(list((tmp_path / "cache").iterdir())) == 1, "no list of bad images is left"


def test_an_image_that_does_not_decode_is_a_bad_sample(monkeypatch: pytest.MonkeyPatch, train: ShardSet):
    monkeypatch.setattr(images_room, "decode_resized", lambda *_: (_ for _ in ()).throw(ValueError("damaged image")))
    bad_samples = BadSamples(limit=3)
    images = EncodedImages(train, 8, False, bad_samples)
    assert not images.uint8(np.array([4, 4, 7])).any()
    assert [sentence.rpartition(": ")[2] for sentence in bad_samples.sentences()] == ["damaged image"] * 2


def test_a_full_disk_says_what_to_do_and_leaves_nothing(
    train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", no_space)
    with pytest.raises(UserError, match=r"No space left on device.*free space or set data.decode=each_time"):
        open_images(train, config(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def decode(train: ShardSet, cache: Path, inside: Any, go_on: Any, waiting: Any) -> None:
    """Open the images in a process that stops inside its decoding, and tells when it is about to wait for a lock."""
    flock, uint8 = fcntl.flock, EncodedImages.uint8

    def told(file: Any, operation: int) -> None:
        waiting.set()
        flock(file, operation)

    def held_up(self: EncodedImages, samples: np.ndarray, crop: Any = None) -> torch.Tensor:
        inside.set()
        go_on.wait()
        return uint8(self, samples, crop)

    fcntl.flock, EncodedImages.uint8 = told, held_up  # type: ignore[method-assign]
    open_images(train, config(), cache)


@pytest.mark.parametrize("end", [lambda first, go_on: go_on.set(), lambda first, go_on: first.kill()])
def test_of_two_processes_one_decodes_and_a_killed_one_holds_up_nobody(
    train: ShardSet, tmp_path: Path, end: Callable[[Any, Any], None]
):
    """The second comes while the first decodes: it decodes only where the first is killed."""
    context = multiprocessing.get_context("fork")
    go_on, first_waits = context.Event(), context.Event()
    inside, second_go_on, second_waits = [context.Event() for _ in range(2)], context.Event(), context.Event()
    second_go_on.set()
    arguments = [(inside[0], go_on, first_waits), (inside[1], second_go_on, second_waits)]
    first, second = (
        context.Process(target=decode, args=(train, tmp_path / "cache", *events), daemon=True) for events in arguments
    )
    first.start()
    inside[0].wait()
    second.start()
    while second.is_alive() and not second_waits.is_set():
        time.sleep(0.01)
    end(first, go_on)
    first.join()
    second.join()
    killed = first.exitcode != 0
    assert second.exitcode == 0 and inside[1].is_set() == killed
    images = open_images(train, config(), tmp_path / "cache")
    assert torch.equal(images.uint8(np.arange(24)), EncodedImages(train, 8, False).uint8(np.arange(24)))
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix in (".npy", ".lock")]) == 1


def test_images_are_decoded_where_there_are_no_locks(train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    images = open_images(train, config(decode="once"), tmp_path / "cache")
    assert torch.equal(images.uint8(np.arange(24)), EncodedImages(train, 8, False).uint8(np.arange(24)))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_black_image_is_listed_as_long_as_its_array_is_there(
    shards: Path, train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A process that is to mend an array is killed just before the new one is put in its place."""
    whole = flip_a_bit(shards, 12)
    open_images(train, config(), tmp_path / "cache", BadSamples(limit=1))
    (shards / "train/train-000001.tar").write_bytes(whole)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).suffix == ".npy":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        open_images(train, config(), tmp_path / "cache")
    found = open_images(train, config(), tmp_path / "cache")
    assert found.uint8(np.array([12])).any() and found.readable(np.arange(24)).all()


def test_an_array_whose_list_of_bad_images_was_lost_is_decoded_again(shards: Path, train: ShardSet, tmp_path: Path):
    flip_a_bit(shards, 12)
    open_images(train, config(), tmp_path / "cache", BadSamples(limit=1))
    (listed,) = (tmp_path / "cache").glob("*.bad.json")
    listed.write_text("[1")
    again = open_images(train, config(), tmp_path / "cache", BadSamples(limit=1))
    assert np.flatnonzero(~again.readable(np.arange(24))).tolist() == [12]
    assert listed.read_text().split() == ["[", "12", "]"]
