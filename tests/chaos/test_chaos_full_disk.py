"""A disk that fills up under a run: one sentence, nothing torn, no rank left waiting, and --resume finishes it.

Writers that fail stand for the disk everywhere; a small tmpfs, where one may be mounted, is the real thing.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.engine import checkpoint
from moe_dist.errors import DiskError
from moe_dist.job import dump_job
from moe_dist.launch import local
from moe_dist.launch.choose import open_launcher
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import checkpoints
from moe_dist.train.log import TrainingLog

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small_jobs import quiet, traditional

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
SAVE = checkpoint.save_file


def full() -> OSError:
    """What the system raises."""
    return OSError(errno.ENOSPC, "No space left on device")


def save_until_full(tensors: Any, path: Path) -> None:
    """Three epochs' checkpoints fit, and of the fourth one a part."""
    if path.parent.name == ".saving-00000024" and path.name == "dense.optimiser.safetensors":
        path.write_bytes(b"cut")
        raise full()
    SAVE(tensors, path)


def steps_left(run: Path) -> list[int]:
    """The steps of the run's checkpoints, all of which are whole."""
    (folder,) = {path.parent for path in run.rglob("checkpoint_*") if path.is_dir()}
    left = [path for path in folder.iterdir() if path.is_dir()]
    assert sorted(left) == sorted(checkpoints(folder)), "no unfinished folder stays, hidden or not"
    return [checkpoint.read_state(path)["step"] for path in checkpoints(folder)]


def test_a_checkpoint_that_does_not_fit_leaves_the_ones_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, run = traditional(epochs=6), tmp_path / "run"
    sentence = f"^{run}.*: the disk is full, so a checkpoint .* go on with --resume$"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", save_until_full)
        with pytest.raises(DiskError, match=sentence):
            run_job(job, run, "local", quiet())
    assert steps_left(run)[-2:] == [12, 18]
    run_job(job, run, "local", quiet())
    assert steps_left(run)[-2:] == [30, 36]


def rank_1_on_a_full_disk(rank: int, *arguments: Any) -> None:
    """In the process of a rank: what `_spawned` does, where rank 1 cannot write and rank 0 waits for it."""
    if rank == 1:
        checkpoint.save_file = save_nothing
    local._spawned(rank, *arguments)


def save_nothing(tensors: Any, path: Path) -> None:
    raise full()


def test_a_rank_on_a_full_disk_ends_the_ones_that_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_spawned", rank_1_on_a_full_disk)
    with pytest.raises(DiskError, match="the disk is full, so a checkpoint or the log could not be written"):
        run_job(traditional(workers=2), tmp_path / "run", "local", quiet())
    assert multiprocessing.active_children() == []
    assert [*tmp_path.rglob("checkpoint_*"), *tmp_path.rglob(".saving-*")] == []


def failing_log(*arguments: Any, **facts: Any) -> None:
    raise full()


def failing_arrays(*arguments: Any, **arrays: Any) -> None:
    raise full()


@pytest.mark.parametrize(
    ("owner", "name", "failing", "what"),
    [
        (TrainingLog, "write", failing_log, "a checkpoint or the log"),
        (np, "savez", failing_arrays, "what the run leaves"),
    ],
    ids=["metrics", "results"],
)
def test_whatever_a_run_writes_it_is_one_sentence(
    owner: Any, name: str, failing: Callable[..., None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(dump_job(traditional()))
    words = ["run", str(job), "--launcher", "local", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        ended = CliRunner().invoke(app, words).exception
    assert isinstance(ended, DiskError)
    assert str(ended).startswith(f"{tmp_path / 'run'}") and f"is full, so {what} could not" in str(ended)
    assert CliRunner().invoke(app, [*words, "--resume"]).exit_code == 0


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with open_launcher("ray", traditional(), tmp_path_factory.mktemp("ray"), quiet()):
        yield


def end_on_ray(worker: Callable[[dict[str, Any]], None], run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Train by Ray Train with `worker` as its rank; the sentence that ends it at the first start of that rank."""
    from moe_dist.launch import ray_trainer
    from moe_dist.launch.ray import RayLauncher

    starts = run.parent / "starts"

    def counted(packed: dict[str, Any]) -> None:
        with starts.open("a") as file:
            file.write("x")
        worker(packed)

    @contextmanager
    def already_running(*_: Any) -> Iterator[RayLauncher]:
        yield RayLauncher(traditional(), run, quiet())

    monkeypatch.setattr(ray_trainer, "train_worker", counted)
    monkeypatch.setattr("moe_dist.run.run.open_launcher", already_running)
    with pytest.raises(DiskError) as ended:
        run_job(traditional(), run, "ray", quiet())
    assert starts.read_text() == "x", "started again, it would have found the same disk"
    assert [path for path in run.rglob("checkpoint_*") if path.is_dir()] == [], "the torn one is gone"
    return str(ended.value)


def test_a_checkpoint_that_ray_train_cannot_copy_is_not_tried_again(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(packed: dict[str, Any]) -> None:
        from ray.train.v2._internal.execution import storage

        from moe_dist.launch.ray_trainer import train_worker

        def copy_a_part(source: str, destination: str, **_: Any) -> None:
            shutil.copy(Path(source) / "state.json", destination)
            raise OSError(errno.ENOSPC, "Error writing bytes to file")

        storage._pyarrow_fs_copy_files = copy_a_part
        train_worker(packed)

    sentence = end_on_ray(worker, tmp_path / "run", monkeypatch)
    assert sentence.startswith(f"{tmp_path / 'run'}") and sentence.endswith("free space there and go on with --resume")


def test_a_full_disk_for_temporary_files_is_named_as_that(
    ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(packed: dict[str, Any]) -> None:
        from moe_dist.engine import checkpoint
        from moe_dist.launch.ray_trainer import train_worker

        def save(tensors: Any, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint.save_file = save
        train_worker(packed)

    sentence = end_on_ray(worker, tmp_path / "run", monkeypatch)
    what = f"a checkpoint (on {socket.gethostname()}, before it is copied)"
    assert sentence.startswith(f"{tempfile.gettempdir()}: the disk is full, so {what} could not be written; free space")


IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
"""A tmpfs mounted in it is gone, and seen by nobody else, when its last process ends."""


def mounting_is_permitted(folder: Path) -> bool:
    command = [*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("launcher", "workers"),
    [("local", 1), pytest.param("local", 2, marks=pytest.mark.slow), pytest.param("ray", 2, marks=pytest.mark.slow)],
)
def test_a_real_disk_that_fills_up_in_mid_training(launcher: str, workers: int, tmp_path: Path) -> None:
    """filling_disk.py mounts it, fills it while the command trains on it, frees it and goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounting_is_permitted(disk):
        pytest.skip("a tmpfs cannot be mounted here")
    job = tmp_path / "job.yaml"
    job.write_text(dump_job(traditional(epochs=40, workers=workers)))
    command = [*IN_A_NAMESPACE, sys.executable, str(Path(__file__).parent / "filling_disk.py")]
    command += [str(disk), str(job), launcher]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    (line,) = told["said"].splitlines()
    assert line.startswith(f"error: {disk / 'run'}") and "the disk is full, so " in line
    assert line.endswith("free space there and go on with --resume")
    assert told["exit code"] == 2 and told["torn"] == [] and told["whole"] > 0
    assert told["resumed"] == 0, told["resumed said"]
