"""report.html of a run: what its sections are, and what stands in each. Every text from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from moe_dist.places import FINISHED
from moe_dist.plots.drawing import About, Picture
from moe_dist.plots.tables import Table, percent, to_html
from moe_dist.report.frame import Section, facts_html, folded, link, listed, whole_page
from moe_dist.report.inline import figure_html
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory
from moe_dist.report.tables import class_table, steps_table
from moe_dist.report.warnings import warnings_of
from moe_dist.terminal import duration

KINDS = {"train": "Training", "reproduce": "Reproduction", "tune": "Search"}
FILES = ("job.yaml", "run.json", "metrics.json", "results.md")
"""Files of a run directory that the page links to."""


def render_page(run: RunDirectory, results: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page as HTML. results: the tables, in the section of what each is about."""
    title = run.job["title"] or run.job["name"]
    return whole_page(title, f"{KINDS[run.job['kind']]} on {run.record['dataset']}", _headline(run), _sections(
        run, results, pictures
    ))  # fmt: skip


def _sections(run: RunDirectory, results: Sequence[Table], pictures: Sequence[Picture]) -> list[Section]:
    """The sections in the page's order; some may be empty."""
    figures = {id(picture): figure_html(picture, number) for number, picture in enumerate(pictures, 1)}

    def about(subject: About, *further: str) -> str:
        tables = [to_html(table) for table in results if table.about == subject]
        shown = [figures[id(picture)] for picture in pictures if picture.about == subject]
        drawn = [f'<div class="drawings">{"".join(shown)}</div>'] if shown else []
        return "\n".join([*tables, *drawn, *filter(None, further)])

    classes = run.classifying and folded(
        f"Precision and recall of {len(run.record['classes'])} classes", to_html(class_table(run))
    )
    tables = "\n".join(to_html(table) for table in results if table.about == "results")
    return [
        Section("warnings", "Warnings", listed(warnings_of(run), "warnings")),
        Section("results", "Results", tables),
        Section("training", "Training", about("training")),
        Section("classes", "Class by class", about("classes", classes or "")),
        Section("experts", "Experts and gates", about("experts")),
        Section("method", "Inside the method", about("method")),
        Section("data", "Data", about("data")),
        Section("environment", "Time and machines", _environment(run)),
        Section("job", "What was asked", _job(run)),
        Section("notes", "How to read these numbers", listed(_notes(run))),
    ]


def _headline(run: RunDirectory) -> str:
    """The state of the run where it is not finished, the models' scores, and what the run is."""
    missing = [model.title for model in run.models.values() if model.evaluation is None]
    rest = f"; not evaluated yet: {', '.join(missing)}" if missing else ""
    state = "" if run.status == FINISHED else f"This run is not finished (status: {run.status}){rest}."
    scores = "".join(_score(model, evaluation) for model, evaluation in run.evaluated)
    counts = run.record["counts"]
    facts = {
        "Command": f"<code>{escape(run.record['command'])}</code>",
        "Data": escape(
            f"{run.record['dataset']}, {len(run.record['classes'])} classes; {counts['train']:,} training, "
            f"{counts['val']:,} validation, {counts['test']:,} test images"
        ),
        "Split": f"<code>{escape(run.record['split_digest'])}</code>",
        "Seed": str(run.job["seed"]),
        "Beside this page": ", ".join(_links(run.path)),
    }
    status = f'<p class="status">{escape(state)}</p>' if state else ""
    return f'{status}<div class="scores">{scores}</div>{facts_html(facts)}'


def _links(run: Path) -> list[str]:
    """Links to the files of the run, and from a cell to its grid."""
    grid = [link("../../report.html", "the grid of this cell")] if run.absolute().parent.name == "cells" else []
    return grid + [link(name, name) for name in FILES if (run / name).is_file()]


def _score(model: ModelRun, evaluation: Evaluation) -> str:
    if evaluation.predicts == "classes":
        low, high = evaluation.metrics["top1_interval"]
        score = evaluation.metrics["top1"]
        named = f"top-1 on test, 95 % interval {100 * low:.1f}–{100 * high:.1f} %"
    else:
        score = evaluation.clustering["accuracy"]
        named = f"clustering accuracy on test, NMI {evaluation.clustering['nmi']:.3f}"
    return (
        f'<div class="score"><span>{escape(model.title)}</span><b>{percent(score)}</b>'
        f"<span>{named}</span>"
        f"<span>labels used: {escape(evaluation.labels_used)}</span></div>"
    )


def _environment(run: RunDirectory) -> str:
    """When and how long, on which machines, by which versions; then every step of every model."""
    record = run.record
    facts = {
        "Time": _time(record["seconds"], record["started"]),
        "Hardware": run.hardware,
        "Workers": f"{run.job['workers']}" + (f", launcher {record['launcher']}" if "launcher" in record else ""),
        "Version": f"moe-dist {record.get('code', record['version'])}",
        "torch": record.get("torch", ""),
    }
    steps = steps_table(run)
    known = facts_html({name: escape(fact) for name, fact in facts.items() if fact})
    return known + (to_html(steps) if steps.rows else "")


def _time(seconds: float | None, started: str) -> str:
    """The seconds that the run took (None before it ends) and the ISO time of its start, as text."""
    moment = f"started {datetime.fromisoformat(started):%Y-%m-%d %H:%M %Z}".strip()
    return moment if seconds is None else f"{duration(seconds)}, {moment}"


def _job(run: RunDirectory) -> str:
    return folded("The resolved job, every default written out", f"<pre>{escape(run.job_text)}</pre>")


def _notes(run: RunDirectory) -> list[str]:
    """Notes on data, selection and comparison."""
    notes = [
        "Training, schedules and thresholds see the training and validation parts alone, and so does the choice of an "
        "epoch; the test split is read at the end.",
        "Labels that a method must not see are used only to score its pseudo-labels and clusters, never to train.",
        "Mean average precision: area under each class's one-against-the-rest precision-recall curve (the step-wise "
        "sum, not interpolated), averaged over the classes with a test image. Balanced accuracy: recall averaged "
        "over the same classes.",
        "Times belong to the hardware named above. Training by the wall clock includes the steps before it; summed "
        "over experts, trainings that ran side by side are added up, and a model trained in one piece counts once.",
    ]
    absent = max((evaluation.metrics["classes_absent"] for _, evaluation in run.classifying), default=0)
    if absent:
        notes.append(f"{absent} of {len(run.record['classes'])} classes have no test image and are in no average.")
    return notes
