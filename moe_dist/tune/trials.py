"""What a search hands out and gets back, as plain values that travel between processes and into its journal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_dist.settings.tune import Value

State = Literal["finished", "stopped", "failed"]
"""finished: trained to its last epoch; stopped: at a rung; failed: with a reason."""


@dataclass(frozen=True)
class Trial:
    """One configuration to try: its number in its study, and parameter -> value."""

    number: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Point:
    """A learning curve's point: `score` in [0, 1], which is maximised, and the validation loss, which breaks ties."""

    epoch: int
    score: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better."""
        return self.score, -self.loss


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: how it ended, its learning curve, its share of the seconds, and why it failed."""

    state: State
    curve: tuple[Point, ...] = ()
    seconds: float = 0.0
    reason: str = ""

    @property
    def last(self) -> Point:
        """The point a trial that was trained is judged by."""
        return self.curve[-1]


@dataclass(frozen=True)
class Batch:
    """Trials of one study that are trained together from one seed.

    rungs: (score, -loss) of the study's earlier trials at each rung; None: nothing is stopped (a comparison).
    """

    study: str
    trials: tuple[Trial, ...]
    seed: int
    rungs: dict[int, list[tuple[float, float]]] | None = None


@dataclass(frozen=True)
class Round:
    """Batches of different studies that one worker runs."""

    number: int
    batches: tuple[Batch, ...]


def pack_round(work: Round) -> str:
    """A round as JSON."""
    return json.dumps(asdict(work))


def unpack_round(text: str) -> Round:
    """The round that `pack_round` packed."""
    content = json.loads(text)
    return Round(content["number"], tuple(_batch(batch) for batch in content["batches"]))


def _batch(content: dict[str, Any]) -> Batch:
    trials = tuple(Trial(**trial) for trial in content["trials"])
    rungs = content["rungs"]
    if rungs is not None:
        rungs = {int(epoch): [(score, loss) for score, loss in ranks] for epoch, ranks in rungs.items()}
    return Batch(content["study"], trials, content["seed"], rungs)


def pack_outcome(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON values."""
    return asdict(outcome)


def unpack_outcome(content: Mapping[str, Any]) -> Outcome:
    """The outcome that `pack_outcome` packed."""
    curve = tuple(Point(**point) for point in content["curve"])
    return Outcome(content["state"], curve, content["seconds"], content["reason"])


def all_failed(batches: Sequence[Batch], reason: str) -> list[list[Outcome]]:
    """The outcome of a round whose worker did not come back."""
    return [[Outcome("failed", reason=reason) for _ in batch.trials] for batch in batches]
