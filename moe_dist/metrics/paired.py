"""Differences of two models that were run on the same seeds, or that predict the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from moe_dist.metrics.classification import Interval, mean_interval


class Paired(NamedTuple):
    """Ours minus theirs, its 95 % interval where there is one, and the p value of no difference."""

    mean: float
    interval: Interval | None
    p: float | None


def paired_over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """The mean difference over seeds, tested by Student's paired t; ours and theirs are in the seeds' order.

    One seed has neither interval nor p; equal differences have no p, as there is no spread to test against.
    """
    assert len(ours) == len(theirs) > 0
    differences = [our - their for our, their in zip(ours, theirs)]
    if len(differences) == 1:
        return Paired(differences[0], None, None)
    mean, interval = mean_interval(differences)
    spread = float(np.std(differences, ddof=1))
    if spread == 0:
        return Paired(mean, interval, None)
    t = mean / (spread / np.sqrt(len(differences)))
    return Paired(mean, interval, float(2 * stats.t.sf(abs(t), len(differences) - 1)))


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> Paired:
    """The difference in accuracy on N test images and McNemar's exact p value; ours and theirs [N] say which are right.

    Only the images that one of the two gets right count: where both are as good, either is right on half of them.
    """
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == bool and len(ours)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    mean = (only_ours - only_theirs) / len(ours)
    if only_ours + only_theirs == 0:
        return Paired(mean, None, 1.0)
    return Paired(mean, None, float(stats.binomtest(only_ours, only_ours + only_theirs).pvalue))
