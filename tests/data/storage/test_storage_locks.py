"""Locks of files: held against everybody, gone with their process, also where their file was removed."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_dist.data.storage import locks
from moe_dist.data.storage.locks import in_turn, is_locked, locked


def hold_for_ever(path: Path, held: Any) -> None:
    with locked(path):
        held.set()
        threading.Event().wait()


def test_a_lock_is_held_against_others_and_goes_with_its_process(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    path, held = tmp_path / "folder/lock", context.Event()
    process = context.Process(target=hold_for_ever, args=(path, held), daemon=True)
    process.start()
    held.wait()
    assert is_locked(path)
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    process.kill()
    process.join()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)


def before_the_first_flock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between the opening of a lock's file and its locking."""
    flock = fcntl.flock

    def act_then_flock(file: Any, operation: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        act()
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", act_then_flock)


def test_a_lock_whose_file_the_last_holder_removed_is_the_lock_of_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "folder/lock"
    for remove in (lambda: path.unlink(), lambda: shutil.rmtree(path.parent)):
        before_the_first_flock(monkeypatch, remove)
        with locked(path):
            assert is_locked(path)


def test_who_waits_in_turn_comes_after_the_one_inside_and_leaves_nothing(tmp_path: Path):
    path, inside, waiting = tmp_path / "lock", threading.Event(), threading.Event()
    came: list[str] = []

    def first() -> None:
        with in_turn(path):
            inside.set()
            waiting.wait()
            came.append("first")

    def second() -> None:
        inside.wait()
        waiting.set()
        with in_turn(path):
            came.append("second")

    threads = [threading.Thread(target=target) for target in (second, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came == ["first", "second"] and list(tmp_path.iterdir()) == []


def test_without_locks_all_are_let_in_and_a_needed_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with in_turn(tmp_path / "lock"), in_turn(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "lock"):
        pass


def test_an_error_inside_is_not_taken_for_a_missing_lock(tmp_path: Path):
    with pytest.raises(OSError, match="inside"), in_turn(tmp_path / "lock"):
        raise OSError(errno.ENOLCK, "inside")
    assert list(tmp_path.iterdir()) == []
