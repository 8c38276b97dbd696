"""A rank of a training whose run is at a URL: nodes need share no disk.

saving   1. each rank writes into a hidden folder of its node, and pushes its files
         2. when all have arrived, and the log up to this step, rank 0 pushes state.json: the checkpoint counts now
         3. rank 0 removes superseded checkpoints at the URL; every node keeps its own files of the others
restore  rank 0 looks for the newest checkpoint that is whole at the URL; every node fetches what it does not have,
         each file compared with its sha256
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from moe_dist.data.storage.locks import locked
from moe_dist.data.storage.store import get_bytes, get_file, join, put_file, remove, shown, stored_files
from moe_dist.engine.checkpoint import STATE, whole_content
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, whole_file, write_text
from moe_dist.record.mirror import BOARD, LOGS, PATIENT, Mirror
from moe_dist.train.checkpoints import superseded_among
from moe_dist.train.ends import Left
from moe_dist.train.log import Log
from moe_dist.train.task import BAD_SAMPLES, TrainingTask
from moe_dist.train.worker import LocalWorker, from_first_rank

AT_A_TIME = 8
"""Files of a checkpoint that a rank transfers at a time."""
T = TypeVar("T")


class StoreWorker:
    """A rank whose checkpoints are at a URL, and which pushes its own files of the run with each of them."""

    def __init__(self, task: TrainingTask, rank: int, ranks: int, device: torch.device, deepspeed: bool) -> None:
        assert task.url is not None
        self.rank, self.ranks, self.device, self.deepspeed = rank, ranks, device, deepspeed
        self._folder, self._keep = task.checkpoints, task.job.checkpoint.keep
        self._mirror = Mirror(task.run, task.url, lambda name: _of_a_rank(name, task, rank))
        self._url = self._mirror.url_of(self._folder)
        self._whole: dict[str, dict[str, Any]] = {}

    def restore(self) -> Path | None:
        """See Worker."""
        name = from_first_rank(self._newest, self.rank, self.ranks)
        if name is None:
            return None
        self._together(lambda: fetch_checkpoint(join(self._url, name), self._folder / name))
        return self._folder / name

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See Worker."""
        name = f"checkpoint_{metrics['step']:08d}"
        hidden = self._folder / f".saving-{name}-{self.rank:04d}"
        shutil.rmtree(hidden, ignore_errors=True)  # left by a run that was killed
        hidden.mkdir(parents=True)
        try:
            yield hidden
            self._together(lambda: self._push(hidden, name))
            self._together(lambda: self._publish(hidden, name))
            _move(hidden, self._folder / name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        for old in from_first_rank(self._remove_superseded, self.rank, self.ranks):
            shutil.rmtree(self._folder / old, ignore_errors=True)

    def metered(self, log: Log, job: str, model: str) -> Log:
        """See Worker. A cluster's launcher adds what tells whoever watches the cluster."""
        return log

    def leaving(self) -> Left | None:
        """See Worker. A cluster's launcher hears of nodes that go and come."""
        return None

    @contextlib.contextmanager
    def keeping_log(self) -> Iterator[None]:
        """Push this rank's log and its notes of bad samples while the block trains, and the rest of them at its end."""
        with self._mirror.keeping(lambda sentence: print(sentence, file=sys.stderr)):
            yield

    def _newest(self) -> str | None:
        """The name of the newest undamaged checkpoint at the URL, which is fetched; what is not whole is removed there.

        Raises UserError if all are damaged.
        """
        self._whole, torn = stored_checkpoints(self._url)
        for file in torn:
            remove(join(self._url, file), PATIENT)
        damaged: list[Damaged] = []
        for name in sorted(self._whole, key=lambda name: self._whole[name]["state"]["step"], reverse=True):
            try:
                fetch_checkpoint(join(self._url, name), self._folder / name)
                return name
            except Damaged as error:
                damaged.append(error)
                del self._whole[name]
        if damaged:
            raise UserError(f"{damaged[0]}, and no other checkpoint there is whole; move them away to train anew")
        return None

    def _push(self, hidden: Path, name: str) -> None:
        """Push this rank's files of a checkpoint, without state.json, and its log up to here."""
        files = [file for file in sorted(hidden.iterdir()) if file.name != STATE]
        _each(lambda file: put_file(file, join(self._url, name, file.name), PATIENT), files)
        self._mirror.push()

    def _publish(self, hidden: Path, name: str) -> None:
        """Push state.json: the checkpoint is whole."""
        if self.rank == 0:
            put_file(hidden / STATE, join(self._url, name, STATE), PATIENT)
            self._whole[name] = json.loads((hidden / STATE).read_text())

    def _remove_superseded(self) -> list[str]:
        """Remove superseded checkpoints at the URL, state.json first, and return their names."""
        old = superseded_among({name: content["state"] for name, content in self._whole.items()}, self._keep)
        for name in old:
            for file in (STATE, *self._whole.pop(name)["files"]):
                remove(join(self._url, name, file), PATIENT)
        return old

    def _together(self, part: Callable[[], None]) -> None:
        """Do this rank's part and wait for the others'; a UserError of one is raised on every rank. Collective."""
        sentence = ""
        try:
            part()
        except UserError as error:
            sentence = str(error)
        sentences: list[Any] = [sentence]
        if self.ranks > 1:
            sentences = [""] * self.ranks
            dist.all_gather_object(sentences, sentence)
        if failed := next(filter(None, sentences), None):
            raise UserError(failed)


class Damaged(UserError):
    """A checkpoint at a URL with a file that is not what was written."""


@contextlib.contextmanager
def open_worker(
    task: TrainingTask, rank: int, ranks: int, device: torch.device, deepspeed: bool
) -> Iterator[StoreWorker | LocalWorker]:
    """Give the block the worker of a rank that no trainer saves checkpoints for: they go to a folder, or to a URL."""
    if task.url is None:
        yield LocalWorker(task.checkpoints, task.job.checkpoint.keep, rank, ranks, device)
        return
    worker = StoreWorker(task, rank, ranks, device, deepspeed)
    with worker.keeping_log():
        yield worker


def stored_checkpoints(url: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The whole checkpoints below a URL, by name, as their state.json has them; and the files of those that are not."""
    found: dict[str, dict[str, int]] = {}
    for path, stored in stored_files(url, PATIENT).items():
        name, _, file = path.partition("/")
        found.setdefault(name, {})[file] = stored.size
    whole, torn = {}, []
    for name, files in found.items():
        text = get_bytes(join(url, name, STATE), PATIENT).decode() if STATE in files else ""
        content = whole_content(text, files.get)
        if content is None:
            torn += [f"{name}/{file}" for file in files]
        else:
            whole[name] = content
    return whole, torn


def fetch_checkpoint(url: str, folder: Path) -> None:
    """Fetch those files of the checkpoint at a URL that `folder` does not have as they were written, state.json last.

    The ranks of a node take turns, and the first one fetches. Raises Damaged where a file is not what was written.
    """
    text = get_bytes(join(url, STATE), PATIENT).decode()
    with locked(folder.with_name(f".{folder.name}.lock")):
        files = json.loads(text)["files"]
        _each(lambda name: _fetch_file(join(url, name), folder / name, files[name]), files)
        write_text(folder / STATE, text, lasting=False)


def _fetch_file(url: str, path: Path, about: Mapping[str, Any]) -> None:
    """Fetch a file of a checkpoint, unless `path` is it. Raises Damaged where it is not what was written."""
    if not _is_as_written(path, about):
        with whole_file(path, lasting=False) as partial:
            get_file(url, partial, PATIENT)
            if not _is_as_written(partial, about):
                raise Damaged(f"{shown(url)}: does not hold the bytes that were written")


def _each(transfer: Callable[[T], None], files: Iterable[T]) -> None:
    """Transfer some files, several at a time: most are small, and wait for the store's answer."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for _ in pool.map(transfer, files):
            pass


def _is_as_written(path: Path, about: Mapping[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != about["bytes"]:
        return False
    return file_sha256(path) == about["sha256"]


def _move(source: Path, target: Path) -> None:
    """Move the files of a folder to another, which may have files of other ranks."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        os.replace(file, target / file.name)


def _of_a_rank(name: str, task: TrainingTask, rank: int) -> bool:
    """Whether a rank keeps the file `name` of a run: rank 0 its training's log, every one its notes of bad samples.

    Checkpoints are pushed as they are saved.
    """
    if name.startswith(f"{BAD_SAMPLES}/"):
        return True
    logs = [f"{task.folder.relative_to(task.run).as_posix()}/{log}" for log in (*LOGS, BOARD)]
    return rank == 0 and any(name == log or name.startswith(f"{log}/") for log in logs)
