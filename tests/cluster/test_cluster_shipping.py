"""What a submission ships: code, never data, history or what was built; with git and without."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from moe_dist.errors import UserError
from moe_dist.launch import shipping

SHIPPED = {"jobs/demo.yaml", "moe_dist/data/order.py", "pyproject.toml"}
NOT_SHIPPED = {
    ".venv/bin/python",
    "runs/demo/metrics.jsonl",
    "data/images.tar",
    "moe_dist/__pycache__/cli.pyc",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name in SHIPPED | NOT_SHIPPED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def under_git(root: Path) -> None:
    (root / ".gitignore").write_text("/.venv/\n/runs/\n/data/\n__pycache__/\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)


def packed_names(root: Path, folder: Path) -> set[str]:
    with zipfile.ZipFile(shipping.pack_tree(root, folder, {})) as archive:
        return set(archive.namelist())


def test_without_git_names_decide(tree: Path, tmp_path: Path) -> None:
    assert packed_names(tree, tmp_path) == SHIPPED


def test_with_git_what_is_not_ignored_is_shipped(tree: Path, tmp_path: Path) -> None:
    under_git(tree)
    assert packed_names(tree, tmp_path) == SHIPPED | {".gitignore"}


def test_a_tracked_file_that_was_deleted_is_no_error(tree: Path, tmp_path: Path) -> None:
    under_git(tree)
    subprocess.run(["git", "add", "pyproject.toml"], cwd=tree, check=True)
    (tree / "pyproject.toml").unlink()
    assert packed_names(tree, tmp_path) == SHIPPED - {"pyproject.toml"} | {".gitignore"}


def test_contents_arrive_as_they_were(tree: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shipping.pack_tree(tree, tmp_path, {"job.yaml": "name: x\n"})) as archive:
        assert archive.read("job.yaml") == b"name: x\n"
        assert archive.read("moe_dist/data/order.py") == b"moe_dist/data/order.py"


def test_a_tree_too_large_is_refused_before_it_is_packed(tree: Path, tmp_path: Path) -> None:
    with (tree / "jobs" / "weights.bin").open("wb") as file:
        file.truncate(120 * 2**20)  # sparse: takes no disk
    with pytest.raises(UserError, match=r"holds 120 MiB to ship and Ray takes 100 MiB.*largest: jobs \(120 MiB\)"):
        shipping.pack_tree(tree, tmp_path, {})
    assert not list(tmp_path.glob("*.zip"))
