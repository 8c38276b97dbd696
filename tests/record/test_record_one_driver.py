"""record/one_driver.py: waiting for a driver that is about to end."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from small_jobs import quiet

from moe_dist.record.one_driver import LOCK, only_driver, wait_until_free

FORK = multiprocessing.get_context("fork")  # a child has everything imported


def drive(run: Path, begun: Event, told_to_end: Event) -> None:
    with only_driver(run, quiet()):
        begun.set()
        told_to_end.wait()
        time.sleep(0.5)  # the other one waits by then, as a rule


def test_a_run_is_free_when_its_driver_has_ended_and_not_before(tmp_path: Path) -> None:
    begun, told_to_end = FORK.Event(), FORK.Event()
    driver = FORK.Process(target=drive, args=(tmp_path, begun, told_to_end))
    driver.start()
    begun.wait()
    wait_until_free(tmp_path, 0.0)
    assert driver.is_alive(), "it waited no longer than it was told"
    told_to_end.set()
    wait_until_free(tmp_path, 240.0)
    with only_driver(tmp_path, quiet()):
        pass  # it refuses a run that another process drives
    driver.join()


def test_a_run_that_was_never_driven_is_free(tmp_path: Path) -> None:
    wait_until_free(tmp_path, 60.0)
    assert not (tmp_path / LOCK).exists()
