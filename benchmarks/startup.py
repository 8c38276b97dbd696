"""Where the seconds from `moe-dist run` to the first step go, on this machine, in this process and on Ray.

    python -m benchmarks.startup [--rounds 3] [--launchers local ray]

A small job (a traditional mixture on 256 digits, one epoch) is run as a command; each part ends with a stamp
(startup_stamps.py). `local` is one worker without Ray, `ray` two workers by Ray Train on an embedded Ray. Shards are
there, as from the second run on. Of each part, the least of the rounds; nothing is cached between rounds but what the
operating system caches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "startup.json"
JOB = """\
name: startup
kind: train
data: {dataset: digits, image_size: 32, max_train_images: 256}
method: {name: traditional_moe, epochs: 1, batch_size: 32}
"""
PARTS = {
    "python": "Python starts",
    "command": "the command's imports",
    "imports": "imports of what runs a job, torch among them",
    "shards": "the job is read, its shards are looked for",
    "data": "the driver opens the data",
    "launcher": "the run is recorded, Ray starts",
    "ray_train": "the driver imports Ray Train",
    "worker": "Ray Train starts the workers, which import torch and meet",
    "loop": "imports of the training loop",
    "opened": "the worker opens the data",
    "network": "the network is built",
    "log": "the newest checkpoint is looked for, the log is opened",
    "session": "engine (of several ranks: DeepSpeed's) and streams",
    "batch": "the first batch",
    "step": "the first step",
}
"""What ends with each stamp, in order."""


def main() -> None:
    """Measure, print and write results/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    content = machine() | {"rounds": options.rounds, "seconds": {}}
    run("local")  # builds the shards and warms the file cache
    found = {name: [run(name) for _ in range(options.rounds)] for name in options.launchers}
    for name, rounds in found.items():
        parts = {PARTS[part]: round(min(each[part] for each in rounds), 2) for part in PARTS if part in rounds[0]}
        totals = [round(sum(each.values()), 2) for each in rounds]
        content["seconds"][name] = parts | {"all, least": min(totals), "all, rounds": totals}
    print(json.dumps(content, indent=1))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def run(launcher: str) -> dict[str, float]:
    """The seconds of each part of a run, by its stamp."""
    with tempfile.TemporaryDirectory() as name:
        stamps, job, out = (Path(name) / part for part in ("stamps", "job.yaml", "run"))
        job.write_text(JOB)
        workers = "2" if launcher == "ray" else "1"
        options = ("--set", f"workers={workers}", "--launcher", launcher, "--out", str(out))
        code = "from benchmarks.startup_stamps import main; main()"
        started = time.time()
        subprocess.run(
            [sys.executable, "-c", code, str(stamps), str(job), *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return seconds(stamps.read_text(), started)


def seconds(stamps: str, started: float) -> dict[str, float]:
    """Each part's seconds, from the end of the one before it."""
    first = {"": started}
    for line in stamps.splitlines():
        name, _, when = line.partition(" ")
        first.setdefault(name, float(when))
    ordered = ["", *(name for name in PARTS if name in first)]
    return {name: first[name] - first[before] for before, name in pairwise(ordered)}


if __name__ == "__main__":
    main()
