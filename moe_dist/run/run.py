"""Runs a job from its data to its report. Results that are there are kept, missing or outdated ones are made."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from moe_dist.data.bad_samples import read_bad_samples
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.data.shards.index import read_index
from moe_dist.data.shards.inspect.kept import how_images_were_kept
from moe_dist.data.shards.inspect.repeated import repeated_images
from moe_dist.data.storage.store import join
from moe_dist.engine.checkpoint import damaged_file, read_state
from moe_dist.errors import UserError
from moe_dist.files import read_json, require_writable, write_text
from moe_dist.job import Job, dump_job
from moe_dist.launch.choose import open_launcher
from moe_dist.launch.phases import Drive, ModelPhases
from moe_dist.places import LAYOUT, RECORD, RUNS, cache_folder, evaluation_folder, shared_cache
from moe_dist.record.fingerprints import evaluation_settings, fingerprint, main_training, plan
from moe_dist.record.mirror import Mirror
from moe_dist.record.one_driver import LOCK, only_driver
from moe_dist.record.provenance import code_version
from moe_dist.record.run_place import RunPlace, require_free
from moe_dist.record.run_record import RunRecord
from moe_dist.report.paper import paper_table
from moe_dist.run.notices import notices
from moe_dist.run.sample_images import keep_sample_images
from moe_dist.run.tracking import telling_mlflow
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import best_on_validation
from moe_dist.train.origin import origin_of
from moe_dist.train.requirements import require_trainable
from moe_dist.train.task import BAD_SAMPLES, TrainingTask, open_method
from moe_dist.yaml_core import load_run_yaml

BAD_SAMPLES_NAMED = 20
"""Number of bad samples named in run.json; bad_samples/ in the run directory names all."""


def run_job(
    job: Job, run: Path, launcher_name: str, show: Show, *, shares: bool = False, mirror: Mirror | None = None
) -> Path:
    """Run `job` in the run directory `run`, and return the path of its report.html.

    shares: whether to take results over from runs in the same folder whose fingerprints are equal. mirror: what keeps
    the directory at a URL, if anything does.
    """
    require_same_run(run, job)
    begun_before = (run / "job.yaml").exists()
    if job.paper_table:
        paper_table(job.paper_table)  # raises UserError for an unknown table
    with show.working("data"):
        place = ensure_shards(job.data, shared_cache(), show.shards)
        data = open_data(job.data, job.seed, cache_folder(), place)
    told = []
    for sentence in chain(_told_of_data(job, data, place), notices(job), _told_of_models(job, run, data)):
        show.notice(sentence)
        told.append(sentence)
    with only_driver(run, show):
        if not begun_before and (run / "job.yaml").exists():
            raise UserError(
                f"{run}: another moe-dist has begun a run here meanwhile; choose another folder, or --resume"
            )
        with telling_mlflow(job, run, show):
            return _drive(job, run, data, launcher_name, show, told, shares, mirror)


def _told_of_data(job: Job, data: OpenedData, place: str) -> Iterator[str]:
    """What is to be known of the job's data, whose shards are at `place`, a sentence each."""
    for absent, split, then in (
        (data.untested_classes, "test", "are in no average"),
        (data.unvalidated_classes, "validation", "have no say in what validation decides"),
    ):
        if absent:
            names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            yield f"{len(absent)} of {data.info.classes} classes have no {split} image ({names}) and {then}"
    yield from how_images_were_kept(read_index(join(place, "train"), job.data.remote), job.data.imbalance_choice)
    if job.data.use == "split":
        yield from repeated_images(place, job.data.remote)


def _told_of_models(job: Job, run: Path, data: OpenedData) -> Iterator[str]:
    """What is to be known of the job's models, a sentence each. Raises UserError for one that cannot work."""
    for model, config in job.models.items():
        for sentence in config.notices():
            yield f"{model}: {sentence}"
        require_trainable(job, open_method(job, model, data), len(data.val_samples))
        if origin := origin_of(job, model):
            yield origin.in_words(open_method(job, model, data))
        if job.kind == "tune":
            from moe_dist.tune.requirements import require_searchable  # imports Optuna, which only searches need

            require_searchable(job, open_method(job, model, data), data, run / model)


def _drive(
    job: Job,
    run: Path,
    data: OpenedData,
    launcher_name: str,
    show: Show,
    told: Sequence[str],
    shares: bool,
    mirror: Mirror | None,
) -> Path:
    """Run a job that has been checked, as the only driver of the run directory. told: the notices before."""
    claim_run_directory(run, job)
    data.bad_samples.write_to(run / BAD_SAMPLES)
    record = RunRecord(run, job, data, launcher_name, told)
    with (
        record.ending() as ending,
        open_launcher(launcher_name, job, run, show, record.survived) as launcher,
        record.failing(),
    ):
        keep_sample_images(data, run)
        drive = Drive(job, run, data, launcher, record, show, shares, mirror)
        drive.share()
        for model in job.models:
            show.headline(model)
            if job.kind == "tune":
                from moe_dist.tune.run import tune_model

                tune_model(drive, model)
            else:
                run_model(drive, model)
        ending["bad_samples"] = _bad_samples(run, show)
    with show.working("report"):
        from moe_dist.report.build import build_report  # matplotlib and scikit-learn, which take seconds to import

        return build_report(run)


def _bad_samples(run: Path, show: Show) -> dict[str, Any]:
    """The number of bad samples that the run left out, and the first of them, which are also printed."""
    met = read_bad_samples(run / BAD_SAMPLES)
    for sentence in met[:BAD_SAMPLES_NAMED]:
        show.notice(f"left out: {sentence}")
    return {"count": len(met), "first": met[:BAD_SAMPLES_NAMED]}


def run_model(drive: Drive, model: str) -> None:
    """Run the phases and the evaluation of one model."""
    method = open_method(drive.job, model, drive.data)
    origin = origin_of(drive.job, model)
    planned = plan(method, drive.job, model, drive.data, origin.settings() if origin else None)
    phases = ModelPhases(drive, model, method, planned, origin=origin)
    before = phases.folder.current()
    phases.tell_of_change(before.training)
    shown = phases.current()
    evaluation = before.evaluation if before.training == shown.training else None
    phases.folder.point_at(phases.current(evaluation))
    phases.run()
    phases.folder.point_at(phases.current(_evaluate(phases, drive)))


def _evaluate(phases: ModelPhases, drive: Drive) -> Path:
    """Evaluate the model if that has not been done, and return the folder of the evaluation."""
    from moe_dist.evaluate.predictions import evaluate_task, save_evaluation  # scikit-learn: not before the first step

    show, method, main = drive.show, phases.method, main_training(phases.planned)
    task, checkpoint = phases.task(main), phases.trained[main.name]
    chosen = _chosen_checkpoint(task, show)
    settings = evaluation_settings(drive.job, task.model, method, drive.data, chosen.name if chosen else None)
    asked = fingerprint(main.fingerprint, settings)
    folder = evaluation_folder(task.folder, asked)
    if read_json(folder / "evaluation.json"):
        show.skipped("evaluation on the test split", 0.0)
        return folder
    drive.record.work_begins()
    started = time.perf_counter()
    checkpoints = (task.in_run(checkpoint), task.in_run(chosen) if chosen else None)
    drive.share()
    with show.working("evaluation on the test split"):
        outcome = next(iter(drive.launcher.run_tasks(evaluate_task, [checkpoints], task.pack())))
        task.fetch_outputs()
    wall, summed = phases.seconds()
    facts: dict[str, Any] = {
        "fingerprint": asked,
        "settings": settings,
        "seconds": time.perf_counter() - started,
        "start": drive.record.number,
        "code": code_version(),
        "training": {"wall_seconds": wall, "summed_expert_seconds": summed},
        "labels_used": method.labels_used(),
    }
    if chosen:
        state = read_state(chosen)
        facts["chosen"] = {
            "checkpoint": chosen.name,
            "epoch": state["stream"]["epoch"],
            method.chosen_by: state["score"],
        }
    save_evaluation(folder, outcome, facts)
    return folder


def _chosen_checkpoint(task: TrainingTask, show: Show) -> Path | None:
    """The best checkpoint on validation; None if there is none, or it is damaged."""
    chosen = best_on_validation(task.checkpoints)
    if chosen and (file := damaged_file(chosen)):
        show.notice(
            f"{chosen}: {file} does not hold the bytes that were written; the epoch that validation chose is left out"
        )
        return None
    return chosen


def choose_run_place(job: Job, out: RunPlace | None, resume: bool) -> RunPlace:
    """Where the run is: `out`, or what `choose_run_directory` chooses. Raises UserError where no run can be."""
    if out is None or out.url is None:
        return RunPlace(choose_run_directory(job, out.folder if out else None, resume))
    if resume and not out.holds_a_run:
        raise UserError(f"--resume --out {out}: no run is there; look at the name, or leave --resume out")
    if not resume:
        if out.holds_a_run:
            raise UserError(f"--out {out}: already holds a run; add --resume to go on with it, or choose another URL")
        require_free(out)
    return out


def choose_run_directory(job: Job, out: Path | None, resume: bool) -> Path:
    """The run directory: `out`, or a new runs/<job>/<time>; with `resume`, the newest run of the job."""
    if out is not None:
        if (out / "job.yaml").exists() and not resume:
            raise UserError(
                f"--out {out}: already holds a run; add --resume to go on with it, or choose another folder"
            )
        if resume and not (out / "job.yaml").exists():
            raise UserError(f"--resume --out {out}: no run is there; look at the name, or leave --resume out")
        require_writable(out, f"--out {out}")
        return out.resolve()
    home = (RUNS / job.name).absolute()
    if resume:
        if any(home.glob("*/job.yaml")) and not (home / "latest").is_symlink():
            raise UserError(f"--resume: {home} has no link `latest` (was it copied?); name the run with --out")
        if not (home / "latest").exists():
            raise UserError(f"--resume: there is no run of {job.name} under {home}; run it without --resume first")
        require_writable(home / "latest", "--resume")
        return (home / "latest").resolve()
    require_writable(home, str(home))
    return home / _unused_name(home)


def _unused_name(home: Path) -> str:
    """The time as a folder's name. A clock that was set back may name one that is there: then a later one."""
    now = datetime.now()
    while os.path.lexists(home / (name := now.strftime("%Y%m%d-%H%M%S-%f")[:-3])):
        now += timedelta(milliseconds=1)
    return name


def require_same_run(run: Path, job: Job) -> None:
    """Raise UserError if `run` is the run directory of another job or another version, or holds other files."""
    if (run / "job.yaml").exists():
        _require_layout(run)
        before = _job_before(run)
        for field, was, now in (
            ("job", before["name"], job.name),
            ("kind of job", before["kind"], job.kind),
            ("dataset", before["data"]["dataset"], job.data.dataset),
            ("form of job", before["form"], _form(job.grid)),
        ):
            if was != now:
                raise UserError(
                    f"{run}: is the run directory of another {field}, {was}, not {now}; choose another folder"
                )
    elif run.exists() and any(path.name != LOCK for path in run.iterdir()):
        raise UserError(f"{run}: is not empty and holds no run; choose another folder")


def _require_layout(run: Path) -> None:
    """Raise UserError if a version with another layout made the run; an earlier one recorded too little to resume."""
    record = read_json(run / RECORD)
    layout = record.get("layout", 1) if record else LAYOUT
    of_layout_1 = [path for name in ("checkpoints", "metrics.jsonl", "training.json") for path in run.glob(f"*/{name}")]
    if layout < LAYOUT or of_layout_1:
        raise UserError(
            f"{run}: was made by an earlier version of moe-dist, which did not record all that a training depends on; "
            "`moe-dist report` reads it, and to train, choose another folder or leave --resume out"
        )
    if layout > LAYOUT:
        raise UserError(
            f"{run}: was made by a later version of moe-dist; go on with that one, or choose another folder"
        )


def _job_before(run: Path) -> dict[str, Any]:
    """The job that began the run. Raises UserError if job.yaml does not hold one, as after a power failure."""
    try:
        before = load_run_yaml((run / "job.yaml").read_text(encoding="utf-8"))
        dataset, form = before["data"]["dataset"], _form(before.get("grid"))
        return {"name": before["name"], "kind": before["kind"], "data": {"dataset": dataset}, "form": form}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{run / 'job.yaml'}: holds no job any more (was the power cut?); to go on with the run, copy the job file "
            "that it was begun with to that place; to begin anew, choose another folder"
        ) from None


def _form(grid: Any) -> str:
    return "one run" if grid is None else "a grid"


def claim_run_directory(run: Path, job: Job) -> None:
    """Create the run directory with job.yaml, and point runs/<job>/latest to it if it is below that folder.

    Where that cannot be (no links on the file system, or a copy in its place), `--resume` will ask for the run's name.
    """
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "job.yaml", dump_job(job))
    if (run.parent.parent.name, run.parent.name) == (RUNS.name, job.name):
        link = run.parent / f".latest-{os.getpid()}"
        with suppress(OSError):
            link.symlink_to(run.name)
            os.replace(link, run.parent / "latest")
        link.unlink(missing_ok=True)
