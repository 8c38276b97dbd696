"""Long tails: sizes worked by hand, and the public recipes as the judge of which images are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_dist.data.longtail import LongTail, imbalance_factor, kept_numbers, profile, shot_groups


def released_choice(labels: np.ndarray, sizes: list[int], seed: int) -> set[int]:
    """What the released long-tailed CIFAR keeps: NumPy seeded once, then each class's images shuffled in turn."""
    np.random.seed(seed)
    kept: set[int] = set()
    for label, size in enumerate(sizes):
        images = np.where(labels == label)[0]
        np.random.shuffle(images)
        kept |= set(images[:size].tolist())
    return kept


def test_the_profile_of_a_hand_worked_case():
    """Three classes of 100 at imbalance 100: 100, 100 / 10 and 100 / 100."""
    assert profile(100, 100, 3).tolist() == [100, 10, 1]


@pytest.mark.parametrize(("imbalance", "images"), [(100, 10_847), (50, 12_608), (10, 19_573)])
def test_the_published_sizes_of_cifar_100(imbalance: int, images: int):
    assert profile(500, imbalance, 100).sum() == images


@pytest.mark.parametrize(("imbalance", "images"), [(100, 12_406), (50, 13_996), (10, 20_431)])
def test_the_published_sizes_of_cifar_10(imbalance: int, images: int):
    assert profile(5_000, imbalance, 10).sum() == images


def test_first_keeps_the_first_images_of_every_class_in_their_order():
    """Classes 1 0 1 0 1 0 1 0, four each, at imbalance 2: all of class 0, the first two of class 1."""
    assert kept_numbers(np.array([1, 0] * 4), 2, LongTail(2)).tolist() == [0, 1, 2, 3, 5, 7]


@pytest.mark.parametrize("seed", [0, 7])
def test_random_keeps_what_the_released_sets_keep(seed: int):
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(5), 40))
    kept = kept_numbers(labels, 5, LongTail(10, "random", seed))
    assert set(kept.tolist()) == released_choice(labels, [40, 22, 12, 7, 4], seed)
    assert (np.diff(kept) > 0).all()


def test_auto_is_first_of_a_shuffled_order_and_random_of_any_other():
    assert LongTail(10, "auto", 3).decided(shuffled=True) == LongTail(10, "first", 3)
    assert LongTail(10, "auto", 3).decided(shuffled=False) == LongTail(10, "random", 3)
    for choice in (LongTail(10, "first"), LongTail(10, "random", 1)):
        assert choice.decided(shuffled=True) == choice.decided(shuffled=False) == choice


def test_random_differs_with_the_seed_and_from_first():
    labels = np.repeat(np.arange(4), 50)
    choices = [LongTail(10), LongTail(10, "random", 0), LongTail(10, "random", 1)]
    assert len({tuple(kept_numbers(labels, 4, choice).tolist()) for choice in choices}) == 3


@given(st.integers(2, 30), st.integers(1, 60), st.floats(1, 60), st.sampled_from(["first", "random"]))
def test_any_long_tail_of_a_balanced_set_has_its_profile(classes: int, largest: int, imbalance: float, choice):
    labels = np.tile(np.arange(classes), largest)
    if imbalance > largest:
        with pytest.raises(ValueError, match="keeps no image"):
            kept_numbers(labels, classes, LongTail(imbalance, choice))
        return
    kept = kept_numbers(labels, classes, LongTail(imbalance, choice))
    counts = np.bincount(labels[kept], minlength=classes)
    assert counts[0] == largest and (np.diff(counts) <= 0).all()
    assert counts[-1] == int(largest * (1 / imbalance))


@pytest.mark.parametrize(
    ("labels", "long_tail", "reason"),
    [
        ([0] * 10, LongTail(2), "two classes or more, got 1"),
        ([0, 1], LongTail(0.5), "1 or more, got 0.5"),
        ([0, 1], LongTail(float("nan")), "1 or more, got nan"),
        (
            [0] * 10 + [1] * 9,
            LongTail(1),
            "class 1 has 9 images, a long tail of imbalance 1 asks for 10.* a larger",
        ),
        ([0] * 9 + [1] * 10, LongTail(2), "class 0 has 9 images.*largest class, 1, has 10.* even them out first"),
        ([0] * 10 + [1] * 9, LongTail(11), "last class keeps no image, as the largest has 10; choose 10 or less"),
    ],
)
def test_an_impossible_long_tail_says_why(labels: list[int], long_tail: LongTail, reason: str):
    with pytest.raises(ValueError, match=reason):
        kept_numbers(np.array(labels), max(labels) + 1, long_tail)


def test_shot_groups_at_their_bounds():
    """More than 100 is many, 100 and 20 are medium, 19 is few."""
    groups = shot_groups(np.array([101, 100, 20, 19, 0]))
    assert {name: numbers.tolist() for name, numbers in groups.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3, 4],
    }


def test_the_imbalance_factor():
    assert imbalance_factor(np.array([50, 10, 25])) == 5
    assert imbalance_factor(np.array([50, 0])) == float("inf")
