"""A review of DFCP-MoE's pseudo-labels: what a person should look at, as a list to fill in and a page of thumbnails.

The list is read back as `trusted.labels`: it holds the trusted images with their labels, then outliers and the least
certain pseudo-labels without one. A line counts once a label is written into it.

Letters in shapes: U clustered images, n of them, S image side.
"""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.errors import UserError
from moe_dist.files import write_text
from moe_dist.methods.dfcp.trusted import TRUSTED
from moe_dist.methods.phases import StepResult
from moe_dist.places import ModelFolder, cache_folder, shared_cache
from moe_dist.record.results import Results
from moe_dist.train.finished import job_of_run

LIST, PAGE = "review.csv", "review.html"
OUTLIER, UNCERTAIN = "outlier", "uncertain"
NEEDED = ("split", "pseudo_labels")
_STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:2rem;max-width:80rem}h2{margin:1.6rem 0 .4rem}
section{display:flex;flex-wrap:wrap;gap:.6rem}figure{margin:0;width:9rem;overflow-wrap:anywhere;font-size:.72rem}
img{width:9rem;height:9rem;display:block;border:3px solid #bbb}.outlier img{border-color:#b3261e}
.uncertain img{border-color:#c77700}.trusted img{border-color:#2e7d32}"""


@dataclass(frozen=True)
class Row:
    """A line of the list. distance: to the nearest trusted image, as a share of the threshold tau*."""

    image: str
    label: str
    state: str
    suggestion: str = ""
    cluster: str = ""
    distance: str = ""


def review(run: Path, model: str | None, out: Path, uncertain: int) -> dict[str, int]:
    """Write review.csv and review.html into the folder `out`; how many images of each state they hold.

    model: its name in the job, which a run of several DFCP-MoEs needs. uncertain: how many pseudo-labels to show, the
    least certain first. Raises UserError where the run has no pseudo-labels yet, and where a list is there already.
    """
    if (out / LIST).exists():
        raise UserError(f"{out / LIST}: is there already, perhaps filled in; name another folder by --out, or move it")
    job = job_of_run(run)
    results = _results(run, list(job.models), model)
    data = open_data(job.data, job.seed, cache_folder(), ensure_shards(job.data, shared_cache()))
    rows, samples = _rows(data, results["split"], results["pseudo_labels"], uncertain)
    write_text(out / LIST, _as_csv(rows))
    write_text(out / PAGE, _as_page(f"{job.name}: pseudo-labels to look at", rows, samples, data))
    return {state: sum(row.state == state for row in rows) for state in (TRUSTED, OUTLIER, UNCERTAIN)}


def _results(run: Path, models: Sequence[str], asked: str | None) -> Results:
    """The finished steps of the model that is meant. Raises UserError where that is not clear, or it has none."""
    found = {name: Results(dict(ModelFolder(run / name).current().steps)) for name in models}
    labelled = {name: results for name, results in found.items() if all(step in results for step in NEEDED)}
    if asked is not None and asked not in labelled:
        there = ", ".join(labelled) or "no model"
        raise UserError(f"{run}: model {asked!r} has no pseudo-labels; there are those of {there}")
    if not labelled:
        raise UserError(f"{run}: no model has pseudo-labels yet; run a job of dfcp up to them, or go on with --resume")
    if asked is None and len(labelled) > 1:
        raise UserError(f"{run}: several models have pseudo-labels; choose one by --model: {', '.join(labelled)}")
    return labelled[asked or next(iter(labelled))]


def _rows(
    data: OpenedData, split: StepResult, pseudo_labels: StepResult, uncertain: int
) -> tuple[list[Row], list[int]]:
    """The lines of the list, and the sample of each."""
    names, classes = data.train.names(), data.info.class_names
    parts, found = split.arrays, pseudo_labels.arrays
    rows = [Row(names[n], classes[label], TRUSTED) for n, label in zip(parts["trusted"], parts["labels"])]
    samples = parts["trusted"].tolist()
    share = found["distances"] / pseudo_labels.values["threshold"]
    outliers = np.flatnonzero(found["pseudo"] < 0)
    labelled = np.flatnonzero(found["pseudo"] >= 0)
    for state, members, most in ((OUTLIER, outliers, len(outliers)), (UNCERTAIN, labelled, uncertain)):
        for member in members[np.argsort(-share[members], kind="stable")][:most].tolist():
            sample, nearest, merged = (int(array[member]) for array in (
                parts["clustered"], found["nearest"], found["merged"]))  # fmt: skip
            cluster = classes[merged] if merged >= 0 else ""
            rows.append(Row(names[sample], "", state, classes[nearest], cluster, f"{share[member]:.3f}"))
            samples.append(sample)
    return rows, samples


def _as_csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def _as_page(title: str, rows: Sequence[Row], samples: Sequence[int], data: OpenedData) -> str:
    """Thumbnails by class: those to look at beside a few trusted ones, outliers under their nearest class."""
    by_class: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_class.setdefault(row.suggestion or row.label, []).append(number)
    sections = []
    for name, members in sorted(by_class.items()):
        looked_at = [number for number in members if rows[number].state != TRUSTED]
        known = [number for number in members if rows[number].state == TRUSTED][:3]
        if looked_at:
            figures = "".join(_figure(rows[number], samples[number], data) for number in (*known, *looked_at))
            sections.append(f"<h2>{escape(name)}: {len(looked_at)} to look at</h2><section>{figures}</section>")
    told = (
        "Green: trusted, for comparison. Red: outliers, under the class of the nearest trusted image. Orange: the "
        "least certain pseudo-labels. Where you know the class, write it into the column label of "
        f"{LIST}, and give that list to the next run as trusted.labels."
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{escape(title)}</h1><p>{told}</p>{''.join(sections)}"
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def _figure(row: Row, sample: int, data: OpenedData) -> str:
    pixels = data.train.images.uint8(np.array([sample]))[0].permute(1, 2, 0).numpy()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    said = f"{row.distance} of tau*" if row.distance else row.label
    source = f"data:image/png;base64,{b64encode(png.getvalue()).decode()}"
    caption = f"<figcaption>{escape(row.image)}<br>{escape(said)}</figcaption>"
    return f'<figure class="{row.state}"><img src="{source}" alt="">{caption}</figure>'
