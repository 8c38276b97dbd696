"""Checkpoints at a URL: they count when they are whole there, damaged ones are passed over, superseded ones removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_jobs
import torch
from safetensors.torch import save_file

from moe_dist.data.storage.store import StoreFailed
from moe_dist.engine.checkpoint import STATE
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, write_json
from moe_dist.train import store_worker
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.store_worker import StoreWorker, open_worker, stored_checkpoints
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import LocalWorker

CPU = torch.device("cpu")


@pytest.fixture
def task(tmp_path: Path) -> TrainingTask:
    """A task of a run at a URL, as a node has unpacked it."""
    run = tmp_path / "node/runs/x"
    task = TrainingTask(small_jobs.traditional(), "small", run, tmp_path, "", run / "small/trainings/abc")
    return replace(task, url=f"file://{tmp_path}/store")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder of the checkpoints at the URL."""
    return tmp_path / "store/small/trainings/abc/checkpoints"


def worker_of(task: TrainingTask) -> StoreWorker:
    return StoreWorker(task, 0, 1, CPU, deepspeed=False)


def save(worker: StoreWorker, step: int, score: float | None = None) -> None:
    """Save a checkpoint of two files, as save_checkpoint does."""
    with worker.saving({"step": step}) as folder:
        files = {}
        for name in ("dense.safetensors", "random_0000.safetensors"):
            save_file({"value": torch.full((4,), float(step))}, folder / name)
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        state = {"step": step, "stage": "train", "score": score}
        write_json(folder / STATE, {"format": 2, "world": 1, "files": files, "state": state})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint_*"))


def test_another_node_goes_on_from_the_newest(task: TrainingTask, tmp_path: Path) -> None:
    worker = worker_of(task)
    assert worker.restore() is None
    save(worker, 6)
    save(worker, 12)
    far = replace(task, run=tmp_path / "far/x", folder=tmp_path / "far/x/small/trainings/abc")
    restored = worker_of(far).restore()
    assert restored == far.checkpoints / "checkpoint_00000012"
    assert newest_checkpoint(far.checkpoints) == restored
    assert names(far.checkpoints) == ["checkpoint_00000012"]  # the older one is not fetched


def test_state_json_arrives_last(task: TrainingTask, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[tuple[str, int]] = []
    real = store_worker.put_file

    def put_file(local: Path, url: str, *further: Any) -> None:
        real(local, url, *further)
        arrived.append((local.name, len(list(there.glob("*/*.safetensors")))))

    monkeypatch.setattr(store_worker, "put_file", put_file)
    save(worker_of(task), 6)
    assert arrived[-1] == (STATE, 2)


def test_a_save_that_was_broken_off_does_not_count_and_is_removed(
    task: TrainingTask, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(task)
    save(worker, 6)
    real = store_worker.put_file

    def put_file(local: Path, url: str, *further: Any) -> None:
        if local.name == STATE:
            raise StoreFailed("the store is gone", lasting=True)
        real(local, url, *further)

    with monkeypatch.context() as broken, pytest.raises(UserError, match="the store is gone"):
        broken.setattr(store_worker, "put_file", put_file)
        save(worker, 12)
    assert names(there) == ["checkpoint_00000006", "checkpoint_00000012"]
    assert not (there / "checkpoint_00000012" / STATE).exists()
    restored = worker_of(task).restore()
    assert restored is not None and restored.name == "checkpoint_00000006"
    assert not list(there.glob("checkpoint_00000012/*"))
    assert not list(task.checkpoints.glob(".saving-*"))


def test_a_checkpoint_damaged_at_the_url_is_passed_over(task: TrainingTask, there: Path, tmp_path: Path) -> None:
    worker = worker_of(task)
    save(worker, 6)
    save(worker, 12)
    file = there / "checkpoint_00000012/dense.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\0\1"[content[-1] == 0 :][:1])
    far = replace(task, run=tmp_path / "far/x", folder=tmp_path / "far/x/small/trainings/abc")
    restored = worker_of(far).restore()
    assert restored is not None and restored.name == "checkpoint_00000006"
    (there / "checkpoint_00000006/random_0000.safetensors").write_bytes(b"\0" * (len(content)))
    for path in there.glob("checkpoint_00000006/random*"):
        assert path.stat().st_size == len(content)
    farther = replace(task, run=tmp_path / "new/x", folder=tmp_path / "new/x/small/trainings/abc")
    with pytest.raises(UserError, match="does not hold the bytes that were written, and no other checkpoint there is"):
        worker_of(farther).restore()


def test_a_copy_that_went_bad_on_the_node_is_fetched_again(task: TrainingTask) -> None:
    worker = worker_of(task)
    save(worker, 6)
    file = task.checkpoints / "checkpoint_00000006/dense.safetensors"
    good = file.read_bytes()
    file.write_bytes(b"\0" * len(good))
    assert worker_of(task).restore() == file.parent
    assert file.read_bytes() == good


def test_the_newest_and_the_best_stay_at_the_url_and_here(task: TrainingTask, there: Path) -> None:
    job = task.job.model_copy(update={"checkpoint": task.job.checkpoint.model_copy(update={"keep": 1})})
    task = replace(task, job=job)
    worker = worker_of(task)
    for step, score in ((6, 0.9), (12, 0.5)):
        save(worker, step, score)
    worker = worker_of(task)  # of the next start, which reads their scores
    worker.restore()
    for step, score in ((18, 0.8), (24, 0.7)):
        save(worker, step, score)
    kept = ["checkpoint_00000006", "checkpoint_00000024"]
    assert sorted(stored_checkpoints(f"file://{there}")[0]) == kept
    assert names(task.checkpoints) == kept


def test_the_log_is_there_before_the_checkpoint_counts(
    task: TrainingTask, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.folder.mkdir(parents=True)
    (task.folder / "metrics.jsonl").write_text('{"step": 6}\n')
    (task.folder / "settings.json").write_text("{}")  # the driver's
    lines = []
    real = store_worker.put_file

    def put_file(local: Path, url: str, *further: Any) -> None:
        if local.name == STATE:
            lines.append((there.parent / "metrics.jsonl").read_text())
        real(local, url, *further)

    monkeypatch.setattr(store_worker, "put_file", put_file)
    save(worker_of(task), 6)
    assert lines == ['{"step": 6}\n']
    assert not (there.parent / "settings.json").exists()


def test_a_rank_that_is_not_the_first_keeps_its_bad_samples_alone(task: TrainingTask, tmp_path: Path) -> None:
    task.folder.mkdir(parents=True)
    (task.folder / "metrics.jsonl").write_text("{}\n")
    (task.run / "bad_samples").mkdir()
    (task.run / "bad_samples/far-7.txt").write_text("a sample\n")
    with StoreWorker(task, 1, 2, CPU, deepspeed=False).keeping_log():
        pass
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["far-7.txt"]


def test_without_a_url_the_worker_is_the_local_one(task: TrainingTask) -> None:
    with open_worker(replace(task, url=None), 0, 1, CPU, deepspeed=False) as worker:
        assert isinstance(worker, LocalWorker)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collectives in which the other of two ranks says a sentence."""
    others: list[str] = [""]

    def all_gather_object(found: list[str], own: str) -> None:
        found[:] = [own, others[0]]

    stub = SimpleNamespace(all_gather_object=all_gather_object)
    monkeypatch.setattr(store_worker, "dist", stub)
    yield others


def test_a_rank_that_cannot_push_ends_all_of_them(task: TrainingTask, there: Path, two_ranks: list[str]) -> None:
    two_ranks[0] = "s3://bucket: cannot be written"
    worker = StoreWorker(task, 0, 2, CPU, deepspeed=False)
    with pytest.raises(UserError, match="cannot be written"):
        save(worker, 6)
    assert not list(there.glob("*/state.json"))
