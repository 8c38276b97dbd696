"""Files appear whole or not at all, two writers use different temporary names, and lasting files are flushed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moe_dist.files import read_json, whole_file, write_json, write_text


def test_two_writers_of_one_process_number_use_two_names(tmp_path: Path) -> None:
    """Processes of two nodes can have the same number, and the same node name in two containers."""
    path = tmp_path / "results.json"
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_what_must_last_is_on_the_disk_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed before the rename and the folder after it; files of progress are not flushed."""
    happened: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(old: Path, new: Path) -> None:
        happened.append("rename")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a", "a")
    assert happened == ["file", "rename", "folder"]
    happened.clear()
    write_text(tmp_path / "b", "b", lasting=False)
    assert happened == ["rename"]


@pytest.mark.parametrize("content", ["", '{"half": ', "\x00\x00\x00\x00"])
def test_a_json_file_that_a_power_cut_emptied_reads_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_text(content)
    assert read_json(tmp_path / "done.json") is None
    assert read_json(tmp_path / "missing.json") is None


def test_json_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "new folder" / "done.json", {"seconds": 1.5, "name": "Schild"})
    assert read_json(tmp_path / "new folder" / "done.json") == {"seconds": 1.5, "name": "Schild"}
