"""What made a result: the version of the code, the machines of the ranks, and their steps and seconds."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe_dist import __version__
from moe_dist.processor import has_amx


class Made:
    """Records what made a training, as a list of stretches of steps, each by one version of code on the same machines.

    A stretch has from_step, to_step, seconds, workers, hardware (the ranks' machines in words, equal ones together:
    "2 x 8 cores of ..."), code, torch, precision and start.
    """

    def __init__(self, earlier: Sequence[dict[str, Any]], step: int, ranks: int, precision: str, start: int) -> None:
        """earlier: the stretches up to `step`, from a checkpoint. start: the number of the run's start. Collective."""
        self._started = time.perf_counter()
        machines: list[Any] = [hardware()]
        if ranks > 1:
            machines = [None] * ranks
            dist.all_gather_object(machines, hardware())
        about = {
            "workers": ranks,
            "hardware": [words if n == 1 else f"{n} x {words}" for words, n in Counter(machines).items()],
            "code": code_version(),
            "torch": torch.__version__,
            "precision": precision,
            "start": start,
        }
        self._before = 0.0
        self._stretches = [dict(stretch) for stretch in earlier]
        if earlier and about.items() <= earlier[-1].items():
            self._before = earlier[-1]["seconds"]
        else:
            self._stretches.append({"from_step": step, "to_step": step, "seconds": 0.0, **about})

    def up_to(self, step: int) -> list[dict[str, Any]]:
        """All stretches, of which the last one ends at `step`."""
        self._stretches[-1] |= {"to_step": step, "seconds": self._before + time.perf_counter() - self._started}
        return self._stretches


@cache
def hardware() -> str:
    """This machine's processor (cores, name, vector instructions, AMX where it has that) and its GPUs, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    instructions = torch.backends.cpu.get_cpu_capability() + (", AMX" if has_amx() else "")
    return ", ".join([f"{os.cpu_count()} cores of {name} ({instructions})", *gpus])


@cache
def code_version() -> str:
    """The version of the package, with its git commit, or outside a repository with a hash of its files.

    For example "0.1.0+c4bf989a12", "0.1.0+c4bf989a12.changed" (files differ from the commit), "0.1.0+files.1f2e3d4c5b".
    """
    package = Path(__file__).parents[1]
    tracked = _git(
        package, "ls-files", "--", "__init__.py"
    )  # empty if the package is only installed inside another repository
    commit = _git(package, "rev-parse", "--short=10", "HEAD") if tracked else ""
    if commit:
        changed = ".changed" if _git(package, "status", "--porcelain", "--", ".") else ""
        return f"{__version__}+{commit}{changed}"
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return f"{__version__}+files.{digest.hexdigest()[:10]}"


def _git(folder: Path, *command: str) -> str:
    """The output of a git command in `folder`; empty if it fails, or git is not installed."""
    try:
        answer = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
