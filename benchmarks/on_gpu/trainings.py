"""Whole recipes side by side on one device, each the command that a user would give."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.running import ROOT, Options, Outcome
from moe_dist.errors import UserError
from moe_dist.files import read_json

TINY = (
    "data={dataset: digits, image_size: 16, max_train_images: 100, max_test_images: 20, val_fraction: 0}",
    "method.network.width=2",
    "method.experts=2",
    "method.features.epochs=1",
    "method.classifiers.epochs=1",
    "checkpoint.every_epochs=1",
)
DEFAULT_RECIPE = "jobs/icl/cifar100_lt_100.yaml"
UNTIL_THE_END = 15
"""Seconds before the end of a part's time in which its trainings write what they have and end."""


def recipes(options: Options) -> Outcome:
    """Start all of them, wait until they end or the time is over, and say how far each is.

    A training that was stopped has its checkpoints in OUT/recipes/, and the same command goes on with it.
    """
    if not (options.dry or options.source.exists()):
        raise UserError(f"{options.source}: no images; `prepare --source PATH` packs them, or name them by --source")
    named = options.recipes or (DEFAULT_RECIPE,)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with _sharing(options) as shared:
        started = time.perf_counter()
        running = {
            recipe: subprocess.Popen(command_of(recipe, len(named), options), cwd=ROOT, env=environment | shared)
            for recipe in named
        }
        end = started + options.seconds - UNTIL_THE_END
        while any(each.poll() is None for each in running.values()) and time.perf_counter() < end:
            time.sleep(0.2)
        for each in running.values():
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
        codes = {recipe: each.wait() for recipe, each in running.items()}
        seconds = time.perf_counter() - started
    found = {recipe: {"code": codes[recipe], **reached(folder_of(recipe, options))} for recipe in named}
    if broken := [recipe for recipe, code in codes.items() if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM)]:
        raise RuntimeError(f"{broken[0]}: ended with code {codes[broken[0]]}")
    told = "; ".join(
        f"{Path(recipe.split()[0]).stem} epoch {about['epochs']}, {about['images_per_second'] or '?'} images/s, "
        f"top-1 {about['top1'] if about['top1'] is not None else 'not reached'}"
        for recipe, about in found.items()
    )
    return Outcome(f"{len(named)} side by side: {told}", {"trainings": found, "mps": options.mps, "wall": seconds})


def command_of(recipe: str, beside: int, options: Options) -> list[str]:
    """The command of a recipe that has a share of the device, and goes on where it stood."""
    job, *own = shlex.split(recipe)
    folder = folder_of(recipe, options)
    settings = [f"data.source={options.source.absolute()}"]
    settings += [f"resources.gpus_per_worker={1 / beside:.4g}", f"resources.gpus_per_task={1 / beside:.4g}"]
    if options.dry:
        settings = list(TINY)
    command = [sys.executable, "-m", "moe_dist.cli", "run", job, "--launcher", "local", "--out", str(folder.absolute())]
    command += [word for setting in settings for word in ("--set", setting)] + own
    return [*command, "--resume"] if (folder / "job.yaml").exists() else command


def folder_of(recipe: str, options: Options) -> Path:
    """The run directory of a recipe: its job and settings as a name."""
    return options.out / "recipes" / re.sub(r"[^A-Za-z0-9.=_-]+", "_", recipe).strip("_")


def reached(run: Path) -> dict[str, Any]:
    """How far a run is: finished epochs, images/s of its last line, its curve of test or training values, top-1."""
    about: dict[str, Any] = {"epochs": 0, "images_per_second": None, "top1": None, "steps_by": None, "curve": []}
    for path in sorted(run.glob("*/trainings/*/metrics.jsonl")):
        for text in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line of a training that was killed
                line = json.loads(text)
                if line["kind"] == "step":
                    about["images_per_second"] = round(line["images_per_second"])
                elif line["kind"] == "epoch":
                    about["epochs"] += 1
                    about["steps_by"] = line.get("steps_by")
                    tested = {name: line[name] for name in ("test/top1", "val/top1") if name in line}
                    if tested:
                        about["curve"].append({"stage": line["stage"], "epoch": line["epoch"] + 1, **tested})
    metrics = read_json(run / "metrics.json")
    if metrics:
        about["metrics"] = metrics
        about["top1"] = next((value for name, value in metrics.items() if name.endswith("/top1")), None)
    return about


@contextlib.contextmanager
def _sharing(options: Options) -> Iterator[dict[str, str]]:
    """The variables of processes that share the GPU by MPS, whose server runs for the block; none without."""
    if not options.mps or options.device != "cuda":
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for place in variables.values():
            Path(place).mkdir()
        environment = os.environ | variables
        subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=True)
        try:
            yield variables
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, env=environment, check=False)
