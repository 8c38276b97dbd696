"""The way of a training task through the code: python tests/way_of_a_task.py

A small training (a traditional mixture on digits) is run, and every function of the package is noted when it is called
for the first time. Read in that order, the way stops in a file until it goes on in another one. A stop in a file where
the way has been before is a return. The fewer files and returns, the less a reader turns pages.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from small_jobs import traditional  # noqa: E402

PACKAGE = ROOT / "moe_dist"


def first_calls(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """(file, function) of the package's functions in the order in which `work` first calls them."""
    found: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<"):
            found.setdefault((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(found)


def stops(calls: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The files in which the way stops, each with the functions that are entered there."""
    way: list[tuple[str, list[str]]] = []
    for file, function in calls:
        if not way or way[-1][0] != file:
            way.append((file, []))
        way[-1][1].append(function)
    return way


def small_training() -> Callable[[], Any]:
    """A training whose data lies ready, as a rank of it is begun: from the task to the last checkpoint."""
    import torch

    from moe_dist.data.opened.job_shards import ensure_shards
    from moe_dist.data.opened.opened import open_data
    from moe_dist.train.loop import train
    from moe_dist.train.task import TrainingTask
    from moe_dist.train.worker import LocalWorker

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    job = traditional(epochs=1)
    shards = ensure_shards(job.data, folder / "cache")
    task = TrainingTask(job, "traditional_moe", folder, folder / "cache", shards, folder / "training")
    open_data(job.data, job.seed, task.cache, shards)
    return lambda: train(LocalWorker(task.checkpoints, 1, 0, 1, torch.device("cpu")), task)


def main() -> None:
    """Print the way, stop by stop, and its length."""
    way = stops(first_calls(small_training()))
    for file, functions in way:
        print(f"{file:40} {', '.join(functions)}"[:150])
    files = {file for file, _ in way}
    print(f"{len(way)} stops in {len(files)} files, {len(way) - len(files)} of them returns")


if __name__ == "__main__":
    main()
