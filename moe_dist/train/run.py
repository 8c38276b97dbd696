"""One run of a job, from its data to its report: what is done is kept, what is missing or out of date is done."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from moe_dist import __version__
from moe_dist.config import Job, dump_job
from moe_dist.data.bad_samples import read_bad_samples
from moe_dist.data.job_shards import ensure_shards
from moe_dist.data.opened import OpenedData, open_data
from moe_dist.errors import UserError
from moe_dist.files import write_json, write_text
from moe_dist.methods.base import Method, Step
from moe_dist.report.build import build_report
from moe_dist.report.paper import paper_table
from moe_dist.train.checkpoint import read_state
from moe_dist.train.evaluate import evaluate_task, save_evaluation
from moe_dist.train.launcher import Launcher, open_launcher
from moe_dist.train.one_driver import LOCK, only_driver
from moe_dist.train.pipeline import fingerprint, run_steps
from moe_dist.train.refusals import refuse_early
from moe_dist.train.results import Results, done
from moe_dist.train.show import Show
from moe_dist.train.task import BAD_SAMPLES, TrainingTask, open_method
from moe_dist.train.worker import best_on_validation, newest_checkpoint

RUNS = Path("runs")
BAD_SAMPLES_NAMED = 20
"""So many bad samples are named in run.json; bad_samples/ in the run directory names them all."""


def cache_folder() -> Path:
    """Where shards and decoded images that several runs share are kept: MOE_DIST_CACHE, else runs/cache."""
    return Path(os.environ.get("MOE_DIST_CACHE", RUNS / "cache")).absolute()


def run_job(job: Job, run: Path, launcher_name: str, show: Show) -> Path:
    """Run `job` into the run directory `run` and return its report.html."""
    started = time.time()
    refuse_other_run(run, job)
    begun_before = (run / "job.yaml").exists()
    if job.paper_table:
        paper_table(job.paper_table)  # refuses a table there is not
    with show.working("data"):
        ensure_shards(job.data, cache_folder(), show.shards)
        data = open_data(job.data, job.seed, cache_folder())
    if untested := data.untested_classes:
        names = ", ".join(untested[:5]) + (", ..." if len(untested) > 5 else "")
        show.notice(
            f"{len(untested)} of {data.info.classes} classes have no test image ({names}) and are in no average"
        )
    for label, config in job.models.items():
        for sentence in config.notices():
            show.notice(f"{label}: {sentence}")
        refuse_early(job, open_method(job, label, data), len(data.val_samples))
        if job.kind == "tune":
            from moe_dist.tune.refusals import refuse_search  # Optuna, which no other kind of job waits for

            refuse_search(job, open_method(job, label, data), data, run / label)
    with only_driver(run, show):
        if not begun_before and (run / "job.yaml").exists():
            raise UserError(
                f"{run}: another moe-dist has begun a run here meanwhile; choose another folder, or --resume"
            )
        return _drive(job, run, data, launcher_name, show, started)


def _drive(job: Job, run: Path, data: OpenedData, launcher_name: str, show: Show, started: float) -> Path:
    """What a run does once nothing speaks against it."""
    claim_run_directory(run, job)
    data.bad_samples.write_to(run / BAD_SAMPLES)
    record = _record(job, data, launcher_name, started)
    write_json(run / "run.json", record)
    with open_launcher(launcher_name, job, run, show) as launcher:
        for label in job.models:
            show.headline(label)
            if job.kind == "tune":
                from moe_dist.tune.run import tune_model

                tune_model(job, label, run, data, launcher, show, cache_folder())
            else:
                run_model(job, label, run, data, launcher, show)
    bad = _bad_samples(run, show)
    write_json(run / "run.json", record | {"status": "finished", "seconds": time.time() - started, "bad_samples": bad})
    with show.working("report"):
        return build_report(run)


def _bad_samples(run: Path, show: Show) -> dict[str, Any]:
    """How many bad samples the run left out, and the first of them, which are named on the console too."""
    met = read_bad_samples(run / BAD_SAMPLES)
    for sentence in met[:BAD_SAMPLES_NAMED]:
        show.notice(f"left out: {sentence}")
    return {"count": len(met), "first": met[:BAD_SAMPLES_NAMED]}


def run_model(job: Job, label: str, run: Path, data: OpenedData, launcher: Launcher, show: Show) -> None:
    """One method: its steps, its training and its evaluation."""
    method = open_method(job, label, data)
    folder = run / label
    results, inputs = run_steps(method, job, data, folder / "steps", launcher.run_tasks, show)
    inputs = fingerprint(inputs, _training_settings(job, label))
    task = TrainingTask(job, label, run, cache_folder(), inputs)
    checkpoint = _train(task, launcher, show)
    _evaluate(task, method, checkpoint, _times(results, method.steps(), checkpoint), launcher, show)


def _train(task: TrainingTask, launcher: Launcher, show: Show) -> Path:
    """Train unless that has been done from the same inputs; the last checkpoint."""
    path = task.folder / "training.json"
    finished = json.loads(path.read_text()) if path.is_file() else None
    checkpoint = newest_checkpoint(task.checkpoints)
    if finished and finished["fingerprint"] == task.fingerprint and checkpoint:
        show.skipped("joint training", finished["seconds"])
        return checkpoint
    path.unlink(missing_ok=True)
    _drop_other_trainings(task)
    with show.working(f"training on {task.job.workers} worker{'s' if task.job.workers > 1 else ''} ({launcher.name})"):
        checkpoint = launcher.train(task)
    write_json(path, {"fingerprint": task.fingerprint, "seconds": read_state(checkpoint)["seconds"]})
    return checkpoint


def _evaluate(
    task: TrainingTask, method: Method, checkpoint: Path, times: dict[str, Any], launcher: Launcher, show: Show
) -> None:
    folder = task.folder / "evaluation"
    path = folder / "evaluation.json"
    asked = fingerprint(task.fingerprint, [*method.top_ks()])
    if path.is_file() and json.loads(path.read_text())["fingerprint"] == asked:
        show.skipped("evaluation on the test split", 0.0)
        return
    chosen = best_on_validation(task.checkpoints)
    asked_of = (str(checkpoint), str(chosen) if chosen else None)
    with show.working("evaluation on the test split"):
        outcome = next(iter(launcher.run_tasks(evaluate_task, [asked_of], task.pack())))
    facts = {"fingerprint": asked, "training": times, "labels_used": method.labels_used()}
    if chosen:
        state = read_state(chosen)
        facts["chosen"] = {
            "checkpoint": chosen.name,
            "epoch": state["stream"]["epoch"],
            "validation_top1": state["validation_top1"],
        }
    save_evaluation(folder, outcome, facts)


def _times(results: Results, steps: tuple[Step, ...] | Any, checkpoint: Path) -> dict[str, float | None]:
    """Wall seconds of all steps and the training; and with the experts' own seconds added up, as the paper counts."""
    training = read_state(checkpoint)["seconds"]
    seconds = {step.name: _seconds_of(results, step.name) for step in steps}
    summed = [sum(results[name].values["seconds"]) for name in seconds if "seconds" in results[name].values]
    return {
        "wall_seconds": sum(seconds.values()) + training,
        "summed_expert_seconds": summed[0] + training if summed else None,
    }


def _seconds_of(results: Results, name: str) -> float:
    finished = done(results.folder / name)
    assert finished is not None
    return finished["seconds"]


def _training_settings(job: Job, label: str) -> dict[str, Any]:
    """What, beside the steps, decides a training's result. Workers, launcher and placement do not."""
    method = job.models[label].model_dump(mode="json", exclude=set(job.models[label].evaluation_only))
    compiled = {"compile": True} if job.resources.compile else {}  # other rounding
    return {"method": method, "precision": job.resources.precision, **compiled}


def _drop_other_trainings(task: TrainingTask) -> None:
    """Checkpoints and logs of a training from other inputs; the same inputs' are where this one goes on from."""
    if task.checkpoints.is_dir():
        return
    for name in ("checkpoints", "tensorboard", "evaluation"):
        shutil.rmtree(task.folder / name, ignore_errors=True)
    (task.folder / "metrics.jsonl").unlink(missing_ok=True)


def choose_run_directory(job: Job, out: Path | None, resume: bool) -> Path:
    """Where a run goes: --out, or a new runs/<job>/<time>; with --resume, the newest run of the job."""
    if out is not None:
        if (out / "job.yaml").exists() and not resume:
            raise UserError(
                f"--out {out}: already holds a run; add --resume to go on with it, or choose another folder"
            )
        if resume and not (out / "job.yaml").exists():
            raise UserError(f"--resume --out {out}: no run is there; look at the name, or leave --resume out")
        return out.resolve()
    home = (RUNS / job.name).absolute()
    if resume:
        if not (home / "latest").exists():
            raise UserError(f"--resume: there is no run of {job.name} under {home}; run it without --resume first")
        return (home / "latest").resolve()
    return home / datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


def refuse_other_run(run: Path, job: Job) -> None:
    """Raise UserError where `run` is the run directory of another job, or a folder with other things in it."""
    if (run / "job.yaml").exists():
        before = yaml.safe_load((run / "job.yaml").read_text())
        for field, was, now in (
            ("job", before["name"], job.name),
            ("kind of job", before["kind"], job.kind),
            ("dataset", before["data"]["dataset"], job.data.dataset),
        ):
            if was != now:
                raise UserError(
                    f"{run}: is the run directory of another {field}, {was}, not {now}; choose another folder"
                )
    elif run.exists() and any(path.name != LOCK for path in run.iterdir()):
        raise UserError(f"{run}: is not empty and holds no run; choose another folder")


def claim_run_directory(run: Path, job: Job) -> None:
    """Make the folder, write job.yaml, and point runs/<job>/latest at it where it lies there."""
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "job.yaml", dump_job(job))
    if (run.parent.parent.name, run.parent.name) == (RUNS.name, job.name):
        link = run.parent / f".latest-{os.getpid()}"
        link.symlink_to(run.name)
        os.replace(link, run.parent / "latest")


def _record(job: Job, data: OpenedData, launcher_name: str, started: float) -> dict[str, Any]:
    """run.json: what a figure of this run must be read with."""
    return {
        "status": "running",
        "started": datetime.fromtimestamp(started).isoformat(timespec="seconds"),
        "seconds": None,
        "command": shlex.join(["moe-dist", *sys.argv[1:]]),
        "hardware": hardware(),
        "launcher": launcher_name,
        "workers": job.workers,
        "seed": job.seed,
        "version": __version__,
        "torch": torch.__version__,
        "dataset": job.data.dataset,
        "split_digest": data.split_digest,
        "counts": {
            "train": len(data.train_samples),
            "val": len(data.val_samples),
            "test": len(data.test_samples),
        },
        "classes": list(data.info.class_names),
        "class_counts": list(data.info.class_counts),
    }


def hardware() -> str:
    """Processor, cores and GPUs of this machine, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} cores of {name}", *gpus])
