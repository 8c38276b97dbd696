"""Policies on batches against torchvision, one image and one operation at a time, by the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_dist.data.augment.policies import FILL, POLICY_DRAWS, apply_policy
from moe_dist.settings.augment import AugmentConfig
from moe_dist.vision import torchvision

v2 = torchvision().transforms.v2
CIFAR10 = AugmentConfig(policy="autoaugment_cifar10")
IMAGENET = AugmentConfig(policy="autoaugment_imagenet")
RANDAUGMENT = AugmentConfig(policy="randaugment")
CONFIGS = [
    CIFAR10,
    IMAGENET,
    RANDAUGMENT,
    AugmentConfig(policy="randaugment", randaugment_operations=8, randaugment_magnitude=30),
    AugmentConfig(policy="randaugment", randaugment_operations=1, randaugment_magnitude=0),
]


def pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise, and smooth pictures of few levels: what equalisation and contrast treat differently."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, 3, side, side), np.uint8)
    noise[1::3] = noise[1::3, :, :1] // 16 + 90
    noise[2::3] = random.integers(0, 256, (len(noise[2::3]), 3, 1, 1))
    return torch.from_numpy(noise)


def numbers(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, POLICY_DRAWS))


class Torchvision:
    """torchvision's own policies on one image, asking `draws` where torchvision asks torch's generator."""

    def __init__(self, config: AugmentConfig) -> None:
        self.operations, self.magnitude = config.randaugment_operations, config.randaugment_magnitude
        if config.policy == "randaugment":
            self.policy = v2.RandAugment(self.operations, self.magnitude, fill=FILL)
        else:
            dataset = "CIFAR10" if config.policy == "autoaugment_cifar10" else "IMAGENET"
            self.policy = v2.AutoAugment(v2.AutoAugmentPolicy[dataset], fill=FILL)

    def __call__(self, image: torch.Tensor, draws: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
        """`image` [3, S, S] uint8 after torchvision's forward pass."""
        answers = self._answers(draws)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size: torch.tensor(next(answers)))
            patch.setattr(torch, "rand", lambda size: torch.tensor(next(answers), dtype=torch.float64))
            return self.policy(image)

    def _answers(self, draws: np.ndarray):
        """What each call is answered, in torchvision's order of asking."""
        space = self.policy._AUGMENTATION_SPACE
        if isinstance(self.policy, v2.RandAugment):
            for operation in range(self.operations):
                yield (chosen := int(draws[1 + 2 * operation] * len(space)))
                if list(space.values())[chosen][1]:
                    yield draws[2 + 2 * operation]
            return
        yield (row := int(draws[0] * 25))
        for operation, (name, chance, _) in enumerate(self.policy._policies[row]):
            yield draws[1 + 2 * operation]
            if draws[1 + 2 * operation] <= chance and space[name][1]:
                yield draws[2 + 2 * operation]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.policy}-{config.randaugment_operations}")
@pytest.mark.parametrize("side", [32, 33])
def test_an_image_gets_the_very_pixels_torchvision_gives_it(config, side, monkeypatch):
    images, draws = pictures(300, side), numbers(300)
    torchvisions = Torchvision(config)
    expected = torch.stack([torchvisions(image, row, monkeypatch) for image, row in zip(images, draws)])
    assert torch.equal(apply_policy(images, config, draws), expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config.policy)
def test_large_images_too(config, monkeypatch):
    images, draws = pictures(60, 224), numbers(60)
    torchvisions = Torchvision(config)
    expected = torch.stack([torchvisions(image, row, monkeypatch) for image, row in zip(images, draws)])
    assert torch.equal(apply_policy(images, config, draws), expected)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=40), st.sampled_from(CONFIGS[:3]))
def test_an_image_does_not_depend_on_its_batch(rows, config):
    images, draws = pictures(40, 32), numbers(40)
    together = apply_policy(images, config, draws)
    assert torch.equal(apply_policy(images[rows], config, draws[rows]), together[rows])


def test_the_given_images_are_left_as_they_were():
    images = pictures(50, 16)
    before = images.clone()
    apply_policy(images, CIFAR10, numbers(50))
    assert torch.equal(images, before)


def test_a_sub_policy_worked_by_hand():
    """Row 3 of 25 is (ShearY 0.5 8), (TranslateY 0.7 9); draws 0.6 and 0.65: the first is left out. S = 32, the
    largest of 10 steps: int(150 / 331 * 32) = 14 rows, upwards for the sign's draw of 0.1."""
    image = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(1, 3, 32, 32).contiguous()
    draws = np.zeros((1, POLICY_DRAWS))
    draws[0, :5] = 3.5 / 25, 0.6, 0.9, 0.65, 0.1
    rows = apply_policy(image, CIFAR10, draws)[0, 0, :, 0]
    assert rows.tolist() == [*range(14, 32), *[FILL] * 14]


def test_every_operation_of_randaugment_comes_as_often_as_the_others():
    """14 operations on 14,000 copies of a picture on which all differ: 5 without a sign, 1000 times each give or take 5
    standard deviations (30), and 9 with, 500 times for either sign (22)."""
    config = AugmentConfig(policy="randaugment", randaugment_operations=1)
    picture = torch.from_numpy(np.random.default_rng(3).integers(30, 220, (1, 3, 16, 16)).astype(np.uint8))
    changed = apply_policy(picture.expand(14_000, -1, -1, -1), config, numbers(14_000))
    counts = np.sort(changed.flatten(1).unique(dim=0, return_counts=True)[1].numpy())
    assert len(counts) == 18 + 5
    assert np.abs(counts[:18] - 500).max() < 110
    assert np.abs(counts[18:] - 1000).max() < 150


def test_torchvision_has_the_private_names_that_policies_are_read_from():
    """Whoever finds one gone reads here what it was."""
    (sub_policy, *_) = v2.AutoAugment()._policies
    assert [len(step) for step in sub_policy] == [3, 3], "_policies: sub-policies of two (name, chance, level)"
    space = v2.RandAugment()._AUGMENTATION_SPACE
    magnitudes, signed = space["Rotate"]
    assert signed and len(magnitudes(31, 32, 32)) == 31, "_AUGMENTATION_SPACE: name -> (magnitudes(bins, H, W), signed)"
    image = pictures(1, 8)
    nearest = v2.InterpolationMode.NEAREST
    apply = v2.RandAugment()._apply_image_or_video_transform
    changed = apply(image, "Invert", 0.0, nearest, {torch.Tensor: float(FILL)})
    assert torch.equal(changed, 255 - image), (
        "_apply_image_or_video_transform(image, name, magnitude, interpolation, fill)"
    )
