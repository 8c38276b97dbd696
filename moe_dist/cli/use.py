"""The commands that use what was trained: predict, export, review."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moe_dist.data.storage.store import is_url
from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.paths import typed
from moe_dist.record.run_place import RunPlace, run_place
from moe_dist.terminal import Show, console, errors, say, short


class Checkpoint(StrEnum):
    """The checkpoint of a training."""

    chosen = "chosen"
    last = "last"


class RowsFormat(StrEnum):
    """The format of predictions."""

    csv = "csv"
    json = "json"
    parquet = "parquet"


class ExportTo(StrEnum):
    """What a model is exported to."""

    folder = "folder"
    onnx = "onnx"
    torch = "torch"


RunDirectory = Annotated[
    RunPlace,
    typer.Argument(
        metavar="RUN_DIR", help="A run directory or an exported folder, here or at a URL.", parser=run_place("RUN_DIR")
    ),
]
Model = Annotated[str | None, typer.Option(help="The model's name, in a run of several.")]
WhichCheckpoint = Annotated[Checkpoint, typer.Option(help="The checkpoint chosen on validation, or the last one.")]
Calibrated = Annotated[bool, typer.Option("--calibrated", help="At the temperature that was fitted on validation.")]


def place(text: str) -> str:
    """A URL as it is, and a path of this machine. Raises UserError where the name of a path is not UTF-8."""
    return text if is_url(text) else str(typed("INPUT", "rename it")(text))


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Images, folders and tars of images, also under a URL; for methods of vectors .csv, .npz or .npy.",
        parser=place,
    ),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Only the k experts of the largest gate weights.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that are computed at once.")]
Reject = Annotated[
    float, typer.Option(min=0, max=1, help="Mark a row whose class has a smaller probability as rejected.")
]
Form = Annotated[RowsFormat, typer.Option("--format", help="csv, json (an object a line), or parquet.")]
RowsFile = Annotated[
    Path | None,
    typer.Option(
        help="The file of the rows; the same command goes on with it. Default: standard output.",
        parser=typed("--out", "name a file of this machine"),
    ),
]
Explained = Annotated[
    Path | None,
    typer.Option(
        help="A folder for a picture of each image, and where each expert looks, in methods that show it.",
        parser=typed("--explain", "name a folder of this machine"),
    ),
]
Processes = Annotated[
    int, typer.Option(min=0, help="Processes of a Ray cluster that predict; 0: this one, without Ray.")
]


def predict(
    run: RunDirectory,
    inputs: Inputs,
    model: Model = None,
    checkpoint: WhichCheckpoint = Checkpoint.chosen,
    calibrated: Calibrated = False,
    top_k: TopK = None,
    batch: BatchSize = 256,
    reject: Reject = 0.0,
    form: Form = RowsFormat.csv,
    out: RowsFile = None,
    explain: Explained = None,
    workers: Processes = 0,
) -> None:
    """Predict images, or vectors: a row each, also for one that cannot be read. Subfolders called as the classes are
    scored."""
    from moe_dist.use.batches import best_device
    from moe_dist.use.load import Loading
    from moe_dist.use.predict import predict_inputs
    from moe_dist.use.workers import Workers

    shown = console if out is not None else errors  # standard output is the rows'
    loading = Loading(run.url or str(run.folder.absolute()), model, checkpoint.value, calibrated)
    loaded = loading.load().to(best_device())
    about, asked_for = loaded.about, Workers(workers, loading) if workers else None
    at = f", at temperature {loaded.temperature:.3f}" if calibrated else ""
    say(shown, (about["model"], "bold"), f" of {about['run']}, {about['checkpoint']}, on {loaded.device.type}{at}")
    with raising_disk_errors(None if out is None else out.parent, "the rows", "give the command again"):
        score = predict_inputs(
            loaded,
            inputs,
            Show(shown),
            top_k=top_k,
            batch=batch,
            reject=reject,
            form=form.value,
            out=out,
            explain=explain and explain.absolute(),
            workers=asked_for,
        )
    say(shown, score.sentence())
    if out is not None:
        say(shown, f"rows: {short(out)}")


def export(
    run: RunDirectory,
    to: Annotated[ExportTo, typer.Option(help="folder: for moe_dist.load; onnx; torch: torch.export's .pt2.")],
    out: Annotated[Path, typer.Option(help="The folder.", parser=typed("--out", "name a folder of this machine"))],
    model: Model = None,
    checkpoint: WhichCheckpoint = Checkpoint.chosen,
    calibrated: Calibrated = False,
    licence: Annotated[str | None, typer.Option(help="The licence of the weights, for the model card.")] = None,
) -> None:
    """Write a trained model for others, with a model card: a folder that moe_dist.load reads, ONNX, or torch's .pt2."""
    from moe_dist.use.export import export as export_model

    with raising_disk_errors(out, "the exported model", "give the command again"):
        checked = export_model(
            run.fetched(),
            to.value,
            out,
            model=model,
            checkpoint=checkpoint.value,
            calibrated=calibrated,
            licence=licence,
        )
    say(console, checked)
    say(console, f"model: {short(out)}")


def review(
    run: RunDirectory,
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write to (default: RUN_DIR/review).")] = None,
    uncertain: Annotated[int, typer.Option(min=0, help="How many of the least certain pseudo-labels to show.")] = 100,
) -> None:
    """Write what to look at of DFCP-MoE's pseudo-labels: a list to fill in, and a page of thumbnails."""
    from moe_dist.use.review import LIST, PAGE
    from moe_dist.use.review import review as write_review

    if run.url is not None and out is None:
        raise UserError(f"RUN_DIR {run}: name with --out the folder of this machine that the review is written to")
    run_folder = run.fetched()
    folder = out or run_folder / "review"
    with raising_disk_errors(folder, "the review"):
        counts = write_review(run_folder, model, folder, uncertain)
    shown = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    say(
        console, f"{short(folder / PAGE)}: {shown}; write what you know into the column label of {short(folder / LIST)}"
    )
    say(console, f"then: moe-dist run JOB --set methods.dfcp.trusted='{{labels: {folder / LIST}}}'")
