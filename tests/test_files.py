"""Files appear whole or not at all, two writers use different temporary names, and lasting files are flushed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from moe_dist.errors import UserError
from moe_dist.files import read_json, require_writable, whole_file, write_json, write_text


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


def test_a_folder_that_can_be_written_to_is_left_as_it_is(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder", "--out new")
    require_writable(tmp_path, "--out here")
    assert list(tmp_path.iterdir()) == []


def places(tmp_path: Path) -> dict[str, Path]:
    """Places that nothing can be written to, also by root."""
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    folders = {"a file": "file", "below a file": "file/x/y", "a link to nothing": "nowhere", "a circle": "circle"}
    others = {"/proc": Path("/proc/x/y"), "a long name": tmp_path / ("x" * 300) / "y"}
    return {what: tmp_path / name for what, name in folders.items()} | others


@pytest.mark.parametrize("what", ["a file", "below a file", "a link to nothing", "a circle", "/proc", "a long name"])
def test_a_place_that_cannot_be_written_to_is_one_sentence(what: str, tmp_path: Path) -> None:
    place = places(tmp_path)[what]
    with pytest.raises(UserError, match=r"^--out x: .*choose another place") as told:
        require_writable(place, "--out x")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"cannot be written") if what != "a long name" else pytest.raises(OSError):
        write_text(place / "report.html", "a report")


def refusing(*names: str) -> Any:
    """A stub of os.open for a user who may not open these files or make files in these folders, as root may."""
    really = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if any(Path(os.fspath(path)).is_relative_to(name) for name in names):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return really(path, *arguments, **options)

    return refuse


def test_another_users_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(str(tmp_path)))
    with pytest.raises(UserError, match=rf"--out x: nothing can be written into {tmp_path} \(Permission denied\)"):
        require_writable(tmp_path / "x", "--out x")


def test_an_error_of_another_file_in_the_block_is_not_the_written_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        (tmp_path / "absent").read_text()
