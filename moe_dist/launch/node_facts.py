"""What a machine has for training: versions, GPUs, disk, limits. It runs on each node, whatever is missing there.

So it imports nothing that may be missing; torch is asked in a process of its own, which may fail.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moe_dist.launch.shared_folder import what_is_wrong

PACKAGES = (
    *("torch", "torchvision", "timm", "ray", "deepspeed", "webdataset", "tensorboard", "pydantic", "pyyaml", "typer"),
    *(
        "rich",
        "numpy",
        "scipy",
        "scikit-learn",
        "optuna",
        "safetensors",
        "matplotlib",
        "pillow",
        "simplejpeg",
        "fsspec",
    ),
)
"""The packages that moe_dist needs, as pyproject.toml has them."""
TORCH_SECONDS = 120.0
ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda and gpus else None
print(json.dumps({"cuda": torch.version.cuda, "gpus": gpus, "nccl": nccl}))
"""
HIDING_GPUS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables by which Ray hides GPUs from a task that has asked for none."""


def examine(folders: Mapping[str, str], witnesses: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """The facts about a node, and what is wrong with the folders of the witnesses there."""
    return node_facts(folders), [sentence for sentence in what_is_wrong(witnesses) if sentence]


def now() -> float:
    """The time by this machine's clock."""
    return time.time()


def node_facts(folders: Mapping[str, str]) -> dict[str, Any]:
    """The facts about this machine, as JSON has them. folders: those whose free space counts, by their names."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "torch": _torch(),
        "driver_gpus": _gpus_of_the_driver(),
        "free_bytes": {name: _free_bytes(Path(folder)) for name, folder in folders.items()},
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def _version_of(package: str) -> str | None:
    """The version of an installed package, without what its build adds (2.11.0 of 2.11.0+cu128); None if missing."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    """What torch says of CUDA, NCCL and GPUs; or `error`, why it cannot be loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDING_GPUS}
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], env=environment, capture_output=True, text=True, timeout=TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"is not loaded within {TORCH_SECONDS:g} s"}
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        return {"error": lines[-1]}
    return json.loads(answer.stdout)


def _gpus_of_the_driver() -> int:
    """The number of GPUs that NVIDIA's driver has."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0


def _free_bytes(folder: Path) -> int:
    """The free bytes of the disk of a folder, which need not exist."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free
