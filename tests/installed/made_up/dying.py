"""Where a test lets a process die: MADE_UP_DIE=<place>:<count> ends it without a word the count-th time it is there."""

from __future__ import annotations

import os
from collections import Counter

_passed: Counter[str] = Counter()


def here(place: str) -> None:
    """Die if a test wants it."""
    wanted, _, count = os.environ.get("MADE_UP_DIE", "").partition(":")
    _passed[place] += 1
    if place == wanted and _passed[place] == int(count):
        os._exit(9)
