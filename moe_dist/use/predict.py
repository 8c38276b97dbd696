"""Predicts whatever was given, batch by batch; a bad image is a row with its reason."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe_dist.errors import UserError
from moe_dist.terminal import Show
from moe_dist.use.inputs import Item, open_inputs
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing
from moe_dist.use.rows import BEST, Format, KeptRows, Row, ShownRows, format_of
from moe_dist.use.score import Score

DIGITS = 6
"""Decimals of a probability in a row: what is read back from a file is what was counted and compared."""
DECODERS = 4
"""Threads that read and decode the next batch while one is computed."""


class Rows(Protocol):
    """Where rows go."""

    @property
    def before(self) -> Iterator[Row]:
        """Those that are there from earlier commands."""

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows."""


def predict_inputs(
    model: TrainedModel,
    paths: Sequence[Path],
    show: Show,
    *,
    top_k: int | None = None,
    batch: int = 256,
    reject: float = 0.0,
    form: Format = "csv",
    out: Path | None = None,
) -> Score:
    """Write a row for every sample of `paths` to `out` (None: standard output), and return their score.

    reject: a sample whose likeliest class has a smaller probability is marked as rejected.
    Samples that `out` has from a command before are not predicted again. Raises UserError where an input is missing or
    the model does not take it, or `out` is of another model.
    """
    training_classes = model.method.info.class_names
    inputs = open_inputs(paths, model.preprocessing, training_classes)
    for sentence in inputs.notices:
        show.notice(sentence)
    if model.preprocessing.crop_roi:
        show.notice("the network was trained on images cut to regions of interest; these are taken whole")
    model.require_top_k(top_k)
    written = format_of(form, len(model.classes), model.gate_sizes)
    about = {name: value for name, value in model.about.items() if name not in ("card", "calibration")}
    made_by = {"model": about, "top_k": top_k, "reject": reject, "format": form}
    rows = ShownRows(written) if out is None else KeptRows(out, written, made_by)
    score = Score(model.predicts, model.classes, training_classes)
    done = set()
    for row in rows.before:
        score.add([row])
        done.add(row.image)
    missing = [item for item in inputs.items if item.name not in done]
    with show.working("predictions"):
        for part in _predicted(model, missing, top_k, batch, reject, show):
            rows.add(part)
            score.add(part)
    rows.finish(score.values())
    return score


def _predicted(
    model: TrainedModel, items: Sequence[Item], top_k: int | None, batch: int, reject: float, show: Show
) -> Iterator[list[Row]]:
    """The rows of `items`, a batch at a time."""
    # A gate of top-k has the weights of all experts only where more than one sample is computed.
    size = max(min(batch, len(items)), 1 if top_k is None else 2)
    started, full = time.monotonic(), model.preprocessing.empty(size)
    for number, (part, read) in enumerate(_read_ahead(model.preprocessing, items, size)):
        samples = model.preprocessing.empty(len(part))
        for row, sample in enumerate(read):
            if isinstance(sample, Tensor):
                samples[row] = sample
        if number == 0:
            full[: len(samples)] = samples
        predictions = model.predict_samples(samples, full, top_k)
        best = [[(name, round(share, DIGITS)) for name, share in row] for row in predictions.best(BEST)]
        gates = {name: gate.tolist() for name, gate in predictions.gates.items()}
        rows = []
        for row, item in enumerate(part):
            if isinstance(read[row], Tensor):
                own = {name: gate[row] for name, gate in gates.items()}
                rows.append(Row(item.name, best[row], own, item.label, rejected=best[row][0][1] < reject))
            else:
                rows.append(Row(item.name, label=item.label, reason=str(read[row])))
        yield rows
        done = number * size + len(part)
        rate = done / max(time.monotonic() - started, 1e-9)
        show.update(done, len(items), f"{done:,}/{len(items):,}, {rate:,.0f}/s")


def _read_ahead(
    preprocessing: Preprocessing, items: Sequence[Item], size: int
) -> Iterator[tuple[Sequence[Item], list[Tensor | str]]]:
    """Batches of `size` items with their samples, or a sentence for one that cannot be used; the next is being read."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: list[tuple[Sequence[Item], list[Future[Tensor | str]]]] = []
        try:
            for start in range(0, len(items), size):
                part = items[start : start + size]
                ahead.append((part, [pool.submit(_read, preprocessing, item) for item in part]))
                if len(ahead) > 1:
                    before, futures = ahead.pop(0)
                    yield before, [future.result() for future in futures]
            for part, futures in ahead:
                yield part, [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _read(preprocessing: Preprocessing, item: Item) -> Tensor | str:
    """The sample of an item, or why there is none."""
    try:
        return preprocessing.sample(item.read())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, UserError) as error:
        return " ".join(str(error).split())


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
