"""Splits used as one, and images with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_dist.data.opened.changed import JoinedImages, NoisyImages, with_noise
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.settings.data import DataConfig, NoiseConfig


class Flat:
    """Images of one grey level each: image i of level i."""

    def uint8(self, samples: np.ndarray, crop: object = None) -> torch.Tensor:
        return torch.from_numpy(np.asarray(samples, np.uint8))[:, None, None, None].expand(-1, 3, 64, 64).clone()

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return np.asarray(samples) != 3


def opened(folder: Path, **changes: object) -> OpenedData:
    config = DataConfig.model_validate({"dataset": "digits", "image_size": 8, "val_fraction": 0} | changes)
    return open_data(config, 0, folder, ensure_shards(config, folder))


def test_all_images_are_trained_on_and_tested(tmp_path: Path) -> None:
    split, whole, test = (opened(tmp_path, use=use) for use in ("split", "all", "test"))
    assert len(whole.train_samples) == len(whole.test_samples) == 1797 == whole.info.train_images
    assert np.array_equal(np.append(split.train.labels, split.test.labels), whole.train.labels)
    asked = np.array([1700, 3, 1438, 1437])
    found = whole.train.images.uint8(asked)
    assert torch.equal(found[[0, 2]], split.test.images.uint8(np.array([262, 0])))
    assert torch.equal(found[[1, 3]], split.train.images.uint8(np.array([3, 1437])))
    assert len(test.train_samples) == 359 and torch.equal(
        test.train.images.uint8(asked[1:2]), split.test.images.uint8(asked[1:2])
    )
    assert len({data.digests["train"] for data in (split, whole, test)}) == 3


def test_joined_images_know_which_are_readable() -> None:
    joined = JoinedImages([Flat(), Flat()], [5, 6])
    assert len(joined) == 11 and joined.uint8(np.array([7, 4]))[:, 0, 0, 0].tolist() == [2, 4]
    assert joined.readable(np.array([3, 4, 8, 9])).tolist() == [False, True, False, True]
    assert joined.uint8(np.array([], np.int64)).shape[0] == 0


@pytest.mark.parametrize(("kind", "amount"), [("gaussian", 0.01), ("speckle", 0.04), ("salt_pepper", 0.2)])
def test_noise_is_of_its_amount_and_the_same_each_time(kind: str, amount: float) -> None:
    """128 of 255 is a share p = 0.502. 4,096 pixels: a variance is within 10 % of its value, four standard errors."""
    noisy = with_noise(Flat(), NoiseConfig.model_validate({"kind": kind, "amount": amount}), 0)
    image = noisy.uint8(np.array([128, 7, 128]))
    assert torch.equal(image[0], image[2]) and torch.equal(image[0], noisy.uint8(np.array([128]))[0])
    assert torch.equal(image[0, 0], image[0, 2])
    shares = image[0, 0].double() / 255
    if kind == "salt_pepper":
        changed = image[0, 0] != 128
        assert changed.double().mean().item() == pytest.approx(0.2, abs=0.025)
        assert set(image[0, 0][changed].tolist()) == {0, 255}
    else:
        expected = amount if kind == "gaussian" else amount * (128 / 255) ** 2
        assert shares.var().item() == pytest.approx(expected, rel=0.1)
    other = NoisyImages(Flat(), NoiseConfig.model_validate({"kind": kind, "amount": amount}), 1)
    assert not torch.equal(other.uint8(np.array([128])), image[:1])


def test_noise_is_a_part_of_what_a_job_trains_on(tmp_path: Path) -> None:
    clean = opened(tmp_path, use="all")
    noisy = opened(tmp_path, use="all", noise={"kind": "gaussian", "amount": 0.03})
    samples = np.array([5, 1500])
    assert not torch.equal(clean.train.images.uint8(samples), noisy.train.images.uint8(samples))
