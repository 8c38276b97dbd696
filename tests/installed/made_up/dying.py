"""Where a test lets a process die: MADE_UP_DIE=<place>:<count> ends it without a word the count-th time it is there.

Or wait: MADE_UP_WAIT=<seconds>, every time, so that a training lasts until what is tested has happened.
"""

from __future__ import annotations

import os
import time
from collections import Counter

_passed: Counter[str] = Counter()


def here(place: str) -> None:
    """Die or wait if a test wants it."""
    time.sleep(float(os.environ.get("MADE_UP_WAIT", "0")))
    wanted, _, count = os.environ.get("MADE_UP_DIE", "").partition(":")
    _passed[place] += 1
    if place == wanted and _passed[place] == int(count):
        os._exit(9)
