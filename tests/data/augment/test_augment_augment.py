"""Augmentation against a slow reference: one image at a time, with SciPy's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from moe_dist.data.augment.augment import DRAWS, GREY, augment, normalise
from moe_dist.settings.augment import AugmentConfig

EVERYTHING = AugmentConfig(
    shift=0.1, rotate=20, zoom=0.2, flip=True, brightness=0.3, contrast=0.3, cutout=0.3, pad_crop=3
)
CIFAR = AugmentConfig(pad_crop=4, flip=True, policy="autoaugment_cifar10", cutout=0.5)


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8))


def numbers(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, DRAWS))


def reference(image: np.ndarray, config: AugmentConfig, draws: np.ndarray) -> np.ndarray:
    """One image [3, S, S] changed as AugmentConfig's words say, in float64; draws: x, y, angle, zoom, flip, ..."""
    side = image.shape[-1]
    spread = 2 * draws - 1
    padded = np.pad(image, ((0, 0), (config.pad_crop,) * 2, (config.pad_crop,) * 2))
    left, top = (int(draws[k] * (2 * config.pad_crop + 1)) for k in (9, 10))
    image = padded[:, top : top + side, left : left + side]
    mean = image.mean()
    changed = image.astype(np.float64)
    if config.flip and draws[4] < 0.5:
        changed = changed[:, :, ::-1]
    angle, zoom = np.deg2rad(spread[2] * config.rotate), 1 + spread[3] * config.zoom
    shift = np.array([spread[1], spread[0]]) * config.shift * side  # (rows, columns)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom  # (rows, columns)
    centre = np.full(2, (side - 1) / 2)
    offset = centre - turn @ (centre + shift)
    changed = np.stack(
        [ndimage.affine_transform(channel, turn, offset, order=1, mode="nearest") for channel in changed]
    )
    changed = np.clip(changed * (1 + spread[5] * config.brightness), 0, 255)
    factor = 1 + spread[6] * config.contrast
    changed = np.clip((changed - mean) * factor + mean, 0, 255)
    length = round(config.cutout * side)
    column, row = (int(draws[k] * side) - length // 2 for k in (7, 8))
    changed[:, max(row, 0) : max(row + length, 0), max(column, 0) : max(column + length, 0)] = GREY
    return changed


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(shift=0.25),
        AugmentConfig(rotate=90),
        AugmentConfig(zoom=0.5),
        AugmentConfig(flip=True),
        AugmentConfig(pad_crop=4),
        AugmentConfig(pad_crop=20),
        AugmentConfig(pad_crop=2, flip=True),
        AugmentConfig(brightness=1),
        AugmentConfig(contrast=1),
        AugmentConfig(cutout=0.5),
        EVERYTHING,
    ],
    ids=lambda config: "-".join(name for name, value in config if value),
)
@pytest.mark.parametrize("side", [15, 16])
def test_every_change_is_the_references(config: AugmentConfig, side: int):
    """float32 grids are exact to about S 2^-23; times a step of 255 between neighbours, 1e-2 of a grey level."""
    images, draws = pictures(6, side), numbers(6)
    changed = augment(images, config, draws).numpy()
    expected = np.stack([reference(image, config, row) for image, row in zip(images.numpy(), draws)])
    assert np.abs(changed - expected).max() < 1e-2


def test_nothing_switched_on_changes_nothing():
    images = pictures(3, 8)
    assert torch.equal(augment(images, AugmentConfig(), numbers(3)), images.float())


def test_a_whole_pixel_shift_moves_right_and_down_and_repeats_the_border():
    """S = 4, shift 0.25: a draw near 1 moves by one pixel. [0 1 2 3] becomes [0 0 1 2] along both axes."""
    rows = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 3, 4, 4)
    draws = np.full((1, DRAWS), 0.5)
    draws[0, 0] = draws[0, 1] = 1 - 1e-12
    config = AugmentConfig(shift=0.25)
    down = augment(rows.contiguous(), config, draws)
    right = augment(rows.transpose(2, 3).contiguous(), config, draws)
    assert torch.allclose(down[0, 0, :, 2], torch.tensor([0.0, 0, 1, 2]), atol=1e-5)
    assert torch.allclose(right[0, 0, 2, :], torch.tensor([0.0, 0, 1, 2]), atol=1e-5)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=40),
    st.sampled_from([9, 32]),
    st.sampled_from([EVERYTHING, CIFAR]),
)
def test_an_image_does_not_depend_on_its_batch(rows: list[int], side: int, config: AugmentConfig):
    images, draws = pictures(40, side), numbers(40)
    together = augment(images, config, draws)
    assert torch.equal(augment(images[rows], config, draws[rows]), together[rows])


def test_the_recipe_for_cifar_is_its_parts_in_order():
    """Each change alone, by the same random numbers: none takes numbers from another."""
    images, draws = pictures(30, 32), numbers(30)
    step = images
    for part in (AugmentConfig(pad_crop=4), AugmentConfig(flip=True), AugmentConfig(policy="autoaugment_cifar10")):
        step = augment(step, part, draws).to(torch.uint8)
    assert torch.equal(augment(images, CIFAR, draws), augment(step, AugmentConfig(cutout=0.5), draws))


def test_a_crop_of_the_padded_image_may_be_any():
    """S = 2 and one black pixel around: 3 x 3 corners, told by where the pixel 9 at the upper left goes, or that it has
    gone, as from 5 of them. Over 900 images each comes 100 times, give or take 5 standard deviations (9.4)."""
    images = torch.tensor([[9, 0], [0, 0]], dtype=torch.uint8).expand(900, 3, 2, 2).contiguous()
    cropped = augment(images, AugmentConfig(pad_crop=1), numbers(900))[:, 0].flatten(1)
    places, counts = cropped.unique(dim=0, return_counts=True)
    assert places.tolist() == [[0, 0, 0, 0], [0, 0, 0, 9], [0, 0, 9, 0], [0, 9, 0, 0], [9, 0, 0, 0]]
    assert (counts - torch.tensor([500, 100, 100, 100, 100])).abs().max() < 50


def test_the_given_images_are_left_as_they_were():
    images = pictures(4, 8)
    before = images.clone()
    augment(images, EVERYTHING, numbers(4))
    normalise(images, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(images, before)
    floats = images.float()
    normalise(floats, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(floats, before.float())


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_normalised_pixels_are_what_the_config_says(kind: torch.dtype):
    images = pictures(2, 5)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    column = np.array([mean, std])[:, None, :, None, None]
    expected = (images.numpy().astype(np.float64) / 255 - column[0]) / column[1]
    found = normalise(images.to(kind), mean, std)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_what_is_cut_out_is_grey_or_black_at_the_same_place():
    """After normalisation by mean and deviation 0.5, grey is 0 and black -1."""
    images, draws = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8), np.random.default_rng(0).random((3, DRAWS))
    grey = augment(images, AugmentConfig(cutout=0.5), draws)
    black = augment(images, AugmentConfig(cutout=0.5, cutout_fill="black"), draws)
    assert torch.equal(grey == 127.5, black == 0) and (black == 0).any()
    assert torch.equal(grey[grey != 127.5], black[black != 0])
    half = (0.5, 0.5, 0.5)
    assert normalise(black, half, half).unique().tolist() == pytest.approx([-1.0, 200 / 127.5 - 1])
