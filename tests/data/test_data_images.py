"""Images in memory and on disk: the same pixels, written once, shared."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encode
from PIL import Image

from moe_dist.config import DataConfig
from moe_dist.data import images as images_room
from moe_dist.data.images import DiskImages, MemoryImages, open_images
from moe_dist.data.samples import Sample
from moe_dist.data.shards import ShardSet
from moe_dist.errors import UserError

EVERY_OTHER = np.array([5, 0, 23, 5])


def config(**settings) -> DataConfig:
    return DataConfig(image_size=8, **settings)


@pytest.fixture
def train(shards: Path) -> ShardSet:
    return ShardSet.open(shards / "train")


def test_pixels_are_pillows_resized_images(train: ShardSet, tmp_path: Path):
    import io

    found = open_images(train, config(), tmp_path / "cache").uint8(EVERY_OTHER)
    assert found.shape == (4, 3, 8, 8) and found.dtype == torch.uint8 and found.is_contiguous()
    for row, sample in enumerate(EVERY_OTHER.tolist()):
        expected = Image.open(io.BytesIO(train.read(sample))).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(found[row].numpy().astype(int) - np.array(expected).transpose(2, 0, 1)).max() <= 1


def test_memory_and_disk_hold_the_same_pixels(train: ShardSet, tmp_path: Path):
    memory = open_images(train, config(hold="memory"), tmp_path / "cache")
    disk = open_images(train, config(hold="disk"), tmp_path / "cache")
    assert isinstance(memory, MemoryImages) and isinstance(disk, DiskImages)
    assert len(memory) == len(disk) == 24
    assert torch.equal(memory.uint8(np.arange(24)), disk.uint8(np.arange(24)))


def test_auto_is_memory_up_to_the_limit(train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    size_bytes = 24 * 3 * 8 * 8
    monkeypatch.setattr(images_room, "MEMORY_LIMIT_BYTES", size_bytes)
    assert isinstance(open_images(train, config(), tmp_path / "cache"), MemoryImages)
    monkeypatch.setattr(images_room, "MEMORY_LIMIT_BYTES", size_bytes - 1)
    assert isinstance(open_images(train, config(), tmp_path / "cache"), DiskImages)


def test_the_array_is_written_once_and_serves_without_the_shards(train: ShardSet, tmp_path: Path):
    first = open_images(train, config(), tmp_path / "cache")
    (array,) = (tmp_path / "cache").iterdir()
    assert np.load(array, allow_pickle=False).shape == (24, 3, 8, 8)
    for shard in train.folder.glob("*.tar"):
        shard.unlink()
    again = open_images(train, config(), tmp_path / "cache")
    assert torch.equal(first.uint8(EVERY_OTHER), again.uint8(EVERY_OTHER))


def test_another_size_or_crop_has_an_array_of_its_own(train: ShardSet, tmp_path: Path):
    for settings in (DataConfig(image_size=8), DataConfig(image_size=9), DataConfig(image_size=8, crop_roi=True)):
        open_images(train, settings, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("hold", ["memory", "disk"])
def test_images_travel_as_where_they_come_from(train: ShardSet, tmp_path: Path, hold: str):
    images = open_images(train, config(hold=hold), tmp_path / "cache")
    packed = pickle.dumps(images)
    assert len(packed) < 24 * 3 * 8 * 8 + 4000  # the shards' index, not the pixels beside it
    assert torch.equal(pickle.loads(packed).uint8(EVERY_OTHER), images.uint8(EVERY_OTHER))


def test_a_region_is_cut_where_the_sample_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from test_data_shards import build_listed

    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    data = encode(pixels, "PNG")
    samples = [Sample("a", 0, data, "png", roi=(3, 4, 11, 12)), Sample("b", 1, data, "png")]
    build_listed(monkeypatch, tmp_path / "out", samples)
    opened = ShardSet.open(tmp_path / "out/train")
    cut = DiskImages(opened, 8, crop_roi=True).uint8(np.arange(2))
    whole = DiskImages(opened, 8, crop_roi=False).uint8(np.arange(2))
    assert np.array_equal(cut[0].permute(1, 2, 0).numpy(), pixels[4:12, 3:11])
    assert torch.equal(cut[1], whole[1]) and torch.equal(whole[0], whole[1])


def test_a_full_disk_says_what_to_do_and_leaves_nothing(
    train: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", no_space)
    with pytest.raises(UserError, match=r"No space left on device.*free space or set data.hold=disk"):
        open_images(train, config(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
