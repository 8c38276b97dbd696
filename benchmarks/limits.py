"""What a cluster's shared parts bear: the driver, the object store, a search's journal, the list of shards.

    python -m benchmarks.limits

driver: round trips a second of one process with Ray's actors, as Ray Train's controller makes with each worker at every
look. object store: a task's result larger than the embedded Ray's store. journal: records written, each with its way to
the disk, and read again. index: that of a split of ImageNet's size in 10,000 shards, which every process reads.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.machine import machine
from moe_dist.data.shards.index import INDEX_FILE, ROW, ROWS_FILE, Index, ShardInfo, read_index, write_index
from moe_dist.launch.ray import OBJECT_STORE_BYTES, started_ray
from moe_dist.launch.ray_environment import PROMPT
from moe_dist.terminal import Show
from moe_dist.tune.journal import Journal

RESULTS = Path(__file__).parent / "results" / "limits.json"
ACTORS, ROUND_TRIPS = 4, 400
RESULT_BYTES = 800 * 10**6
RECORDS = 2000
SAMPLES, SHARDS = 1_281_167, 10_000


def main() -> None:
    """Measure, print and write results/limits.json."""
    content: dict[str, Any] = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content["index"] = index(folder / "index")
        content["journal"] = journal(folder / "journal.jsonl")
        with started_ray(os.cpu_count() or 1, Show(Console(quiet=True))):
            content["driver"] = driver()
            content["object_store"] = object_store()
    print(json.dumps(content, indent=1))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def seconds(function: Callable[[], object]) -> float:
    """What a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def index(folder: Path) -> dict[str, float]:
    """An index of many shards: its bytes, and the seconds to read it."""
    folder.mkdir()
    rows = np.zeros(SAMPLES, ROW)
    rows["shard"] = np.arange(SAMPLES) * SHARDS // SAMPLES
    rows["offset"] = (np.arange(SAMPLES) % (SAMPLES // SHARDS + 2)) * 1024 + 512
    rows["length"], rows["label"] = 400, np.arange(SAMPLES) % 1000
    names = tuple(map(str, range(1000)))
    counts = np.bincount(rows["shard"], minlength=SHARDS).tolist()
    shards = tuple(ShardInfo(f"train-{n:06d}.tar", count, 2**20, "0" * 64) for n, count in enumerate(counts))
    write_index(folder, Index("made_up", "train", names, shards, rows, {"jpg": SAMPLES}))
    megabytes = sum((folder / name).stat().st_size for name in (INDEX_FILE, ROWS_FILE)) / 1e6
    took = min(seconds(lambda: read_index(folder)) for _ in range(3))
    return {"samples": SAMPLES, "shards": SHARDS, "megabytes": round(megabytes, 1), "read_seconds": round(took, 2)}


def journal(path: Path) -> dict[str, float]:
    """Milliseconds of a record, written to the disk and read."""
    written, record = Journal(path, {}), {"study": "0", "asked": [{"learning_rate": 0.001, "epochs": 9}] * 8}
    write = seconds(lambda: [written.write(record) for _ in range(RECORDS)])
    written.close()
    read = seconds(lambda: Journal(path, {}).close())
    return {"write_ms": round(1e3 * write / RECORDS, 2), "read_ms": round(1e3 * read / RECORDS, 3)}


def driver() -> dict[str, float]:
    """Round trips a second with several actors, and the workers that are looked at in the controller's interval."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def look(self) -> int:
            return 0

    workers = [Worker.remote() for _ in range(ACTORS)]
    ray.get([worker.look.remote() for worker in workers])
    took = seconds(
        lambda: [ray.get([worker.look.remote() for worker in workers]) for _ in range(ROUND_TRIPS // ACTORS)]
    )
    interval = float(PROMPT["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"])
    return {
        "round_trips_a_second": round(ROUND_TRIPS / took),
        "workers_in_an_interval": round(interval * ROUND_TRIPS / took),
    }


def object_store() -> dict[str, Any]:
    """The seconds that a large result of a task takes to reach the driver, beside a small one."""
    import ray

    @ray.remote
    def result(size: int) -> np.ndarray:
        return np.ones(size, np.uint8)

    def fetched(size: int) -> int:
        return int(ray.get(result.remote(size)).nbytes)

    fetched(1)
    found: dict[str, Any] = {"store_bytes": OBJECT_STORE_BYTES}
    for size in (OBJECT_STORE_BYTES // 4, RESULT_BYTES):
        try:
            found[f"{size} bytes"] = round(seconds(lambda size=size: fetched(size)), 2)  # type: ignore[misc]
        except Exception as error:  # whatever Ray raises is the finding
            found[f"{size} bytes"] = type(error).__name__
    return found


if __name__ == "__main__":
    main()
