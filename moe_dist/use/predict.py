"""Predicts whatever was given, batch by batch; a bad image is a row with its reason."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.terminal import Show
from moe_dist.use.batches import How, predicted
from moe_dist.use.inputs import open_inputs
from moe_dist.use.model import TrainedModel
from moe_dist.use.rows import Format, KeptRows, Packing, Row, ShownRows, format_of
from moe_dist.use.score import Score
from moe_dist.use.workers import Workers, by_workers


def predict_inputs(
    model: TrainedModel,
    places: Sequence[Path | str],
    show: Show,
    *,
    top_k: int | None = None,
    batch: int = 256,
    reject: float = 0.0,
    form: Format = "csv",
    out: Path | None = None,
    explain: Path | None = None,
    workers: Workers | None = None,
) -> Score:
    """Write a row for every sample of `places` to `out` (None: standard output), and return their score.

    reject: a sample whose likeliest class has a smaller probability is marked as rejected. explain: a folder for a
    picture of each image and where experts look. workers: processes of a cluster that predict instead of this one.
    Samples that `out` has from a command before are not predicted again. Raises UserError where an input is missing or
    the model does not take it, `out` is of another model or being written, or the model shows no maps.
    """
    training_classes = model.method.info.class_names
    model.require_top_k(top_k)
    how = How(top_k, batch, reject, explain)
    how.explainer(model)  # raises UserError before any work
    with tempfile.TemporaryDirectory(prefix="moe-dist-") as fetched:
        inputs = open_inputs(places, model.preprocessing, training_classes, Path(fetched))
        for sentence in inputs.notices:
            show.notice(sentence)
        if model.preprocessing.crop_roi:
            show.notice("the network was trained on images cut to regions of interest; these are taken whole")
        with closing(_opened(model, how, form, out)) as rows:
            score, done = Score(model.predicts, model.classes, training_classes), set()
            for row in rows.before:
                score.add([row])
                done.add(row.image)
            missing = [item for item in inputs.items if item.name not in done]
            here = nullcontext(partial(predicted, model, how=how))
            with here if workers is None else by_workers(workers, how, show) as predict, show.working("predictions"):
                for part in _counted(predict(missing), len(missing), show):
                    rows.add(part)
                    score.add(part)
            rows.finish(score.values())
    return score


def _opened(model: TrainedModel, how: How, form: Format, out: Path | None) -> ShownRows | KeptRows:
    """Where rows go. Raises UserError where a file of that format cannot be written there."""
    written = format_of(form, len(model.classes), model.gate_sizes)
    packing: Packing | None = None
    if form == "parquet":
        from moe_dist.use.parquet import ParquetFile

        if out is None:
            raise UserError("--format parquet: a Parquet file is no text to be printed; name it with --out")
        packing = ParquetFile(list(model.gate_sizes))
    if out is None:
        return ShownRows(written)
    about = {name: value for name, value in model.about.items() if name not in ("card", "calibration")}
    made_by = {"model": about, "top_k": how.top_k, "reject": how.reject, "format": form}
    return KeptRows(out, written, made_by, packing)


def _counted(parts: Iterable[list[Row]], total: int, show: Show) -> Iterator[list[Row]]:
    """The parts, while progress and rate are shown."""
    started, done = time.monotonic(), 0
    for part in parts:
        yield part
        done += len(part)
        rate = done / max(time.monotonic() - started, 1e-9)
        show.update(done, total, f"{done:,}/{total:,}, {rate:,.0f}/s")
