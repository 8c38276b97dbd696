"""What differs between runs: their settings beside their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.record.differences import flat
from moe_dist.report.build import flat_metrics
from moe_dist.report.run import RunDirectory
from moe_dist.report.tables import SECTIONS

NAMES = ("name", "title")
"""Fields of a job that change no result."""
OTHER_IMAGES = "Their test images differ, so a difference of results is not one of the models alone."


def compare_runs(paths: Sequence[Path]) -> tuple[Table, Table]:
    """The tables of the settings in which runs differ, and of their results.

    Raises UserError for a folder that is not a run directory, and for fewer than two runs.
    """
    if len(paths) < 2:
        raise UserError("runs compare: give two runs or more, for example two folders that `moe-dist runs list` names")
    runs = [RunDirectory(path) for path in paths]
    columns = tuple(Column("", _short_name(path, paths)) for path in paths)
    return _settings_table(runs, columns), _results_table(runs, columns)


def _short_name(path: Path, paths: Sequence[Path]) -> str:
    """The name of a run's folder, with that of its job's where two runs are called the same."""
    same = sum(other.absolute().name == path.absolute().name for other in paths) > 1
    return "/".join(path.absolute().parts[-2:]) if same else path.absolute().name


def _settings_table(runs: Sequence[RunDirectory], columns: tuple[Column, ...]) -> Table:
    every = [_settings(run) for run in runs]
    fields = dict.fromkeys(field for settings in every for field in settings)
    rows = [
        Row(field, cells)
        for field in fields
        if field not in NAMES
        if len(set(cells := tuple(settings.get(field, ABSENT) for settings in every))) > 1
    ]
    notes = () if rows else ("No setting, data or code differs.",)
    return Table("Settings that differ", columns, tuple(rows), notes, "field", left=True)


def _settings(run: RunDirectory) -> dict[str, str]:
    """The job's settings by the path to each, as text, and the facts in brackets."""
    written = {path: leaf if isinstance(leaf, str) else json.dumps(leaf) for path, leaf in flat(run.job).items()}
    return written | {f"({name})": fact for name, fact in _facts(run).items()}


def _facts(run: RunDirectory) -> dict[str, str]:
    """What a run's results depend on beside its settings."""
    record = run.record
    return {"code": record.get("code", ABSENT), "hardware": run.hardware, "test images": _test_images(run)}


def _test_images(run: RunDirectory) -> str:
    """Which test images a run was measured on, in short."""
    digest = run.record.get("digests", {}).get("test") or run.record.get("split_digest", ABSENT)
    return f"{run.record['counts']['test']:,} of {run.record['dataset']} ({digest[:12]})"


def _results_table(runs: Sequence[RunDirectory], columns: tuple[Column, ...]) -> Table:
    """The results, a section a model; a model that several runs have stands in one row of each metric."""
    metrics = [flat_metrics(run) for run in runs]
    rows: list[Row] = []
    for model in dict.fromkeys(name for run in runs for name in run.models):
        lines: list[Row] = []
        for key, heading, write in (metric for section in SECTIONS for metric in section):
            cells = tuple(_cell(of_run.get(f"{model}/{key}"), write) for of_run in metrics)
            if set(cells) != {ABSENT}:
                lines.append(Row(f"{model}: {heading}", cells, begins_section=not lines))
        rows += lines
    notes = () if len({_test_images(run) for run in runs}) == 1 else (OTHER_IMAGES,)
    return Table("Results", columns, tuple(rows), notes, "model: metric")


def _cell(value: float | None, write: Any) -> str:
    return ABSENT if value is None else write(value)
