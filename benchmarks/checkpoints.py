"""How long steps wait for a checkpoint of Ray Train's, synchronous and asynchronous, and when it is whole.

    python -m benchmarks.checkpoints [--megabytes 8 128] [--saves 4]

Two workers write a share of so many megabytes each into a folder of their own and report it, as launch/ray_worker.py:
RayWorker does; then 1 s of what stands for steps. `write`: until the files are written, which no mode spares; `report`:
until ray.train.report has returned; `published`: from the report until the checkpoint has all its files where Ray
keeps it, while the steps go on. Medians over the saves, of the slower rank.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"
MODES = ("SYNC", "ASYNC")
WORKERS = 2
STEPS_SECONDS, LONGEST_SECONDS = 1.0, 30.0


def main() -> None:
    """Measure, print and write results/checkpoints.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--saves", type=int, default=4)
    options = parser.parse_args()
    content: dict[str, Any] = machine() | {"workers": WORKERS, "saves": options.saves}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.megabytes, options.saves, Path(folder))
    content["seconds"] = found
    print(json.dumps(content, indent=1))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def measure(sizes: list[int], saves: int, folder: Path) -> dict[str, dict[str, float]]:
    """The seconds of each size and mode."""
    from rich.console import Console

    from moe_dist.launch.ray import started_ray
    from moe_dist.terminal import Show

    found = {}
    with started_ray(WORKERS, Show(Console(quiet=True))):
        for size in sizes:
            for mode in MODES:
                place = folder / f"{mode}-{size}"
                fit(mode, size, saves, place)
                ranks = [json.loads((place / f"{rank}.json").read_text()) for rank in range(WORKERS)]
                found[f"{size} MB, {mode}"] = {
                    part: round(statistics.median(max(pair) for pair in zip(*(rank[part] for rank in ranks))), 3)
                    for part in ("write", "report", "published")
                }
    return found


def fit(mode: str, megabytes: int, saves: int, place: Path) -> None:
    """Run the two workers."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    place.mkdir()
    config = {"mode": mode, "bytes": megabytes * 10**6 // WORKERS, "saves": saves, "place": str(place)}
    scaling = ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1})
    run = RunConfig(name="checkpoints", storage_path=str(place))
    TorchTrainer(save_often, train_loop_config=config, scaling_config=scaling, run_config=run).fit()


def save_often(config: dict[str, Any]) -> None:
    """What a worker does."""
    import ray.train

    rank, place = ray.train.get_context().get_world_rank(), Path(config["place"])
    seconds: dict[str, list[float]] = {"write": [], "report": [], "published": []}
    for save in range(config["saves"] + 1):
        started = time.perf_counter()
        folder = Path(tempfile.mkdtemp())
        with (folder / f"{rank}.bin").open("wb") as file:
            file.write(os.urandom(config["bytes"]))
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        ray.train.report(
            {"save": save},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=f"checkpoint_{save}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode[config["mode"]],
            delete_local_checkpoint_after_upload=True,
        )
        reported = time.perf_counter()
        published = wait_for_all(place / "checkpoints" / f"checkpoint_{save}", config["bytes"])
        if save:  # the first one warms up
            for name, value in (
                ("write", written - started),
                ("report", reported - written),
                ("published", published - written),
            ):
                seconds[name].append(value)
        time.sleep(STEPS_SECONDS)
    (place / f"{rank}.json").write_text(json.dumps(seconds))


def wait_for_all(checkpoint: Path, size: int) -> float:
    """When all ranks' files are there."""
    last = time.perf_counter() + LONGEST_SECONDS
    files = [checkpoint / f"{rank}.bin" for rank in range(WORKERS)]
    while not all(file.is_file() and file.stat().st_size == size for file in files):
        assert time.perf_counter() < last, f"{checkpoint} is not whole"
        time.sleep(0.005)
    return time.perf_counter()


if __name__ == "__main__":
    main()
