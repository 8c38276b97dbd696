"""What a reader must know of a run before believing its figures: what was left out, broken off, told at its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moe_dist.places import FAILED, FINISHED, RUNNING, status_of
from moe_dist.report.run import RunDirectory
from moe_dist.report.tables import restarts_in_words
from moe_dist.terminal import duration


def warnings_of(run: RunDirectory) -> list[str]:
    """The warnings of a run, a sentence each."""
    return [*_bad_samples(run), *_starts(run), *_restarts(run), *_changes(run), *run.notices]


def _bad_samples(run: RunDirectory) -> Iterator[str]:
    if (bad := run.bad_samples).count:
        rest = f"; {bad.count - len(bad.first)} more in the folder bad_samples" if bad.count > len(bad.first) else ""
        samples = "sample" if bad.count == 1 else "samples"
        named = "; ".join(bad.first)
        yield f"Bad {samples}: {bad.count} left out, of weight 0 in training and in no accuracy: {named}{rest}."


def _starts(run: RunDirectory) -> Iterator[str]:
    """How each start that did not finish ended; the last one's state stands at the top of the page."""
    starts = run.record.get("starts", [])
    for number, start in enumerate(starts, 1):
        status = status_of(run.record) if number == len(starts) else start["status"]
        if status not in (FINISHED, RUNNING):
            yield f"Start {number} of {len(starts)} {_ended(start, status)}"


def _ended(start: Mapping[str, Any], status: str) -> str:
    """How a start ended, when, and why, as far as it could say so."""
    after = f" after {duration(start['seconds'])}" if start.get("seconds") is not None else ""
    reason = f": {start['reason']}" if start.get("reason") else ""
    ended = status if status == FAILED else f"was {status}"
    return f"({start['started'].replace('T', ' ')}) {ended}{after}{reason}."


def _restarts(run: RunDirectory) -> Iterator[str]:
    """That workers or nodes were lost; a table tells of each."""
    if run.restarts:
        yield f"{restarts_in_words(run.restarts)}; a table below tells of each."


def _changes(run: RunDirectory) -> Iterator[str]:
    """Trainings that were gone on with by other code or on other machines."""
    for model in run.models.values():
        for what, key in (("code", "code"), ("machines", "hardware")):
            kinds = list(dict.fromkeys(str(stretch[key]) for stretch in model.made))
            if len(kinds) > 1:
                yield f"{model.title} was trained in parts by different {what}: {'; '.join(kinds)}."
