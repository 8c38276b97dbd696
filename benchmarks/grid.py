"""A grid of 24 cells over three local Ray nodes of two CPUs each, against the same cells one after another.

    python benchmarks/grid.py [--seconds 6] [--nodes 3]

Cells are small mixtures on digits whose steps also wait, as a step waits for a GPU: so many seconds a cell. Devices are
then what the cluster says it has, and not this machine's cores, of which a cell only needs some for its images, its
evaluation and its report. least: the time of the cells one after another, divided by the number of CPUs of the cluster.
start: from the submission to the first cell's begin, in which the job is shipped and Ray starts its driver.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from machine import machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "cluster"))
RESULTS = Path(__file__).parent / "results" / "grid.json"
CPUS_PER_NODE, STEPS, CELLS = 2, 30, 24
WAITING = """
import time
from typing import Literal
from moe_dist.methods.baselines.sparse_moe import SparseMoe, SparseMoeConfig

class WaitingConfig(SparseMoeConfig):
    name: Literal["waiting"] = "waiting"
    seconds_a_step: float = 0.0

class Waiting(SparseMoe):
    Config = WaitingConfig

    def loss(self, *given):
        time.sleep(self.config.seconds_a_step)
        return super().loss(*given)
"""
ENTRY = "[moe_dist.methods]\nwaiting = waiting_method:Waiting\n"


def main() -> None:
    """Measure and write benchmarks/results/grid.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="that a cell waits")
    parser.add_argument("--nodes", type=int, default=3, choices=[2, 3, 4])
    options = parser.parse_args()
    about = {"command": f"--seconds {options.seconds:g} --nodes {options.nodes}", **machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = install_waiting(folder / "installed")
        job = write_job(folder, options.seconds)
        one = in_turn(job, folder / "one", environment)
        many, start = over_nodes(job, folder / "many", options.nodes, environment)
        assert figures(folder / "one") == figures(folder / "many"), "the same table"
    least = one / (options.nodes * CPUS_PER_NODE)
    seconds = {"one after another": one, "over the nodes": many, "of which start": start, "least": least}
    result = about | {"cells": CELLS, "cpus": options.nodes * CPUS_PER_NODE}
    result |= {"seconds": {name: round(value, 1) for name, value in seconds.items()}}
    result |= {"times the least": round(many / least, 2), "after the start": round((many - start) / least, 2)}
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def install_waiting(folder: Path) -> dict[str, str]:
    """Install the waiting method into `folder`; the environment in which this package and that one are found."""
    information = folder / "waiting_method-0.1.dist-info"
    information.mkdir(parents=True)
    (folder / "waiting_method.py").write_text(WAITING)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting-method\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text(ENTRY)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder)])  # of the nodes, too
    return dict(os.environ)


def write_job(folder: Path, seconds: float) -> Path:
    """The job: 2 methods x 12 seeds, each of STEPS steps that wait for `seconds` together."""
    method: dict[str, Any] = {"name": "waiting", "trunk": [4], "experts": 2, "hidden": 8, "batch_size": 36, "epochs": 6}
    method["seconds_a_step"] = seconds / STEPS
    data = {"dataset": "digits", "image_size": 8, "max_train_images": 200, "max_test_images": 60}
    job = {"name": "waiting-grid", "kind": "reproduce", "data": data, "grid": {"seeds": list(range(CELLS // 2))}}
    job["methods"] = {"narrow": method, "wide": method | {"hidden": 16}}
    path = folder / "waiting.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def in_turn(job: Path, out: Path, environment: dict[str, str]) -> float:
    """The seconds of the cells one after another in one process, without what comes before and after them."""
    command = [sys.executable, "-m", "moe_dist.cli", "run", str(job), "--out", str(out), "--launcher", "local"]
    subprocess.run(command, env=environment | cache(out), check=True, stdout=subprocess.DEVNULL)
    return ended(out) - begun(out)


def over_nodes(job: Path, out: Path, nodes: int, environment: dict[str, str]) -> tuple[float, float]:
    """The seconds from the submission to so many nodes to the last cell's end, and to the first one's begin."""
    import local

    folder = out.with_name("cluster")
    cluster = local.start(folder, nodes, CPUS_PER_NODE, port=0)
    try:
        command = [sys.executable, "-m", "moe_dist.cli", "submit", str(job), "--follow", "--out", str(out)]
        command += ["--address", cluster.dashboard]
        clients = environment | local.client_environment(cluster) | cache(out)
        submitted = time.time()
        subprocess.run(command, env=clients, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return ended(out) - submitted, begun(out) - submitted
    finally:
        local.stop(folder)


def cache(out: Path) -> dict[str, str]:
    """Shards of each run's own: both build them."""
    return {"MOE_DIST_CACHE": str(out.with_name(f"{out.name}-cache"))}


def starts(out: Path) -> list[dict[str, Any]]:
    """The only start of every cell's run."""
    return [json.loads(path.read_text())["starts"][0] for path in (out / "cells").glob("*/run.json")]


def begun(out: Path) -> float:
    """When the first cell began."""
    return min(start["time"] for start in starts(out))


def ended(out: Path) -> float:
    """When the last cell was noted as finished."""
    return max(path.stat().st_mtime for path in (out / "cells").glob("*.json"))


def figures(out: Path) -> str:
    """The table's figures."""
    return (out / "results.csv").read_text()


if __name__ == "__main__":
    main()
