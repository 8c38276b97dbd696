"""What a run is doing now, read from its run directory alone. Neither Ray nor torch is imported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.places import RECORD, RUNNING, status_of
from moe_dist.record.restarts import seconds_lost
from moe_dist.terminal import duration, plain_facts

TAIL_BYTES = 2**20
"""How much of a log's end is read: the last epoch's line lies there, unless an epoch has thousands of steps."""
SILENT_AFTER_SECONDS = 30.0
STEPS_OF_LOAD = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 24
RESTARTS_SHOWN = 3


@dataclass(frozen=True)
class TrainingNow:
    """A training in progress: its newest line of any kind, of a step and of an epoch, and when it saved last.

    saved: the newest checkpoint's name and its time (seconds since 1970), None before there is one.
    """

    model: str
    newest: Mapping[str, Any]
    step: Mapping[str, Any]
    epoch: Mapping[str, Any]
    saved: tuple[str, float] | None


@dataclass(frozen=True)
class RunNow:
    """A run as it stands: run.json, its status, the newest training of each model, tasks, and searches by name.

    tasks: how many tasks' worth is done, and of how many that have begun, while there are any. searches: the number of
    trials that have an outcome, by model and search.
    """

    path: Path
    record: Mapping[str, Any]
    status: str
    trainings: tuple[TrainingNow, ...]
    tasks: tuple[float, int] | None
    searches: Mapping[str, int]


def run_now(run: Path) -> RunNow:
    """Read a run directory. Raises UserError if it is none, or one of a grid, whose cells are."""
    record = read_json(run / RECORD)
    if record is None:
        cells = sorted(run.glob(f"cells/*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        if cells:
            raise UserError(f"{run}: is a grid; give one of its cells, as {cells[-1].parent}, the latest")
        raise UserError(f"{run}: no run is there (it has no {RECORD}); give the folder that `moe-dist run` printed")
    logs: dict[str, Path] = {}
    for log in sorted(run.glob("*/trainings/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime):
        logs[log.relative_to(run).parts[0]] = log
    journals = sorted(run.glob("*/search/*.jsonl"))
    trainings = tuple(now for model, log in logs.items() if (now := _training(model, log)))
    searches = {f"{path.parts[-3]}, {path.stem}": _told(path) for path in journals}
    return RunNow(run, record, status_of(record), trainings, _tasks(run), searches)


def _training(model: str, log: Path) -> TrainingNow | None:
    lines: dict[str, dict[str, Any]] = {}
    newest: dict[str, Any] = {}
    for newest in _lines(log, TAIL_BYTES):
        lines[newest["kind"]] = newest
    if not newest:
        return None
    saved = []
    for path in (log.parent / "checkpoints").glob("checkpoint_*/"):
        with suppress(FileNotFoundError):  # the run removes those that it needs no more
            saved.append((path.name, path.stat().st_mtime))
    latest = max(saved, key=lambda each: each[1], default=None)
    return TrainingNow(model, newest, lines.get("step", {}), lines.get("epoch", {}), latest)


def _lines(path: Path, at_end: int | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of JSON objects, or of so many bytes at its end."""
    with path.open("rb") as file:
        if at_end is not None:
            file.seek(max(0, file.seek(0, 2) - at_end))
        for line in file.read().split(b"\n"):
            if line.startswith(b"{") and line.endswith(b"}"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # a power failure can leave zeros in a line


def _tasks(run: Path) -> tuple[float, int] | None:
    begun = list((run / ".progress").glob("*.json"))
    parts = [read_json(path) or [0, 1] for path in begun]
    return (sum(done / total for done, total in parts), len(begun)) if begun else None


def _told(journal: Path) -> int:
    records = (line for line in _lines(journal) if "told" in line and "compared" not in line)
    return sum(len(record["told"]) for record in records if "again" not in record)


def screen(now: RunNow, moment: float | None = None) -> Group:
    """The run in words for a terminal, in 80 columns. moment: the time now, in seconds since 1970."""
    moment = time.time() if moment is None else moment
    parts: list[Any] = [_headline(now, moment)]
    for each in now.trainings:
        parts += [Text.assemble("\n", (each.model, "bold")), plain_facts(_training_facts(each, now, moment))]
    facts = {f"search of {name}": f"{count} trials have an outcome" for name, count in now.searches.items()}
    if now.tasks:
        facts["tasks"] = f"{now.tasks[0]:.1f} of {now.tasks[1]} begun are done"
    facts |= _restarts(now)
    if facts:
        parts += [Text(), plain_facts(facts)]
    return Group(*parts)


def _headline(now: RunNow, moment: float) -> Text:
    start = (now.record.get("starts") or [{}])[-1]
    since = f", for {duration(max(0.0, moment - start['time']))}" if now.status == RUNNING and "time" in start else ""
    how = [f"begun {datetime.fromisoformat(now.record['started']):%Y-%m-%d %H:%M}"]
    if "launcher" in now.record:
        workers = now.record["workers"]
        how = [now.record["launcher"], f"{workers} worker{'s' if workers > 1 else ''}", *how]
    return Text.assemble((str(now.path), "bold"), f"  {now.status}{since}\n", (f"  {', '.join(how)}", "dim"))


def _training_facts(each: TrainingNow, now: RunNow, moment: float) -> dict[str, str]:
    newest, step = each.newest, each.step
    done, total = newest["step"], newest["of_steps"]
    filled = round(BAR_WIDTH * done / total) if total else 0
    age = moment - newest["time"]
    facts = {"stage": f"{newest['stage']}, epoch {newest['epoch'] + 1}"}
    facts["step"] = f"{'█' * filled}{'░' * (BAR_WIDTH - filled)}  {done} of {total}, {_ago(age)}"
    if now.status == RUNNING and done < total and age > SILENT_AFTER_SECONDS:
        since = datetime.fromtimestamp(newest["time"])
        facts["!"] = f"no step since {since:%H:%M:%S}: a long validation, a restart, or a rank that hangs"
    if "loss" in newest:
        norm = f", gradient norm {step['gradient_norm']:.3g}" if "gradient_norm" in step else ""
        facts["loss"] = f"{newest['loss']:.4f}{norm}"
    if "images_per_second" in step:
        facts["speed"] = f"{step['images_per_second']:,.0f} images/s{_pace(step)}"
    if load := _load(each.epoch):
        facts["experts"] = load
    if each.saved:
        facts["saved"] = f"{each.saved[0]}, {_ago(moment - each.saved[1])}"
    return facts


def _pace(step: Mapping[str, Any]) -> str:
    """What a step takes; nothing in a run from before that was logged."""
    if "step_seconds" not in step:
        return ""
    took, waited = step["step_seconds"], step["data_wait_seconds"]
    return f", {1000 * took:.1f} ms a step, {waited / took:.0%} of it waiting for data"


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"


def _load(epoch: Mapping[str, Any]) -> str:
    """The shares of the gate's weight in the last epoch's validation, as a line of bars in the experts' order."""
    shares = [value for name, value in epoch.items() if name.startswith("load/expert_")]
    if not shares:
        return ""
    heaviest = max(shares) or 1.0
    bars = "".join(STEPS_OF_LOAD[round((len(STEPS_OF_LOAD) - 1) * share / heaviest)] for share in shares)
    return f"{bars}  {min(shares):.1%} to {max(shares):.1%} of the gate's weight (validation)"


def _restarts(now: RunNow) -> dict[str, str]:
    restarts = [each for start in now.record.get("starts", []) for each in start.get("restarts", [])]
    if not restarts:
        return {}
    newest = restarts[-RESTARTS_SHOWN:][::-1]
    lines = [f"{datetime.fromtimestamp(each['time']):%H:%M:%S} {each['what']}" for each in newest]
    left = [f"... and {len(restarts) - len(newest)} before"] if len(restarts) > len(newest) else []
    return {"restarts": "\n".join([f"{len(restarts)}, {duration(seconds_lost(restarts))} lost", *lines, *left])}
