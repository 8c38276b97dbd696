"""What a search sends to its workers and gets back: plain values that travel as JSON and are kept in its journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_dist.settings.tune import Value

State = Literal["finished", "stopped", "failed"]
"""finished: trained to its last epoch; stopped: at a rung; failed: with a reason."""
LOST = "the worker died (out of memory, or killed)"
"""The reason of a trial whose worker died each time it was tried. It says nothing about the trial."""
SortKey = tuple[float, float]
"""(score, -loss): larger is better."""


@dataclass(frozen=True)
class Trial:
    """One configuration to train and score: its number in its study, and parameter -> value."""

    number: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Point:
    """A point of a learning curve: `score` in [0, 1], which is maximised, and validation loss, which breaks ties."""

    epoch: int
    score: float
    loss: float

    @property
    def sort_key(self) -> SortKey:
        """Larger is better."""
        return self.score, -self.loss


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial: its final state, its learning curve, its share of the seconds, and why it failed."""

    state: State
    curve: tuple[Point, ...] = ()
    seconds: float = 0.0
    reason: str = ""

    @property
    def lost(self) -> bool:
        """Whether the trial's workers died; the next run of the search tries it again."""
        return self.state == "failed" and self.reason.startswith(LOST)

    @property
    def last(self) -> Point:
        """The last point of the curve, by which a trial is judged."""
        return self.curve[-1]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Outcome:
        """The outcome that `dataclasses.asdict` made `values` of."""
        curve = tuple(Point(**point) for point in values["curve"])
        return cls(values["state"], curve, values["seconds"], values["reason"])


@dataclass(frozen=True)
class TrialBatch:
    """Trials of one study that are trained together from one seed.

    rungs: the sort keys of the study's earlier trials at each rung; None: no trial is stopped (a comparison).
    """

    study: str
    trials: tuple[Trial, ...]
    seed: int
    rungs: dict[int, list[SortKey]] | None = None


@dataclass(frozen=True)
class Round:
    """Batches of different studies that one worker runs."""

    number: int
    batches: tuple[TrialBatch, ...]

    def to_json(self) -> str:
        """The round as JSON, which `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Round:
        """The round that `to_json` made `text` of."""
        content = json.loads(text)
        batches = []
        for batch in content["batches"]:
            trials = tuple(Trial(**trial) for trial in batch["trials"])
            rungs = batch["rungs"]
            if rungs is not None:
                rungs = {int(epoch): [(score, loss) for score, loss in keys] for epoch, keys in rungs.items()}
            batches.append(TrialBatch(batch["study"], trials, batch["seed"], rungs))
        return cls(content["number"], tuple(batches))
