"""Runs parts one after another, and writes each one's result as soon as it is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from moe_dist.files import read_json, write_json

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 10
"""How long a part may take to end itself after its time."""


@dataclass(frozen=True)
class Options:
    """How parts are run.

    out: the folder of results; device: cuda or cpu; dry: tiny sizes; source: the images of recipes; seconds: the time
    of a part; recipes: jobs to train side by side; mps: whether they share the GPU by CUDA's MPS.
    """

    out: Path
    device: str = "cpu"
    dry: bool = True
    source: Path = Path()
    seconds: float = 120
    recipes: tuple[str, ...] = ()
    mps: bool = False

    def arguments(self) -> list[str]:
        """The same on a command line."""
        given = ["--out", str(self.out), "--device", self.device, "--source", str(self.source)]
        given += ["--seconds", str(self.seconds)]
        given += [flag for flag, is_set in (("--dry-run", self.dry), ("--mps", self.mps)) if is_set]
        return given + [word for recipe in self.recipes for word in ("--recipe", recipe)]


@dataclass(frozen=True)
class Outcome:
    """A part's result: a line for people, and all of it as JSON values."""

    line: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part: what it measures, and the function that does."""

    about: str
    run: Callable[[Options], Outcome]


def run_parts(names: Sequence[str], parts: Mapping[str, Part], options: Options) -> int:
    """Run the parts `names` in turn; the number of those that failed. Results of other parts in the folder stay.

    A dry run is in this process: it starts no GPU that one part could leave broken for the next.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = read_json(options.out / "results.json") or {}
    measured_on, failed = machine(), 0
    for name in names:
        started = time.perf_counter()
        found = _in_process(parts[name], options) if options.dry else _in_child(name, options)
        found |= {"seconds": round(time.perf_counter() - started, 1), "machine": measured_on, "dry": options.dry}
        failed += "failed" in found
        results[name] = found
        write_json(options.out / "results.json", results)
        told = f"FAILED: {found['failed']}" if "failed" in found else found["line"]
        line = f"{name}: {told} ({found['seconds']:.0f} s)"
        print(line, flush=True)
        with (options.out / "lines.txt").open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
    return failed


def run_child(name: str, options: Options) -> int:
    """Run one part in this process and leave its result for the parent."""
    from benchmarks.on_gpu.parts import PARTS

    write_json(options.out / f"{name}.part.json", _in_process(PARTS[name], options))
    return 0


def _in_process(part: Part, options: Options) -> dict[str, Any]:
    try:
        outcome = part.run(options)
    except Exception as error:  # whatever it is, the next part is run
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    return {"line": outcome.line, **outcome.facts}


def _in_child(name: str, options: Options) -> dict[str, Any]:
    """The result of a part in a process of its own, which is ended, with all that it started, when its time is over."""
    left = options.out / f"{name}.part.json"
    left.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--child", name, *options.arguments()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(command, cwd=Path.cwd(), env=environment, start_new_session=True)
    try:
        code = child.wait(options.seconds + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"was not over after {options.seconds:g} seconds"}
    finally:  # also when this process is interrupted: the child has a session of its own
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    found = read_json(left)
    left.unlink(missing_ok=True)
    return found or {"failed": f"ended with code {code} and no result"}
