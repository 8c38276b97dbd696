"""MixUp and CutMix against torchvision's, on one pair of images at a time; and who is whose partner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from moe_dist.data.augment.augment import MIX_DRAWS, mix
from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.data.order import partner_positions, with_partners
from moe_dist.data.stream.stream import Stream
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.vision import torchvision

v2 = torchvision().transforms.v2
MIXUP, CUTMIX = AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0)
IMAGES = 40


class Pictures:
    """Noise of 9 x 9 pixels in memory; `bad` ones cannot be read."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 9, 9), np.uint8)
        self.pixels[list(bad)] = 0
        self.bad = bad

    def __len__(self) -> int:
        return IMAGES

    def uint8(self, samples: np.ndarray, crop: object = None) -> Tensor:
        return torch.from_numpy(self.pixels[samples])

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return ~np.isin(samples, self.bad)


PICTURES = Pictures()


def pair(side: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(side).integers(0, 256, (2, 3, side, side)).astype(np.float32))


def mixed(images: Tensor, config: AugmentConfig, draws: np.ndarray) -> tuple[Tensor, Tensor]:
    return mix(images, np.array([1, 0]), np.array([True, True]), config, draws)


@pytest.mark.parametrize("side", [9, 32])
@pytest.mark.parametrize("seed", range(8))
def test_mixup_is_torchvisions(side: int, seed: int):
    images, draws = pair(side), np.random.default_rng(seed).random((2, MIX_DRAWS))
    found, share = mixed(images, MIXUP, draws)
    for row in range(2):
        amount = stats.beta.ppf(draws[row, 1], 0.4, 0.4)
        expected = v2.MixUp(num_classes=2).transform(images, {"lam": amount, "labels": None, "batch_size": 2})
        assert torch.allclose(found[row], expected[row], atol=1e-4)
        assert share[row].item() == pytest.approx(amount, abs=1e-6)


@pytest.mark.parametrize("side", [9, 32])
@pytest.mark.parametrize("seed", range(8))
def test_cutmix_is_torchvisions(side: int, seed: int, monkeypatch: pytest.MonkeyPatch):
    images, draws = pair(side), np.random.default_rng(seed).random((2, MIX_DRAWS))
    found, share = mixed(images, CUTMIX, draws)
    for row in range(2):
        with monkeypatch.context() as patch:
            params = torchvisions_cutmix(images, draws[row], patch)
        expected = v2.CutMix(num_classes=2).transform(images, params | {"batch_size": 2, "labels": None})
        assert torch.equal(found[row], expected[row])
        assert share[row].item() == pytest.approx(params["lam_adjusted"], abs=1e-6)


def torchvisions_cutmix(images: Tensor, draws: np.ndarray, patch: pytest.MonkeyPatch) -> dict:
    """The box that torchvision cuts where its random numbers are `draws` [MIX_DRAWS]."""
    transform = v2.CutMix(num_classes=2)
    amount = torch.tensor(stats.beta.ppf(draws[1], 1, 1))
    centre = iter([int(draws[2] * images.shape[-1]), int(draws[3] * images.shape[-1])])
    patch.setattr(transform._dist, "sample", lambda size: amount)
    patch.setattr(torch, "randint", lambda high, size: torch.tensor([next(centre)]))
    return transform.make_params([images])


def test_both_are_taken_with_probability_one_half():
    """The first draw decides: below one half CutMix, whose pixels are all either's own or the partner's."""
    images = pair(32)
    draws = np.array([[0.49, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    found, share = mixed(images, AugmentConfig(mixup=1.0, cutmix=1.0), draws)
    whole = (found[0] == images[0]) | (found[0] == images[1])
    assert whole.all()
    assert torch.allclose(found[1], images.mean(0))
    assert share[1] == 0.5
    assert share[0].item() == 1 - 22**2 / 32**2  # half side: int(0.5 sqrt(0.5) 32) = 11


def test_an_image_with_an_unusable_partner_stays_as_it_is():
    images = pair(9)
    for config in (MIXUP, CUTMIX):
        found, share = mix(images, np.array([1, 0]), np.array([True, False]), config, np.full((2, MIX_DRAWS), 0.3))
        assert torch.equal(found[0], images[0])
        assert share[0] == 1
        assert share[1] < 1


def test_partners_of_a_whole_and_a_last_batch():
    """14 samples in batches of 8: whole, the partner of i is i + 4 round the batch; of the last 6, i + 3 round those;
    the two places of padding are their own partners."""
    assert partner_positions(np.arange(16), 14, 8).tolist() == [
        *(4, 5, 6, 7, 0, 1, 2, 3),
        *(11, 12, 13, 8, 9, 10, 14, 15),
    ]


@given(st.integers(1, 60), st.integers(1, 12))
def test_every_valid_sample_is_a_partner_once_and_nobodys_own(count: int, batch: int):
    places = np.arange(-(-count // batch) * batch)
    partners = partner_positions(places, count, batch)
    assert np.array_equal(np.sort(partners), places)
    assert np.array_equal(partners // batch, places // batch)
    alone = (count % batch == 1) | (batch == 1)
    assert alone or not (partners == places)[:count].any()


def test_partners_beside_their_images():
    further, where = with_partners(np.array([1, 3, 5]), np.array([4, 3, 0]))
    assert further.tolist() == [0, 4]
    assert where.tolist() == [4, 1, 3]


def batches(ranks: int, config: AugmentConfig, pictures: Pictures = PICTURES, samples: int = 31) -> list[Batch]:
    """The global batches of 12 of one epoch, put together from all ranks' shares."""
    numbers = np.arange(samples)
    streams = [
        Stream(
            pictures,
            TrainingSet(numbers, numbers % 7),
            DataConfig(image_size=9),
            seed=3,
            global_batch=12,
            rank=rank,
            ranks=ranks,
            augment=config,
        )
        for rank in range(ranks)
    ]
    return [together(shares) for shares in zip(*(rank.epoch() for rank in streams))]


def together(shares: tuple[Batch, ...]) -> Batch:
    def interleaved(name: str) -> Any:
        if getattr(shares[0], name) is None:
            return None
        return torch.stack([getattr(share, name) for share in shares], dim=1).flatten(0, 1)

    whole = Batch(**{name: interleaved(name) for name in ("images", "labels", "samples", "weight", "partner", "share")})
    whole.weight /= len(shares)
    return whole


def part(batch: Batch) -> Tensor:
    """Each image's own share, of a batch that is mixed."""
    assert batch.share is not None
    return batch.share


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 12])
@pytest.mark.parametrize(
    "config", [AugmentConfig(mixup=0.4, cutmix=1.0, policy="randaugment"), AugmentConfig(mixup=1.0, flip=True)]
)
def test_any_number_of_ranks_mixes_the_same(ranks: int, config: AugmentConfig):
    for found, expected in zip(batches(ranks, config), batches(1, config), strict=True):
        valid = expected.weight > 0
        for name in ("images", "labels", "samples", "partner", "share"):
            assert torch.equal(getattr(found, name)[valid], getattr(expected, name)[valid]), name
        assert torch.allclose(found.weight, expected.weight)


def test_the_stream_mixes_each_image_with_its_partner():
    """Recomputed from the batches without mixing: half a batch of 12 further on, 6; of the last 7 samples, 3."""
    for batch, alone in zip(batches(1, MIXUP), batches(1, AugmentConfig()), strict=True):
        valid = int((batch.weight > 0).sum())
        partner = (torch.arange(valid) + valid // 2) % valid
        share = part(batch)[:valid].view(-1, 1, 1, 1)
        expected = share * alone.images[:valid] + (1 - share) * alone.images[partner]
        assert torch.allclose(batch.images[:valid], expected, atol=1e-5)
        assert batch.partner is not None
        assert torch.equal(batch.partner[:valid], alone.labels[partner])
        assert len(share.unique()) > 1


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_bad_sample_is_mixed_into_no_other(ranks: int):
    """24 samples, two whole batches: the image half a batch before the bad one has the pixels it has without mixing."""
    pictures = Pictures(bad=(5,))
    mixed_up, alone = (batches(ranks, config, pictures, samples=24) for config in (MIXUP, AugmentConfig()))
    number = next(number for number, batch in enumerate(alone) if 5 in batch.samples)
    batch, plain = mixed_up[number], alone[number]
    place = batch.samples.tolist().index(5)
    host = (place + 6) % 12
    assert batch.weight[place] == 0
    assert torch.equal(batch.images[host], plain.images[host])
    assert [index for index in range(12) if part(batch)[index] == 1] == [host]


def test_the_loss_counts_both_labels_by_their_shares():
    """Two samples of weight 1/2: 0.25 * 1 + 0.75 * 3 = 2.5 and 1 * 2 + 0 * 1 = 2; mean 2.25."""
    batch = Batch(
        torch.zeros(2, 3, 1, 1),
        labels=torch.tensor([1, 2]),
        samples=torch.arange(2),
        weight=torch.full((2,), 0.5),
        partner=torch.tensor([3, 1]),
        share=torch.tensor([0.25, 1.0]),
    )
    assert batch.mean_over_labels(lambda labels: labels.float()) == 2.25
    halves = batch.micro_batches(2)
    assert sum(half.mean_over_labels(lambda labels: labels.float()) for half in halves) == 2.25
    plain = Batch(batch.images, batch.labels, batch.samples, batch.weight)
    assert plain.mean_over_labels(lambda labels: labels.float()) == 1.5
