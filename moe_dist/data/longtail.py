"""Long-tailed forms of a balanced set, and numbers that describe a set's balance: pure arithmetic on labels.

Letters: N images of a set, C classes; n_c images of class c. The imbalance factor is the largest n_c over the smallest.
Only NumPy is imported here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

MANY_ABOVE = 100
FEW_BELOW = 20
"""Training images of a class: more than 100 are many, fewer than 20 few, the rest medium (Liu et al. 2019)."""
UNLABELLED = -1
"""Instead of a class: the label of an image of the training set that has none."""


@dataclass(frozen=True)
class LongTail:
    """A long-tailed form: its imbalance factor, and which images a class keeps.

    choice: "first" keeps a class's first images; "random" shuffles each class in turn with NumPy's legacy generator,
    seeded once with `seed` (the recipe of Cao et al. 2019, whose released sets are those of seed 0); "auto" is one of
    the two, by the set's own order (`decided`).
    """

    imbalance: float
    choice: Literal["auto", "first", "random"] = "first"
    seed: int = 0

    def decided(self, shuffled: bool) -> LongTail:
        """The same with "auto" decided: "first" for a set whose own order is known to be shuffled, else "random".

        First images by name are no draw: names carry where an image was found, or when it was taken.
        """
        return replace(self, choice="first" if shuffled else "random") if self.choice == "auto" else self


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """The number of images [C] of each class, given labels [N], of which some may be UNLABELLED."""
    return np.bincount(labels[labels != UNLABELLED], minlength=classes)


def imbalance_factor(counts: np.ndarray) -> float:
    """Images of the largest class over those of the smallest; infinite where a class has none."""
    return float(counts.max() / counts.min()) if counts.min() else math.inf


def shot_groups(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The classes of the "many", "medium" and "few" groups, from the number of training images [C] of every class."""
    many, few = counts > MANY_ABOVE, counts < FEW_BELOW
    return {
        "many": np.flatnonzero(many),
        "medium": np.flatnonzero(~many & ~few),
        "few": np.flatnonzero(few),
    }


def largest_first(counts: np.ndarray) -> np.ndarray:
    """The classes [C] by their number of training images [C], the largest first; equal ones keep their order."""
    return np.argsort(-counts, kind="stable")


def profile(largest: int, imbalance: float, classes: int) -> np.ndarray:
    """The exponential profile [C] int64: class c keeps int(largest * (1 / imbalance)^(c / (C - 1))) images.

    Raises ValueError for fewer than two classes, an imbalance below 1, or a class that would keep no image.
    """
    if classes < 2:
        raise ValueError(f"a long tail needs two classes or more, got {classes}")
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"an imbalance factor is 1 or more, got {imbalance:g}")
    sizes = np.array([int(largest * (1 / imbalance) ** (c / (classes - 1))) for c in range(classes)], np.int64)
    if not sizes[-1]:
        raise ValueError(
            f"at imbalance {imbalance:g} the last class keeps no image, as the largest has {largest}; "
            f"choose {largest} or less"
        )
    return sizes


def kept_numbers(labels: np.ndarray, classes: int, long_tail: LongTail) -> np.ndarray:
    """The images, in ascending order, that the long-tailed form keeps of a set with labels [N].

    Raises ValueError as `profile` does, where a class has fewer images than the profile asks for, and where an image
    has no label.
    """
    assert long_tail.choice != "auto", "it is decided by who knows the set's order"
    if (labels == UNLABELLED).any():
        raise ValueError(
            "images without a label cannot be cut to a long tail; leave out the imbalance, or these images"
        )
    counts = np.bincount(labels, minlength=classes)
    sizes = profile(int(counts.max()), long_tail.imbalance, classes)
    if (short := np.flatnonzero(counts < sizes)).size:
        label, largest = int(short[0]), int(counts.argmax())
        # The first class keeps as many as the largest has, whatever the imbalance.
        way_out = "choose a larger imbalance" if label else "it is cut from classes of equal size: even them out first"
        raise ValueError(
            f"class {label} has {counts[label]} images, a long tail of imbalance {long_tail.imbalance:g} asks for "
            f"{sizes[label]}, as the largest class, {largest}, has {counts[largest]}; {way_out}"
        )
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    random = np.random.RandomState(long_tail.seed)  # its stream is frozen, a Generator's is not
    if long_tail.choice == "random":
        for numbers in by_class:
            random.shuffle(numbers)
    return np.sort(np.concatenate([numbers[:size] for numbers, size in zip(by_class, sizes)]))


def spaced(values: np.ndarray, number: int) -> np.ndarray:
    """At most `number` of `values`, equally spaced, with the first and the last."""
    return values[np.unique(np.linspace(0, len(values) - 1, number).round().astype(int))]
