"""What is used of fsspec, s3fs and tarfile beyond what they document: each is pinned here, by its name."""

from __future__ import annotations

import inspect
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from moe_dist.data.storage.tars import members
from moe_dist.data.storage.transfer import Watch


def test_an_asynchronous_file_system_of_fsspec_has_the_coroutines_that_are_started_on_its_loop():
    system, _ = url_to_fs("http://127.0.0.1/x")
    assert isinstance(system, AsyncFileSystem) and system.async_impl, "fsspec's async_impl says what system.loop is for"
    assert system.loop.is_running(), "fsspec's loop no longer runs in a thread of its own"
    for operation in ("_info", "_ls", "_get_file", "_put_file"):
        found = getattr(type(system), operation, None)
        assert inspect.iscoroutinefunction(found), f"fsspec's http file system has no coroutine {operation} any more"
    assert not MemoryFileSystem.async_impl, "a file system without a loop is run in a thread"


def test_s3fs_still_takes_its_number_of_tries_and_connects_beforehand():
    s3fs = pytest.importorskip("s3fs")
    system = s3fs.S3FileSystem(anon=True, skip_instance_cache=True)
    assert isinstance(system.retries, int), "s3fs no longer counts its tries in `retries`, which is set to 1"
    assert callable(system.connect), "s3fs has no `connect` any more"


@pytest.mark.parametrize("changed", ["set_size", "absolute_update", "relative_update"])
def test_a_callback_of_fsspec_tells_the_watch_of_every_change(changed: str):
    watch = Watch()
    assert (watch.value, watch.size) == (0, None), "fsspec's callbacks no longer start without bytes and a size"
    watch.moved = 0.0
    getattr(watch, changed)(5)
    assert watch.moved > 0, f"fsspec's {changed} no longer calls `call`"


def test_tarfile_keeps_no_header_that_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a tar of a million images they would be a gigabyte."""
    path = tmp_path / "many.tar"
    with tarfile.open(path, "w:") as tar:
        for number in range(20):
            tar.addfile(tarfile.TarInfo(f"{number:02d}.png"))
    opened: list[Any] = []
    open_tar = tarfile.open

    def noted(*given: Any, **named: Any) -> Any:
        opened.append(open_tar(*given, **named))
        return opened[-1]

    monkeypatch.setattr(tarfile, "open", noted)
    for number, member in enumerate(members(path)):
        assert member.name == f"{number:02d}.png"
        assert len(opened[0].members) <= 1, "tarfile keeps its headers elsewhere than in `members`"
