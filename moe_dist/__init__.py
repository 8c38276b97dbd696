"""moe_dist: train, tune and reproduce image mixtures of experts on a Ray cluster, or on one laptop."""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# torch asks the kernel for huge pages (where it gives them on request) when this is set before its first allocation.
# A convolution network's step on a CPU then takes about half the time, with the same numbers to the last bit.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Threads that have nothing to do sleep instead of spinning on a core; OpenMP reads this when torch is loaded. On a busy
# machine a training on two threads otherwise comes to a halt: it waits for threads that wait, spinning, for others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_WHERE = dict.fromkeys(("EDCWRN", "IDEC", "DEC"), "moe_dist.estimators") | {"load": "moe_dist.use.load"}


def __getattr__(name: str) -> Any:
    """The scikit-learn estimators, and `load` for trained models, imported when they are asked for: they need torch."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
