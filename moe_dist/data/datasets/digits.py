"""scikit-learn's digits: 1,797 real scans of handwritten digits, 8 x 8 pixels; no download."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from moe_dist.data.datasets.pixels import encode_png, encoder_version
from moe_dist.data.datasets.samples import Sample
from moe_dist.data.order import divide
from moe_dist.errors import UserError

_TEST_FRACTION = 0.2
_TEST_SEED = 1797
"""The test split is part of the dataset and the same in every job, whatever the job's seed."""
_LARGEST_PIXEL = 16


class Digits:
    """The digits with a fixed stratified test split of one fifth."""

    class_names = tuple(str(digit) for digit in range(10))
    superclasses = None
    shuffled = False

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        self._pixels = np.round(digits.images * (255 / _LARGEST_PIXEL)).astype(np.uint8)
        self._labels = digits.target.astype(np.int64)
        groups = np.full(len(self._labels), -1)
        train, test = divide(self._labels, groups, _TEST_FRACTION, _TEST_SEED)
        self._numbers = {"train": train, "test": test}
        self.counts = {name: len(numbers) for name, numbers in self._numbers.items()}

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return self._labels[self._numbers[split]]

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`, a grey PNG."""
        digit = int(self._numbers[split][number])
        key = f"{digit:04d}"
        return Sample(key, int(self._labels[digit]), encode_png(self._pixels[digit]), "png", origin=f"digits {key}")


def open_digits(source: Path | None) -> Digits:
    """The digits, which come with scikit-learn. Raises UserError where a source is given."""
    if source is not None:
        raise UserError(f"dataset digits is embedded and reads no source; leave data.source out, got {source}")
    return Digits()


def digits_version() -> str:
    """The versions on which the digits' bytes depend: of the package they come with and of the encoder."""
    return f"{version('scikit-learn')} {encoder_version()}"
