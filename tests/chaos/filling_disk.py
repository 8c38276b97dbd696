"""A script: DISK JOB LAUNCHER. Trains on a small tmpfs and fills it meanwhile; prints as JSON what became of the run.

It mounts the tmpfs, so it wants a mount namespace of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from moe_dist.engine.checkpoint import is_whole
from tests.run_folders import files_below

disk, job, launcher = Path(sys.argv[1]), *sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
run, filler = disk / "run", disk / "filler"
command = [sys.executable, "-m", "moe_dist.cli", "run", job, "--launcher", launcher, "--out", str(run)]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
while process.poll() is None and not any(
    path.read_text().count("\n") > 30 for path in files_below(run, "metrics.jsonl")
):
    time.sleep(0.02)
with filler.open("wb", buffering=0) as file:
    while process.poll() is None:
        try:
            file.write(bytes(4096))
        except OSError:
            time.sleep(0.01)
_, said = process.communicate()
saved = [path for path in run.rglob("*") if path.is_dir() and path.name.startswith(("checkpoint_", ".saving-"))]
torn = [str(path) for path in saved if not is_whole(path)]
filler.unlink()
resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
told = {
    "exit code": process.returncode,
    "said": said,
    "whole": len(saved) - len(torn),
    "torn": torn,
    "resumed": resumed.returncode,
    "resumed said": resumed.stderr,
}
print(json.dumps(told))
