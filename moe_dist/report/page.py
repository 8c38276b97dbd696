"""report.html: one file that holds its pictures and opens without a network. Every text from outside is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from moe_dist import __version__
from moe_dist.plots.drawing import Picture
from moe_dist.plots.tables import Table, percent, to_html
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory
from moe_dist.report.tables import class_table, restarts_in_words, steps_table
from moe_dist.terminal import duration

IMAGE_KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
KINDS = {"train": "Training", "reproduce": "Reproduction", "tune": "Search"}


def render_page(run: RunDirectory, results: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page as HTML: headline, results, figures, steps, classes, job, and how to read the numbers."""
    sections = [_section("results", "Results", "\n".join(map(to_html, results)))]
    if pictures:
        sections.append(_section("figures", "Figures", "\n".join(map(_figure, pictures))))
    steps = steps_table(run)
    if steps.rows:
        sections.append(_section("steps", "Steps", to_html(steps)))
    if run.classifying:
        classes = _details(f"Precision and recall of {len(run.record['classes'])} classes", to_html(class_table(run)))
        sections.append(_section("classes", "Class by class", classes))
    job = _details("The resolved job, every default written out", f"<pre>{escape(run.job_text)}</pre>")
    sections += [_section("job", "Job", job), _section("notes", "How to read these numbers", _notes(run))]
    folder = files("moe_dist.report")
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(run.job["title"] or run.job["name"]),
        kind=escape(f"{KINDS[run.job['kind']]} on {run.record['dataset']}"),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        status=_status(run),
        scores="".join(_score(model, evaluation) for model, evaluation in run.evaluated),
        facts=_facts(run),
        sections="\n".join(sections),
        version=escape(__version__),
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def _details(summary: str, content: str) -> str:
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def _figure(picture: Picture) -> str:
    data, kind = b64encode(picture.path.read_bytes()).decode("ascii"), IMAGE_KINDS[picture.path.suffix]
    return (
        f'<figure><img style="width: {picture.width:.0%}" src="data:{kind};base64,{data}"'
        f' alt="{escape(picture.heading)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _status(run: RunDirectory) -> str:
    """Warnings for the top of the page: the run is not finished, or was restarted."""
    sentences = []
    if run.status != "finished":
        missing = [model.title for model in run.models.values() if model.evaluation is None]
        rest = f"; not evaluated yet: {', '.join(missing)}" if missing else ""
        sentences.append(f"This run is not finished (status: {run.status}){rest}.")
    if run.restarts:
        sentences.append(f"{restarts_in_words(run.restarts)}; the last table of the results tells of each.")
    return "".join(f'<p class="status">{escape(sentence)}</p>' for sentence in sentences)


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


def _facts(run: RunDirectory) -> str:
    """The facts of the run: command, data, split, seed, workers, hardware, time, version and bad samples."""
    record, counts = run.record, run.record["counts"]
    facts = {
        "Command": f"<code>{escape(record['command'])}</code>",
        "Data": escape(
            f"{record['dataset']}, {len(record['classes'])} classes; {counts['train']:,} training, "
            f"{counts['val']:,} validation, {counts['test']:,} test images"
        ),
        "Split": f"<code>{escape(record['split_digest'])}</code>",
        "Seed": str(run.job["seed"]),
        "Workers": str(run.job["workers"]),
        "Hardware": escape(run.hardware),
        "Time": escape(_time(record["seconds"], record["started"])),
        "Version": escape(f"moe-dist {record.get('code', record['version'])}"),
    }
    if (bad := run.bad_samples).count:
        rest = f"; {bad.count - len(bad.first)} more in the folder bad_samples" if bad.count > len(bad.first) else ""
        facts["Bad samples"] = (
            f"{bad.count} left out: of weight 0 in training, in no accuracy; {escape('; '.join(bad.first))}{rest}"
        )
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())


def _time(seconds: float | None, started: str) -> str:
    """The seconds that the run took (None before it ends) and the ISO time of its start, as text."""
    moment = f"started {datetime.fromisoformat(started):%Y-%m-%d %H:%M %Z}".strip()
    return moment if seconds is None else f"{duration(seconds)}, {moment}"


def _notes(run: RunDirectory) -> str:
    """A list of notes on data, selection and comparison."""
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
    return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
