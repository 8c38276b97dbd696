"""The tables of a report: the run beside the paper, its experts, the classes one by one, and the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from moe_dist.data.longtail import FEW_BELOW, MANY_ABOVE
from moe_dist.metrics.classification import LONG_TAIL_FROM, Interval
from moe_dist.plots.tables import ABSENT, PAPER_MARK, Column, Row, Table, percent
from moe_dist.record.restarts import Restart, seconds_lost
from moe_dist.report.run import RunDirectory
from moe_dist.terminal import duration

Metrics = Mapping[str, float]
"""A run's flat metrics: <model>/<metric> -> value."""


def milliseconds(value: float) -> str:
    """A time in ms, with three significant figures; the end of an interval may be 0 or less."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, 2 - magnitude)}f} ms"


SECTIONS: tuple[tuple[tuple[str, str, Callable[[float], str]], ...], ...] = (
    (
        ("map", "Mean average precision (mAP)", percent),
        ("balanced_accuracy", "Balanced accuracy", "{:.3f}".format),
        ("top1", "Top-1 accuracy", percent),
        ("top1_chosen", "Top-1, chosen on validation", percent),
        ("top1_best_on_test", "Top-1, best epoch CHOSEN ON TEST", percent),
        ("top1_many", "Top-1, many", percent),
        ("top1_medium", "Top-1, medium", percent),
        ("top1_few", "Top-1, few", percent),
        ("ece", "Calibration error (ECE)", "{:.3f}".format),
        ("ece_calibrated", "ECE, fitted temperature", "{:.3f}".format),
        ("accuracy", "Clustering accuracy (ACC)", percent),
        ("accuracy_chosen", "ACC, chosen on validation", percent),
        ("nmi", "Normalised mutual information (NMI)", "{:.3f}".format),
        ("ari", "Adjusted Rand index (ARI)", "{:.3f}".format),
    ),
    (
        ("latency_median_ms", "Time per image, median", milliseconds),
        ("latency_p99_ms", "Time per image, p99", milliseconds),
        ("latency_mean_ms", "Time per image, mean", milliseconds),
    ),
    (
        ("train_seconds", "Training, wall clock", duration),
        ("train_seconds_summed", "Training, summed over experts", duration),
        ("parameters", "Parameters", "{:,.0f}".format),
    ),
)
"""The rows of the results table by section: key in metrics.json after the model, heading, format of a value."""
SHARES = ("balanced_accuracy", "ece", "ece_calibrated", "nmi")
"""The metrics that are shares and not written in per cent."""
BOUNDS_NOTE = (
    "Such an interval is cut where it would pass a bound of its metric (0 or 100 %); so near to one, Student's t is "
    "rough."
)
GROUPS_NOTE = (
    f"Many, medium, few: the test images of classes with more than {MANY_ABOVE}, {FEW_BELOW} to {MANY_ABOVE} and fewer "
    f"than {FEW_BELOW} training images; shown if the imbalance factor is {LONG_TAIL_FROM:g} or more."
)


def within_bounds(interval: Interval, key: str, write: Callable[[float], str]) -> Interval:
    """The interval of a metric, called `key` and written by `write`, cut at the least and the most that it can be.

    The mean cannot be outside, so what is left of a 95 % interval is one, too.
    """
    low, high = -math.inf, math.inf
    if write in (duration, milliseconds):
        low = 0.0
    elif key == "ari":
        low, high = -0.5, 1.0
    elif write is percent or key in SHARES:
        low, high = 0.0, 1.0
    return Interval(max(low, interval.low), min(high, interval.high))


def results_table(run: RunDirectory, metrics: Metrics) -> Table:
    """The run's models side by side, each beside the paper's figures if the job names a table of a paper.

    A metric that no model has, ours or the paper's, gets no row.
    """
    sections = [[_metric_row(run, metrics, *line) for line in lines] for lines in SECTIONS]
    sections[0].insert(3, Row("Top-1, 95 % interval", _cells(run, _intervals(run, metrics), {})))
    for report, _ in run.reports():
        sections[0] += [_metric_row(run, metrics, *line) for line in report.rows]
    for k in _top_ks(run):
        sections[0].append(_metric_row(run, metrics, f"top1_k{k}", f"Top-1, k = {k}", percent))
        key, heading = f"latency_median_ms_k{k}", f"Time per image, median, k = {k}"
        sections[1].append(_metric_row(run, metrics, key, heading, milliseconds))
    labels = {model.name: evaluation.labels_used for model, evaluation in run.evaluated}
    sections[2].append(Row("Labels used", _cells(run, labels, {})))
    kept = [[row for row in rows if set(row.cells) != {ABSENT}] for rows in sections]
    return Table(
        title=f"Results on the test split of {run.record['dataset']} (n = {run.record['counts']['test']:,})",
        columns=_result_columns(run),
        rows=tuple(
            Row(row.heading, row.cells, begins_section=place == 0 and number > 0)
            for number, rows in enumerate(kept)
            for place, row in enumerate(rows)
        ),
        notes=(*_result_notes(run), *_notes_on_chosen_on_test(run, metrics)),
        corner="Metric",
    )


def _result_columns(run: RunDirectory) -> tuple[Column, ...]:
    """A column for every model, followed by the paper's if it has one."""
    columns = []
    for model in run.models.values():
        columns.append(Column(model.title, "this run" if run.paper else ""))
        if model.paper_column:
            columns.append(Column(model.title, f"paper {PAPER_MARK}", paper=True))
    return tuple(columns)


def _cells(run: RunDirectory, ours: Mapping[str, str], papers: Mapping[str, str]) -> tuple[str, ...]:
    """The cells of a row: `ours` by model, `papers` by column of the paper's table."""
    cells = []
    for name, model in run.models.items():
        cells.append(ours.get(name, ABSENT))
        if model.paper_column:
            cells.append(papers.get(model.paper_column, ABSENT))
    return tuple(cells)


def _metric_row(run: RunDirectory, metrics: Metrics, key: str, heading: str, write: Callable[[float], str]) -> Row:
    """The row of one metric, called `key` in ours and in the paper's figures."""
    ours = {model: write(metrics[f"{model}/{key}"]) for model in run.models if f"{model}/{key}" in metrics}
    return Row(heading, _cells(run, ours, run.paper.rows.get(key, {}) if run.paper else {}))


def _intervals(run: RunDirectory, metrics: Metrics) -> dict[str, str]:
    """The interval of top-1 by model."""
    return {
        model.name: f"{100 * metrics[f'{model.name}/top1_low']:.1f}–{100 * metrics[f'{model.name}/top1_high']:.1f} %"
        for model, _ in run.classifying
    }


def _top_ks(run: RunDirectory) -> list[int]:
    """Every k for which some model was evaluated with its k experts of largest gate weight alone."""
    return sorted({k for _, evaluation in run.evaluated for k in evaluation.top_k})


def _result_notes(run: RunDirectory) -> tuple[str, ...]:
    """Notes on the rows that this run has, and on the paper's figures."""
    notes = []
    if run.classifying:
        notes.append(
            f"95 % interval: Wilson's, over the test images of this one run (seed {run.job['seed']}); the spread "
            "between seeds is not in it."
        )
    if len(run.classifying) < len(run.evaluated):
        notes.append(
            "ACC: the share of images in the class that their cluster is matched with, under the best one-to-one "
            "matching; NMI: mutual information over the geometric mean of both entropies."
        )
    notes.append("Time per image: batch size 1 after warm-up, the network alone; p99 is the 99th percentile.")
    chosen = [(model, evaluation.chosen_epoch) for model, evaluation in run.evaluated]
    epochs = [f"{model.title}: {epoch}" for model, epoch in chosen if epoch is not None]
    if epochs:
        notes.append(
            "Chosen on validation: of the last stage's epochs with a checkpoint, the model of the highest score on the "
            f"validation split ({', '.join(epochs)}). All other figures are the last epoch's."
        )
    if run.class_groups:
        notes.append(GROUPS_NOTE)
    if _top_ks(run):
        notes.append("k: predicted by the k experts of largest gate weight alone; elsewhere all experts take part.")
    if paper := run.paper:
        notes.append(
            f"{PAPER_MARK} As printed in {paper.source} (data: {paper.dataset}); not measured here. {paper.note}"
        )
        if paper.dataset != (dataset := run.record["dataset"]):
            notes.append(
                f"This run used {dataset}, the paper {paper.dataset}: figures of different data do not compare one to "
                "one."
            )
    return tuple(notes)


def _notes_on_chosen_on_test(run: RunDirectory, metrics: Metrics) -> Iterator[str]:
    """What is to be thought of the best of the epochs that were tested."""
    key = "best_on_test_epoch"
    epochs = [f"{m.title}: {metrics[f'{name}/{key}']}" for name, m in run.models.items() if f"{name}/{key}" in metrics]
    if epochs:
        yield (
            f"Best epoch chosen on test ({', '.join(epochs)}): the highest of the epochs that were tested while "
            "training, for comparison with papers that report so. It is chosen by the images it is measured on and so "
            "too high; the last epoch's figure is this run's result."
        )


def experts_table(run: RunDirectory, metrics: Metrics) -> Table:
    """The top-1 of each model and of its experts by themselves, overall and by group of classes.

    A model whose experts do not predict classes is left out; the table may have no rows.
    """
    columns = {"top1": "all"} | {f"top1_{group}": group for group in run.class_groups}
    rows: list[Row] = []
    for model, evaluation in run.evaluated:
        if evaluation.choices is None:
            continue
        lines = {model.title: ""} | {
            f"{model.title}, expert {expert}": f"expert{expert}_" for expert in range(evaluation.choices.shape[1])
        }
        for place, (heading, who) in enumerate(lines.items()):
            shares = [metrics.get(f"{model.name}/{who}{key}") for key in columns]
            cells = tuple(ABSENT if share is None else percent(share) for share in shares)
            rows.append(Row(heading, cells, begins_section=place == 0 and bool(rows)))
    return Table(
        title=f"Experts by themselves: top-1 on the test split of {run.record['dataset']} "
        f"(n = {run.record['counts']['test']:,})",
        columns=tuple(Column("", name) for name in columns.values()),
        rows=tuple(rows),
        corner="Model",
        sorts=True,
        about="experts",
    )


def class_table(run: RunDirectory) -> Table:
    """Precision and recall of every class, for every model that predicts classes; there must be at least one."""
    columns = [Column("", "test images")]
    for model, _ in run.classifying:
        columns += [Column(model.title, "precision"), Column(model.title, "recall")]
    metrics = [evaluation.metrics for _, evaluation in run.classifying]
    rows = []
    for c, name in enumerate(run.record["classes"]):
        values = [value for each in metrics for value in (each["precision"][c], each["recall"][c])]
        shares = [ABSENT if math.isnan(value) else f"{value:.3f}" for value in values]
        rows.append(Row(name, (f"{metrics[0]['support'][c]:,}", *shares)))
    return Table(
        title=f"Precision and recall by class, test split of {run.record['dataset']}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(f"{ABSENT}: undefined (precision of a class never predicted, recall of one without a test image).",),
        corner="Class",
        sorts=True,
    )


def steps_table(run: RunDirectory) -> Table:
    """Every step and training stage of each model, in order: how long it took and the numbers it left."""
    rows: list[Row] = []
    for model in run.models.values():
        lines = [(name.replace("_", " "), step.seconds, _scalars(step.values)) for name, step in model.steps.items()]
        logs = [*model.earlier_logs.values(), model.log]
        lines += [line for log in logs for line in _training_lines(log)]
        if model.saves:
            lines.append(("checkpoints", sum(model.saves), f"{len(model.saves)} saved, for which steps waited so long"))
        for place, (name, seconds, left) in enumerate(lines):
            heading = model.title if place == 0 else ""
            rows.append(Row(heading, (name, duration(seconds), left), begins_section=place == 0 and bool(rows)))
    columns = (Column("", "Step"), Column("", "Time"), Column("", "What it left"))
    notes = ("Training: from the first to the last line of its log.",)
    return Table("Steps of this run", columns, tuple(rows), notes, corner="Model", left=True)


def restarts_table(run: RunDirectory) -> Table:
    """What the run survived: each restart, where it went on, and the seconds that it cost; it may have no rows."""
    rows = [
        Row(
            each["what"],
            (
                each["of"],
                datetime.fromtimestamp(each["time"]).strftime("%Y-%m-%d %H:%M:%S"),
                ABSENT if each["step"] is None else str(each["step"]),
                ABSENT if each["from_step"] is None else str(each["from_step"]),
                ABSENT if each.get("workers") is None else str(each["workers"]),  # absent in runs of before
                ABSENT if each["seconds_lost"] is None else duration(each["seconds_lost"]),
            ),
        )
        for each in run.restarts
    ]
    return Table(
        title=restarts_in_words(run.restarts),
        columns=tuple(Column("", name) for name in ("of", "when", "after step", "went on from", "workers", "lost")),
        rows=tuple(rows),
        notes=(
            "Lost: from the last step that was heard of until it was done again: noticing the fault, new workers and "
            "repeated steps. On a CPU, the figures are those of an unbroken run, to the last bit where the number of "
            "workers stayed.",
        ),
        corner="What happened",
        left=True,
    )


def restarts_in_words(restarts: Sequence[Restart]) -> str:
    """How many restarts there were, and what they cost."""
    s = "s" if len(restarts) > 1 else ""
    return f"Survived: {len(restarts)} restart{s}, {duration(seconds_lost(restarts))} lost"


def _training_lines(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """The name, the seconds and the extent of each training stage."""
    lines = []
    for stage in dict.fromkeys(record["stage"] for record in log):
        records = [record for record in log if record["stage"] == stage]
        seconds = records[-1]["time"] - records[0]["time"]
        steps = len({record["step"] for record in records})
        epochs = len({record["epoch"] for record in records})
        lines.append((f"training: {stage}", seconds, f"epochs {epochs}, logged steps {steps}"))
    return lines


def _scalars(values: Mapping[str, Any]) -> str:
    """The numbers and words among a step's values, on one line."""
    shown = {key: value for key, value in values.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{key.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
        for key, value in shown.items()
    )
