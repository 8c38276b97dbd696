"""The record of a grid: all that its tables need, small enough to be committed, and true without the run directory.

One JSON file: the resolved job without places of a machine, how the table is laid out, and for each cell its place, how
it ended, metrics, predictions (as a digest, and which test images are right), split, hardware, code and seconds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.grid.cells import Cell, axes_of, cells_of, grid_of, lies_in
from moe_dist.grid.paper import column_of, papers_of, printed_for
from moe_dist.grid.state import run_folder, state_of
from moe_dist.job import Job, parse_job
from moe_dist.places import FINISHED, ModelFolder
from moe_dist.record.sharing import STEP_DONE, TRAINING_DONE
from moe_dist.report.build import flat_metrics
from moe_dist.report.paper import paper_table
from moe_dist.report.run import Evaluation, RunDirectory
from moe_dist.settings.grid import METHOD
from moe_dist.yaml_core import load_run_yaml

FORMAT = 1
PLACES = ("source", "shards", "remote")
"""Fields of `data` that say where images are, not which."""

Record = Mapping[str, Any]
"""The content of a record's file."""


def is_grid(folder: Path) -> bool:
    """Whether a grid was run in `folder`."""
    job = _job_text(folder / "job.yaml")
    return isinstance(job, dict) and job.get("grid") is not None


def record_of(folder: Path) -> dict[str, Any]:
    """The record of the grid in `folder`, finished or not."""
    job = parse_job(_job_text(folder / "job.yaml"), str(folder / "job.yaml"))
    grid, cells = grid_of(job), cells_of(job)
    rows, columns = grid.table_axes
    return {
        "format": FORMAT,
        "name": job.name,
        "title": job.title or job.name,
        "job": without_places(job.model_dump(mode="json")),
        "axes": axes_of(job),
        "headings": _headings(job, cells),
        "rows": [*rows],
        "columns": [*columns],
        "metrics": [*grid.shown_metrics],
        "against": dict(grid.against),
        **({"tables": [table.model_dump(mode="json") for table in grid.tables]} if grid.tables else {}),
        "cells": [_cell(folder, job, cell) for cell in cells],
    }


def read_record(path: Path) -> Record:
    """The record in the file `path`. Raises UserError where it holds none, or one of a later version."""
    content = read_json(path)
    if not isinstance(content, dict) or "cells" not in content:
        raise UserError(f"{path}: holds no record of a grid; write one with `moe-dist report GRID --record {path}`")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: is a record of format {content['format']}, this version reads {FORMAT}")
    return content


def _job_text(path: Path) -> Any:
    try:
        return load_run_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _headings(job: Job, cells: list[Cell]) -> dict[str, str]:
    """The models' names in tables: as a paper calls them where the job names its table, else their own."""
    found: dict[str, str] = {}
    for cell in cells:
        name = cell.at[METHOD]
        tables = (paper_table(paper.table, paper.column) for paper in papers_of(job) if paper.table)
        titles = [table.titles[name] for table in tables if column_of(job, cell, table) == name]
        found.setdefault(name, titles[0] if titles else name.replace("_", " "))
    return found


def without_places(value: Any) -> Any:
    """The settings without the places where images and weights lie on this machine."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key not in PLACES}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _cell(folder: Path, job: Job, cell: Cell) -> dict[str, Any]:
    state = state_of(folder, cell)
    about: dict[str, Any] = {"at": dict(cell.at), "status": state.status, "paper": printed_for(job, cell)}
    if state.status != FINISHED:
        return about | ({"reason": state.reason} if state.reason else {})
    run = RunDirectory(run_folder(folder, cell))
    (model,) = run.models.values()
    metrics = {name.removeprefix(f"{model.name}/"): value for name, value in flat_metrics(run).items()}
    taken = _seconds_taken_over(ModelFolder(run.path / model.name))
    about |= {
        "metrics": metrics,
        "split": run.record["split_digest"],
        "test_split": run.record["digests"]["test"],
        "hardware": run.hardware,
        "code": run.record["code"],
        "torch": run.record["torch"],
        "seconds": run.record["seconds"] - taken,
        "seconds_taken_over": taken,
    }
    return about | (_predictions(model.evaluation) if model.evaluation else {})


def _seconds_taken_over(model: ModelFolder) -> float:
    """Seconds of those results of the model that another cell has made, and that count there."""
    current = model.current()
    trainings = [*current.earlier.values(), *filter(None, [current.training])]
    done = [read_json(step / STEP_DONE) for step in current.steps.values()]
    done += [read_json(training / TRAINING_DONE) for training in trainings]
    return sum(about["seconds"] for about in done if about and "taken_from" in about)


def _predictions(evaluation: Evaluation) -> dict[str, Any]:
    """The digest of the predicted classes, and which of the test images they are right on (a bit an image, base64)."""
    predicted = evaluation.log_probs.argmax(axis=1).astype("<i4")
    about: dict[str, Any] = {"predictions": sha256(predicted.tobytes()).hexdigest(), "test_images": len(predicted)}
    if evaluation.predicts == "classes":
        right = np.packbits(predicted == evaluation.labels).tobytes()
        about["right"] = base64.b64encode(right).decode("ascii")
    return about


def parts_of(record: Record) -> list[Record]:
    """The record of each table of a grid that has several, with its own cells, metrics and comparison; else itself."""
    if "tables" not in record:
        return [record]
    return [_part(record, table) for table in record["tables"]]


def _part(record: Record, table: Mapping[str, Any]) -> Record:
    cells = [cell for cell in record["cells"] if lies_in(cell["at"], table["where"])]
    there = {axis: {cell["at"][axis] for cell in cells} for axis in record["axes"]}
    axes = {axis: [name for name in names if name in there[axis]] for axis, names in record["axes"].items()}
    own = {name: table[name] for name in ("title", "metrics", "against")}
    return {**record, **own, "axes": axes, "cells": cells}


def right_images(cell: Mapping[str, Any]) -> np.ndarray | None:
    """Which test images [N] a cell of a record is right on; None where it predicts no classes."""
    if "right" not in cell:
        return None
    bits = np.frombuffer(base64.b64decode(cell["right"]), np.uint8)
    return np.unpackbits(bits, count=cell["test_images"]).astype(bool)


def record_text(record: Record) -> str:
    """The record as it is written: one line a cell, so that a changed cell is one changed line."""
    head = {key: value for key, value in record.items() if key != "cells"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    cells = ",\n".join("  " + json.dumps(cell) for cell in record["cells"])
    return "{\n" + "\n".join(lines) + '\n "cells": [\n' + cells + "\n ]\n}\n"
