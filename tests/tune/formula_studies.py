"""Searches whose trials cost nothing: the score is a formula, and each study has its own optimum."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from moe_dist.settings.schema import Count, Positive, Strict
from moe_dist.settings.tune import Range
from moe_dist.tune.budget import Budget
from moe_dist.tune.halving import Rungs
from moe_dist.tune.journal import Journal
from moe_dist.tune.search import Comparison, Search, SearchedStudy
from moe_dist.tune.space import distributions
from moe_dist.tune.study import SamplerSettings, Study
from moe_dist.tune.trials import Outcome, Point, Round, TrialBatch

EPOCHS = 4
SPACE = {"width": Range(low=4, high=20), "rate": Range(low=1e-4, high=1e-1, log=True), "kind": ("sgd", "adam")}


class Network(Strict):
    """What is searched."""

    width: Count = 8
    rate: Positive = 1e-3
    kind: str = "sgd"


def score(study: str, values: dict[str, Any]) -> float:
    """In [0, 1]: best at width 4 + study % 17, rate 10^-2, adam."""
    off = abs(values["width"] - 4 - int(study) % 17) / 16 + abs(math.log10(values["rate"]) + 2) / 4
    return max(0.0, 1 - off) * (1.0 if values["kind"] == "adam" else 0.9)


class FormulaBackend:
    """A curve that rises to the formula's score over the epochs; seconds: how long a round takes."""

    def __init__(self, factor: int = 2, seconds: float = 0.0) -> None:
        self.factor, self.seconds = factor, seconds

    def run(self, work: Round) -> list[list[Outcome]]:
        time.sleep(self.seconds)
        return [self._run(batch) for batch in work.batches]

    def _run(self, batch: TrialBatch) -> list[Outcome]:
        rungs = Rungs(self.factor, batch.rungs or {})
        curves: dict[int, list[Point]] = {place: [] for place in range(len(batch.trials))}
        alive = set(curves)
        for epoch in range(1, EPOCHS + 1):
            for place in alive:
                reached = score(batch.study, batch.trials[place].values) * epoch / EPOCHS
                curves[place].append(Point(epoch, reached, 1 - reached))
            alive = rungs.survivors(epoch, {place: curves[place][-1].sort_key for place in alive})
        return [
            Outcome("finished" if len(curve) == EPOCHS else "stopped", tuple(curve), 0.0) for curve in curves.values()
        ]


def open_formula(seconds: float, device: Any) -> FormulaBackend:
    """As a worker opens it."""
    return FormulaBackend(seconds=seconds)


def search(
    folder: Path,
    experts: list[int],
    *,
    trials: int | None = 12,
    batch: int = 3,
    together: int = 1,
    rungs: tuple[int, ...] = (2,),
    seed: int = 0,
    sharing: str = "fair",
    seconds: float | None = None,
    sampler: str = "tpe",
    compared: tuple[int, ...] = (),
) -> Search:
    """A search of these experts with its journal in `folder`."""
    found = distributions(SPACE, Network(), "space")
    settings = SamplerSettings(sampler, 4, seed)
    studies = [
        SearchedStudy(
            Study(str(expert), found, settings), Comparison(Network().model_dump(), compared) if compared else None
        )
        for expert in experts
    ]
    journal = Journal(folder / "journal.jsonl", {"seed": seed})
    budget = Budget(trials, seconds, sharing, batch)
    return Search(studies, budget, journal, seed=seed, rungs=rungs, together=together)


def suggestions(of: Search) -> dict[str, list[dict[str, Any]]]:
    """Every study's values in the order it suggested them."""
    return {name: [trial.values for trial in each.study.trials] for name, each in of.studies.items()}
