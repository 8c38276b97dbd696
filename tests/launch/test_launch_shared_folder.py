"""A folder that is not the same on all nodes is found out; two folders of one name stand for two machines' disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_dist.errors import UserError
from moe_dist.launch import ray_nodes, shared_folder
from moe_dist.launch.ray_nodes import Answer, require_shared
from moe_dist.launch.shared_folder import what_is_wrong, witness_in


def test_a_shared_folder_is_fine_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    with witness_in(tmp_path / "runs" / "x") as witness:
        assert witness.parent == tmp_path
        assert what_is_wrong([witness, witness]) == ["", ""]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_machines_own_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "SEEN_SECONDS", 0.0)
    (tmp_path / "elsewhere").mkdir()
    with witness_in(tmp_path) as witness:
        own = tmp_path / "elsewhere" / witness.name
        assert what_is_wrong([own]) == [f"has a folder {own.parent} of its own, which is not the head's"]
        gone = tmp_path / "gone" / witness.name
        assert what_is_wrong([gone]) == [f"has no folder {gone.parent}"]


def test_a_folder_that_cannot_be_written_to_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with witness_in(tmp_path) as witness:
        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        assert what_is_wrong([witness]) == [f"cannot write into {tmp_path} (Permission denied)"]


def test_the_nodes_that_do_not_share_a_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        Answer("1", "10.0.0.1", 0, value=["", ""]),
        Answer("2", "10.0.0.2", 0, value=["", "has no folder /shared"]),
        Answer("3", "10.0.0.3", 0, silence="does not answer within 60 s"),
    ]
    monkeypatch.setattr(ray_nodes, "ask_every_node", lambda function, witnesses: answers)
    with pytest.raises(UserError) as told:
        require_shared({"MOE_DIST_CACHE": tmp_path})
    assert "10.0.0.3 does not answer within 60 s. All nodes" in str(told.value) and "10.0.0.2" not in str(told.value)
    answers.pop()
    with pytest.raises(UserError, match=rf"^MOE_DIST_CACHE {tmp_path}: 10\.0\.0\.2 has no folder /shared\. All nodes"):
        require_shared({"--out": tmp_path, "MOE_DIST_CACHE": tmp_path})
    answers.pop()
    require_shared({"--out": tmp_path, "MOE_DIST_CACHE": tmp_path})
