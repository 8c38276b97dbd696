"""A search in a report: Table 1's layout, tuned against default, importance of the parameters, failed trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.report.run import RunDirectory

TABLE_1 = {
    "fc1": "FC1",
    "fc2": "FC2",
    "learning_rate": "Learning rate",
    "optimiser": "Optimiser",
    "batch_size": "Batch size",
    "conv1": "Conv1",
    "conv2": "Conv2",
}
"""Table 1's columns, in its order; other parameters of a space follow by their own names."""
WHOLE_METHOD = "method"


@dataclass(frozen=True)
class SearchRecord:
    """A search that ended: results.json as the search wrote it, and whose it is."""

    label: str
    content: Mapping[str, Any]

    @property
    def experts(self) -> dict[str, Any]:
        """The studies of experts, by the expert's number."""
        return {name: study for name, study in self.content["studies"].items() if name != WHOLE_METHOD}

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """The trials of all studies."""
        return [trial for study in self.content["studies"].values() for trial in study["trials"]]


def searches(run: RunDirectory) -> Iterator[SearchRecord]:
    """The searches of a run that have ended; none for other kinds of job."""
    for label in run.models:
        path = run.path / label / "search" / "results.json"
        if path.is_file():
            yield SearchRecord(label, _read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); run the job again with --resume") from None


def search_tables(run: RunDirectory) -> list[Table]:
    """All tables of a run's searches, in the report's order."""
    tables: list[Table] = []
    for record in searches(run):
        if record.experts:
            tables += [best_table(run, record), *_comparison_table(run, record)]
        tables += [*_method_tables(run, record), *_importance_table(record), *_failures_table(record)]
    return tables


def best_table(run: RunDirectory, record: SearchRecord) -> Table:
    """Every expert's best configuration as in the paper's Table 1, with its score and the trials it took."""
    found = [study["configuration"] for study in record.experts.values() if study["configuration"]]
    names = [name for name in TABLE_1 if found and name in found[0]]
    names += [name for name in (found[0] if found else ()) if name not in TABLE_1]
    columns = ("samples", *(TABLE_1.get(name, name) for name in names), "F1", "trials", "stopped")
    rows = []
    for name, study in record.experts.items():
        best = study["best"]
        cells = [ABSENT] * (len(names) + 1)
        if best is not None:
            cells = [_written(study["configuration"][parameter]) for parameter in names]
            cells.append(f"{study['trials'][best]['curve'][-1][1]:.4f}")
        stopped = sum(trial["state"] == "stopped" for trial in study["trials"])
        counts = (str(len(study["trials"])), str(stopped))
        rows.append(Row(f"{name} {study['title']}", (f"{study['samples']:,}", *cells, *counts)))
    return Table(
        title=f"Best configuration of each expert, validation split of {run.record['dataset']} "
        f"(n = {run.record['counts']['val']:,})",
        columns=tuple(Column("", column) for column in columns),
        rows=tuple(rows),
        notes=(
            f"F1: {record.content['scored_by']}, on the validation split with its true labels. They chose this trial, "
            "so the figure is optimistic; the comparison trains it again.",
            "Samples: of the expert's class, by their pseudo-labels.",
            "Selected on validation alone; the test split was not looked at.",
        ),
        corner="Expert",
    )


def _written(value: Any) -> str:
    """As in Table 1, to four decimals; of a smaller number two digits, where that would leave nothing of it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _comparison_table(run: RunDirectory, record: SearchRecord) -> list[Table]:
    found = record.content["comparison"]
    if found is None:
        return []
    interval = f"{found['gain']:+.4f} ({found['gain_low']:+.4f} to {found['gain_high']:+.4f})"
    seeds = max(len(study["compared"]) for study in record.experts.values())
    return [
        Table(
            title=f"Tuned against default experts, validation split of {run.record['dataset']}",
            columns=tuple(Column("", name) for name in ("default", "tuned", "gain (95 % interval)")),
            rows=(
                Row(
                    f"Mean F1 over {found['studies']} experts",
                    (f"{found['default']:.4f}", f"{found['best']:.4f}", interval),
                ),
            ),
            notes=(
                f"Both trained again, from {seeds} seed{'s' if seeds > 1 else ''} that the search did not use, to the "
                "last epoch; Student-t interval of the gain over experts. These images also chose the tuned ones.",
            ),
            corner="",
        )
    ]


def _method_tables(run: RunDirectory, record: SearchRecord) -> Iterator[Table]:
    study = record.content["studies"].get(WHOLE_METHOD)
    if study is None or study["best"] is None:
        return
    best = study["trials"][study["best"]]
    yield Table(
        title=f"Best configuration of {study['title']}, validation split of {run.record['dataset']}",
        columns=(Column("", "value"),),
        rows=(
            *(Row(name, (_written(value),)) for name, value in best["values"].items()),
            Row("top-1 on validation", (f"{best['curve'][-1][1]:.4f}",), begins_section=True),
        ),
        notes=(f"Of {len(study['trials'])} trials; the split that chose it, so an optimistic figure.",),
        corner="Parameter",
    )


def mean_importance(record: SearchRecord) -> dict[str, float]:
    """Mean over the experts' studies of how much of the score's variance a parameter explains, largest first."""
    shares = [study["importance"] for study in record.experts.values() if study["importance"]]
    names = {name for each in shares for name in each}
    means = {name: sum(each.get(name, 0.0) for each in shares) / len(shares) for name in names}
    return dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))


def _importance_table(record: SearchRecord) -> list[Table]:
    means = mean_importance(record)
    if not means:
        return []
    counted = sum(bool(study["importance"]) for study in record.experts.values())
    return [
        Table(
            title="Importance of the parameters",
            columns=(Column("", "share of the variance"),),
            rows=tuple(Row(TABLE_1.get(name, name), (f"{share:.3f}",)) for name, share in means.items()),
            notes=(
                f"fANOVA, mean over {counted} studies with four or more trials of different scores that were trained "
                "to the last epoch.",
            ),
            corner="Parameter",
        )
    ]


def _failures_table(record: SearchRecord) -> list[Table]:
    reasons = Counter(trial["reason"] for trial in record.trials if trial["state"] == "failed")
    if not reasons:
        return []
    return [
        Table(
            title=f"Trials that failed: {sum(reasons.values())} of {len(record.trials)}",
            columns=(Column("", "trials"),),
            rows=tuple(Row(reason, (str(count),)) for reason, count in reasons.most_common()),
            corner="Reason",
            left=True,
        )
    ]
