"""How a rank's training may end before its last step, other than by a UserError, which nothing would mend.

Launchers start it again from its last checkpoint, or tell the user.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from moe_dist.errors import UserError

_TIMED_OUT = re.compile(r"[Tt]imed out waiting (\d+) ?ms|Timeout\(ms\)=(\d+)|[Tt]imed out|ran for (\d+) milliseconds")


class HungCollective(Exception):
    """An exchange between ranks in which another rank did not take part for so long that it was given up."""

    def __init__(self, rank: int, step: int, seconds: float | None) -> None:
        super().__init__(rank, step, seconds)
        self.rank, self.step, self.seconds = rank, step, seconds

    def __str__(self) -> str:
        waited = "too long" if self.seconds is None else f"{self.seconds:.0f} s"
        return f"rank {self.rank} waited {waited} for other ranks at step {self.step}"


class Left(Exception):
    """All ranks have saved a checkpoint and end, to be started again on other nodes. This is no failure."""


class NodeTaken(Left):
    """A node of the training will be taken away."""


class MoreRoom(Left):
    """The cluster has room for more workers, for `workers` in all."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers


@contextmanager
def naming_failures(rank: int, ranks: int, step: Callable[[], int]) -> Iterator[None]:
    """Name what ends the block, which trains: a hung exchange with its rank and step, and memory that ran out.

    step: returns the number of the last finished step. Raises HungCollective, and UserError for memory of the GPU or
    of this process, since the same steps would need as much again.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        kind = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        raise UserError(
            f"rank {rank} (on {socket.gethostname()}) ran out of {kind} after step {step()}; raise "
            "parallel.micro_batches, lower batch_size, or give workers more, and go on with --resume. It said: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    except RuntimeError as error:
        found = _TIMED_OUT.search(str(error)) if ranks > 1 else None
        if found is None:
            raise
        milliseconds = next((number for number in found.groups() if number), None)
        raise HungCollective(rank, step() + 1, int(milliseconds) / 1000 if milliseconds else None) from error
