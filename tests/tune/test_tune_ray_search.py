"""What Ray Tune pickles of a search, without a Ray."""

from __future__ import annotations

import threading

from ray import cloudpickle

from moe_dist.tune.ray_search import LostRounds
from moe_dist.tune.trials import Round


def test_whoever_is_told_of_lost_rounds_need_not_be_pickled() -> None:
    """A terminal's display has a lock, which cannot be."""
    display = threading.RLock()

    def lost(work: Round, seconds: float) -> None:
        raise AssertionError(f"nothing died: {work}, {display}")

    assert isinstance(cloudpickle.loads(cloudpickle.dumps(LostRounds(lost))), LostRounds)
