"""What trains trials in a worker: the interface of expert_trials.py and method_trials.py, and how failures are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from moe_dist.errors import DiskError, UserError
from moe_dist.tune.trials import Outcome, Round

REASON_CHARACTERS = 300


class Backend(Protocol):
    """Trains trials. It lives in a worker and keeps its data open from round to round."""

    def run(self, work: Round) -> list[list[Outcome]]:
        """The outcomes of each batch, in the order of its trials; an error in a trial becomes its outcome."""


OpenBackend = Callable[[Any, Any], Backend]
"""(packed task, device) -> the backend, in a worker. A module-level function, so that another process can import it."""


def failure(error: Exception) -> str:
    """One line that says why a trial failed. Raises a DiskError again, because the trial did not cause it."""
    if isinstance(error, DiskError):
        raise error
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if isinstance(error, UserError):
        return text
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"
