"""Where random crops and centre squares lie: torchvision's own code is the judge, given the same random numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from moe_dist.data.batch import TrainingSet
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop, centre_square, random_region, resized_sides
from moe_dist.data.opened.images import cropped, open_images
from moe_dist.data.order import CROPS, uniform
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Stream
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.vision import torchvision

RATIO = (3 / 4, 4 / 3)
SCALE = (0.08, 1.0)


def torchvisions_region(monkeypatch: pytest.MonkeyPatch, width: int, height: int, draws: np.ndarray) -> tuple:
    """torchvision's RandomResizedCrop.get_params in float64, with `draws` for its random numbers."""
    tries: Iterator[float] = iter(np.stack([draws[:10], draws[10:20]], axis=1).ravel().tolist())
    places = iter([draws[-1], draws[-2]])  # torchvision draws the row first

    def uniform_(low: float, high: float) -> np.float64:
        return np.float64(low + (high - low) * next(tries))

    def randint(low: int, high: int, size: tuple[int]) -> np.int64:
        return np.int64(np.floor(low + (high - low) * next(places)))

    known = SimpleNamespace(log=np.log, exp=np.exp, tensor=np.array, randint=randint)
    known.empty = lambda _: SimpleNamespace(uniform_=uniform_)
    crop = torchvision().transforms.RandomResizedCrop
    with monkeypatch.context() as patched:
        patched.setitem(crop.get_params.__globals__, "torch", known)
        y1, x1, down, across = crop.get_params(Image.new("1", (width, height)), list(SCALE), list(RATIO))
    return x1, y1, x1 + across, y1 + down


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (32, 32), (3, 2), (500, 100), (40, 500), (1, 1)])
def test_a_random_region_is_torchvisions(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]):
    for draws in np.random.default_rng(0).random((200, CROP_DRAWS)):
        expected = torchvisions_region(monkeypatch, *size, draws)
        assert random_region(*size, SCALE, draws.tolist()) == expected


def test_a_region_by_hand():
    """First try: area 100 * 60 * (0.2 + 0.6 * 0.5) = 3000, aspect 1: 54.77 -> 55 square; 46 places across, 6 down."""
    draws = [0.5] * 20 + [0.999, 0.2]
    assert random_region(100, 60, (0.2, 0.8), draws) == (45, 1, 100, 56)


def test_a_try_that_does_not_fit_is_drawn_again():
    """All of 100 x 60 at aspect 1 is 77 pixels high; the second try, a tenth of the area, fits: sqrt(600) = 24.5."""
    draws = [1.0, 0.0, *[0.5] * 8] + [0.5] * 10 + [0.0, 0.0]
    assert random_region(100, 60, (0.1, 1.0), draws) == (0, 0, 24, 24)


def test_crops_have_random_numbers_of_their_own():
    samples = np.arange(5000)
    crops, others = (uniform(3, 1, samples, CROP_DRAWS, purpose=purpose) for purpose in (CROPS, CROPS + np.uint64(1)))
    correlations = np.corrcoef(crops.T, uniform(3, 1, samples, CROP_DRAWS).T)[:CROP_DRAWS, CROP_DRAWS:]
    assert np.abs(correlations).max() < 5 / np.sqrt(5000) and not np.isin(crops, others).any()


def test_a_crop_of_a_region_of_interest_lies_inside_it():
    """As the crop of an image of the region's size, moved by its corner."""
    draws = np.random.default_rng(1).random((50, CROP_DRAWS))
    crop = RandomCrop(SCALE, draws)
    for row in range(50):
        x1, y1, x2, y2 = random_region(30, 20, SCALE, draws[row].tolist())
        assert crop.region(row, (7, 11, 37, 31)) == (x1 + 7, y1 + 11, x2 + 7, y2 + 11)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (401, 400), (48, 48), (20, 999)])
@pytest.mark.parametrize("side", [8, 32, 224])
def test_the_centre_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], side: int):
    short = round(side * 256 / 224)
    expected = torchvision().transforms.Resize(short)(Image.new("L", size)).size
    assert resized_sides(*size, side) == expected
    columns = Image.fromarray(np.tile(np.arange(expected[0], dtype=np.int32), (expected[1], 1)))
    rows = Image.fromarray(np.tile(np.arange(expected[1], dtype=np.int32)[:, None], (1, expected[0])))
    cut = torchvision().transforms.CenterCrop(side)
    x1, y1, x2, y2 = centre_square(*expected, side)
    assert np.array_equal(np.asarray(cut(columns))[0], np.arange(x1, x2))
    assert np.array_equal(np.asarray(cut(rows))[:, 0], np.arange(y1, y2))


def test_an_image_too_thin_for_a_centre_square_is_refused():
    assert resized_sides(640, 10, 8) == (576, 9)
    with pytest.raises(ValueError, match="641 x 10 pixels: too long and thin"):
        resized_sides(641, 10, 8)


def streamed(
    shards: ShardSet, folder: Path, decode: str, rank: int = 0, ranks: int = 1, **settings
) -> dict[int, torch.Tensor]:
    """Every sample's image in the second epoch of a stream that crops."""
    config = DataConfig(image_size=8, decode=decode, mean=(0, 0, 0), std=(1, 1, 1), **settings)
    images = open_images(shards, config, folder)
    whole = TrainingSet(np.arange(len(shards)), shards.labels)
    augment = AugmentConfig(resized_crop=(0.3, 0.9))
    stream = Stream(images, whole, config, seed=5, global_batch=6, rank=rank, ranks=ranks, augment=augment)
    for _ in range(len(stream)):
        stream.advance()
    return {
        sample: image for batch in stream.epoch() for sample, image in zip(batch.samples.tolist(), batch.images * 255)
    }


def test_a_stream_crops_every_image_by_its_own_draws_wherever_it_is_decoded(shards: Path, tmp_path: Path):
    opened = ShardSet.open(shards / "train")
    alone = streamed(opened, tmp_path, "each_time")
    assert sorted(alone) == list(range(len(opened)))
    for sample, image in alone.items():
        draws = uniform(5, 1, np.array([sample]), CROP_DRAWS, purpose=CROPS)[0]
        region = random_region(12, 10, (0.3, 0.9), draws.tolist())
        picture = Image.open(io.BytesIO(opened.read(sample))).convert("RGB")
        expected = picture.crop(region).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(image.numpy() - np.asarray(expected).transpose(2, 0, 1)).max() <= 1.01
    shared = streamed(opened, tmp_path, "each_time", 0, 2, loader_workers=1) | streamed(
        opened, tmp_path, "each_time", 1, 2
    )
    assert all(torch.equal(shared[sample], alone[sample]) for sample in alone)


def test_a_decoded_square_is_cropped_as_an_image_of_its_size(tmp_path: Path, shards: Path):
    pixels = np.random.default_rng(2).integers(0, 256, (4, 3, 16, 16), np.uint8)
    crop = RandomCrop((0.2, 0.8), np.random.default_rng(3).random((4, CROP_DRAWS)))
    found = cropped(torch.from_numpy(pixels), crop)
    for row, image in enumerate(pixels):
        region = random_region(16, 16, (0.2, 0.8), crop.draws[row].tolist())
        picture = Image.fromarray(image.transpose(1, 2, 0)).crop(region).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(found[row].numpy().astype(int) - np.asarray(picture).transpose(2, 0, 1)).max() <= 1
    opened = ShardSet.open(shards / "train")
    decoded = streamed(opened, tmp_path, "once")
    squares = open_images(opened, DataConfig(image_size=8, decode="once"), tmp_path)
    draws = uniform(5, 1, np.arange(24), CROP_DRAWS, purpose=CROPS)
    expected = cropped(squares.uint8(np.arange(24)), RandomCrop((0.3, 0.9), draws))
    for sample in range(24):
        assert torch.allclose(decoded[sample], expected[sample].float(), atol=1e-3)
