"""A search in a report: best configurations, tuned against default, importance of parameters, failures, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.plots.training import score_curves
from moe_dist.report.run import RunDirectory, read_result
from moe_dist.settings.tune import METHOD


@dataclass(frozen=True)
class SearchRecord:
    """A search that has ended: the model it belongs to, and `content`, results.json as the search wrote it."""

    model: str
    content: Mapping[str, Any]
    headings: Mapping[str, str]
    """Parameter -> its heading in tables, in their order; other parameters follow by their own names."""

    @property
    def experts(self) -> dict[str, Any]:
        """The studies of experts, by the expert's number."""
        return {name: study for name, study in self.content["studies"].items() if name != METHOD}


def searches(run: RunDirectory) -> Iterator[SearchRecord]:
    """The searches of a run that have ended; a job of another kind than `tune` has none."""
    headings = {model.name: report.parameters for report, models in run.reports() for model in models}
    for model in run.models:
        path = run.path / model / "search" / "results.json"
        if path.is_file():
            yield SearchRecord(model, read_result(path), headings.get(model, {}))


def search_tables(run: RunDirectory) -> list[Table]:
    """All tables of a run's searches, in the report's order."""
    tables: list[Table] = []
    for record in searches(run):
        if record.experts:
            tables += [best_table(run, record), *_comparison_table(run, record)]
        tables += [*_method_table(run, record), *_importance_table(record), *_failures_table(record)]
    return tables


def best_table(run: RunDirectory, record: SearchRecord) -> Table:
    """Every expert's best configuration, with its score and the trials it took."""
    found = [study["configuration"] for study in record.experts.values() if study["configuration"]]
    names = [name for name in record.headings if found and name in found[0]]
    names += [name for name in (found[0] if found else ()) if name not in record.headings]
    columns = ("samples", *(record.headings.get(name, name) for name in names), "F1", "trials", "stopped")
    rows = []
    for name, study in record.experts.items():
        best = study["best"]
        cells = [ABSENT] * (len(names) + 1)
        if best is not None:
            cells = [_value_text(study["configuration"][parameter]) for parameter in names]
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
        sorts=True,
    )


def _value_text(value: Any) -> str:
    """A parameter's value with four decimals; a number that they would make 0 gets two digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _comparison_table(run: RunDirectory, record: SearchRecord) -> Iterator[Table]:
    """The best experts beside the job's own, both trained again; no table if the job did not ask for it."""
    found = record.content["comparison"]
    if found is None:
        return
    interval = f"{found['gain']:+.4f} ({found['gain_low']:+.4f} to {found['gain_high']:+.4f})"
    seeds = max(len(study["compared"]) for study in record.experts.values())
    scores = (f"{found['default']:.4f}", f"{found['best']:.4f}", interval)
    yield Table(
        title=f"Tuned against default experts, validation split of {run.record['dataset']}",
        columns=tuple(Column("", name) for name in ("default", "tuned", "gain (95 % interval)")),
        rows=(Row(f"Mean F1 over {found['studies']} experts", scores),),
        notes=(
            f"Both trained again, from {seeds} seed{'s' if seeds > 1 else ''} that the search did not use, to the "
            "last epoch; Student-t interval of the gain over experts. These images also chose the tuned ones.",
        ),
        corner="",
    )


def _method_table(run: RunDirectory, record: SearchRecord) -> Iterator[Table]:
    """The best configuration of the method as a whole; no table if it was not searched or no trial was finished."""
    study = record.content["studies"].get(METHOD)
    if study is None or study["best"] is None:
        return
    best = study["trials"][study["best"]]
    yield Table(
        title=f"Best configuration of {study['title']}, validation split of {run.record['dataset']}",
        columns=(Column("", "value"),),
        rows=(
            *(Row(name, (_value_text(value),)) for name, value in best["values"].items()),
            Row("top-1 on validation", (f"{best['curve'][-1][1]:.4f}",), begins_section=True),
        ),
        notes=(f"Of {len(study['trials'])} trials; the split that chose it, so an optimistic figure.",),
        corner="Parameter",
    )


def mean_importance(record: SearchRecord) -> dict[str, float]:
    """The share of the score's variance that each parameter explains, mean over the experts' studies, largest first."""
    shares = [study["importance"] for study in record.experts.values() if study["importance"]]
    names = {name for each in shares for name in each}
    means = {name: sum(each.get(name, 0.0) for each in shares) / len(shares) for name in names}
    return dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))


def _importance_table(record: SearchRecord) -> Iterator[Table]:
    """The importance of the parameters; no table if no study had enough trials to tell."""
    means = mean_importance(record)
    if not means:
        return
    counted = sum(bool(study["importance"]) for study in record.experts.values())
    yield Table(
        title="Importance of the parameters",
        columns=(Column("", "share of the variance"),),
        rows=tuple(Row(record.headings.get(name, name), (f"{share:.3f}",)) for name, share in means.items()),
        notes=(
            f"fANOVA, mean over {counted} studies with four or more trials of different scores that were trained "
            "to the last epoch.",
        ),
        corner="Parameter",
    )


def _failures_table(record: SearchRecord) -> Iterator[Table]:
    """The reasons of the trials that failed, the most frequent first; no table if none failed."""
    trials = [trial for study in record.content["studies"].values() for trial in study["trials"]]
    reasons = Counter(trial["reason"] for trial in trials if trial["state"] == "failed")
    if reasons:
        yield Table(
            title=f"Trials that failed: {sum(reasons.values())} of {len(trials)}",
            columns=(Column("", "trials"),),
            rows=tuple(Row(reason, (str(count),)) for reason, count in reasons.most_common()),
            corner="Reason",
            left=True,
        )


def draw_searches(run: RunDirectory) -> Iterator[Drawing]:
    """The figures of every search of a run that has ended and found a best trial."""
    for record in searches(run):
        if any(study["best"] is not None for study in record.content["studies"].values()):
            yield _learning_curves(run, record)
            yield _best_so_far(run, record)


def _learning_curves(run: RunDirectory, record: SearchRecord) -> Drawing:
    heading = f"Learning curves of the best trials (validation split of {run.record['dataset']})"
    studies = [study for study in record.content["studies"].values() if study["best"] is not None]
    curves = [study["trials"][study["best"]]["curve"] for study in studies]
    lines = [([point[0] for point in curve], [point[1] for point in curve]) for curve in curves]
    return Drawing(
        f"{record.model}_search_curves",
        heading,
        f"One thin line for the best trial of each of {len(studies)} studies, the thick line is their median.",
        score_curves(heading, "epoch", lines),
        about="training",
    )


def _best_so_far(run: RunDirectory, record: SearchRecord) -> Drawing:
    heading = f"Best score so far (validation split of {run.record['dataset']})"
    lines = []
    for study in record.content["studies"].values():
        # A trial counts if it was trained to the last epoch; before there is one, the best score is 0.
        scores = [trial["curve"][-1][1] if trial["state"] == "finished" else 0.0 for trial in study["trials"]]
        lines.append((list(range(1, len(scores) + 1)), list(accumulate(scores, max))))
    return Drawing(
        f"{record.model}_search_progress",
        heading,
        "The best score among the first trials of a study, a thin line each; the thick line is their median. The first "
        "trials are the job's own configuration and the method's suggestion, where the search began with them.",
        score_curves(heading, "trials", lines),
        about="training",
    )
