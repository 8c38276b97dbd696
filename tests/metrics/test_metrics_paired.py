"""Paired differences against scipy, and McNemar's test against counts that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moe_dist.metrics.paired import mcnemar, paired_over_seeds

OURS, THEIRS = [0.2795, 0.2936, 0.3003], [0.2688, 0.2671, 0.2514]


def test_the_interval_and_p_of_three_seeds_are_scipys() -> None:
    found = paired_over_seeds(OURS, THEIRS)
    expected = stats.ttest_rel(OURS, THEIRS)
    interval = expected.confidence_interval(0.95)
    assert found.interval is not None
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    # differences 0.0107, 0.0265, 0.0489: their mean is 0.0861 / 3
    assert found.mean == pytest.approx(0.0287, abs=1e-12)


def test_a_hand_made_interval() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.30265, so 2 +- 4.30265 / sqrt(3)."""
    found = paired_over_seeds([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_one_seed_has_no_interval_and_equal_differences_no_p() -> None:
    assert paired_over_seeds([0.5], [0.25]) == (0.25, None, None)
    assert paired_over_seeds([0.5, 0.75], [0.25, 0.5]) == (0.25, (0.25, 0.25), None)


def test_mcnemar_counts_the_images_that_one_alone_gets_right() -> None:
    """Ours alone on 7 images, theirs alone on 1, both on 2: of 8 fair coins 0, 1, 7 or 8 heads come in 18 of 256."""
    ours = np.array([True] * 7 + [False] + [True] * 2)
    theirs = np.array([False] * 7 + [True] + [True] * 2)
    assert mcnemar(ours, theirs) == (pytest.approx(0.6), None, pytest.approx(18 / 256))
    assert mcnemar(theirs, ours) == (pytest.approx(-0.6), None, pytest.approx(18 / 256))
    assert mcnemar(ours, ours) == (0.0, None, 1.0)
