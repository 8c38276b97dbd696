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


def in_git(*words: str, cwd: Path) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)


def other_folder(folder: Path) -> Path:
    """A folder beside the tree: gates/own.py, and what is never shipped."""
    (folder / "gates" / "__pycache__").mkdir(parents=True)
    (folder / "gates" / "own.py").write_text("own")
    (folder / "gates" / "__pycache__" / "own.pyc").touch()
    return folder


@pytest.mark.parametrize("git", [False, True])
def test_a_linked_folder_is_shipped_with_what_it_holds(git: bool, tree: Path, tmp_path: Path) -> None:
    if git:
        under_git(tree)
    (tree / "mine").symlink_to(other_folder(tmp_path / "elsewhere"))
    (tree / "jobs" / "more").symlink_to(tree / "moe_dist")
    linked = {"mine/gates/own.py", "jobs/more/data/order.py"}
    assert packed_names(tree, tmp_path) == SHIPPED | linked | ({".gitignore"} if git else set())


def test_submodules_and_repositories_in_the_tree_are_shipped(tree: Path, tmp_path: Path) -> None:
    under_git(tree)
    source = other_folder(tmp_path / "elsewhere")
    (source / ".gitignore").write_text("__pycache__/\n")
    in_git("init", "--quiet", cwd=source)
    in_git("add", ".", cwd=source)
    in_git("commit", "--quiet", "-m", "a", cwd=source)
    in_git("submodule", "--quiet", "add", str(source), "sub", cwd=tree)
    in_git("clone", "--quiet", str(source), "nested", cwd=tree)
    (tree / "sub" / "new.py").touch()
    inner = {f"{name}/{file}" for name in ("sub", "nested") for file in (".gitignore", "gates/own.py")}
    expected = SHIPPED | inner | {".gitignore", ".gitmodules", "sub/new.py"}
    assert packed_names(tree, tmp_path) == expected
    in_git("commit", "--quiet", "-m", "a", cwd=tree)
    in_git("clone", "--quiet", str(tree), "cloned", cwd=tmp_path)
    told: list[str] = []
    shipping.pack_tree(tmp_path / "cloned", tmp_path, {}, told.append)
    assert told == ["! not shipped: sub: holds nothing to ship (a submodule? `git submodule update --init`)"]


@pytest.mark.parametrize("git", [False, True])
def test_links_that_cannot_be_followed_are_named(git: bool, tree: Path, tmp_path: Path) -> None:
    if git:
        under_git(tree)
    (tree / "jobs" / "up").symlink_to("..")
    (tree / "jobs" / "above").symlink_to(tmp_path)
    (tree / "jobs" / "gone").symlink_to("nowhere")
    told: list[str] = []
    shipping.pack_tree(tree, tmp_path, {}, told.append)
    assert sorted(told) == [
        "! not shipped: jobs/above: a link to a folder that is shipped already, or to one above",
        "! not shipped: jobs/gone: neither a file nor a folder, or a link to what is not there",
        "! not shipped: jobs/up: a link to a folder that is shipped already, or to one above",
    ]


def test_linked_data_is_named_and_not_shipped(tree: Path, tmp_path: Path) -> None:
    """`/data/` in .gitignore is about a folder: git lists a link of that name."""
    under_git(tree)
    (tree / "data" / "images.tar").unlink()
    (tree / "data").rmdir()
    (tree / "data").symlink_to(other_folder(tmp_path / "elsewhere"))
    told: list[str] = []
    shipping.pack_tree(tree, tmp_path, {}, told.append)
    assert told == ["! not shipped: data: a folder of this name is taken for data"]


def test_a_link_to_much_data_is_refused_by_its_name(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    for number in range(3):
        with (tmp_path / "big" / f"{number}.tar").open("wb") as file:
            file.truncate(60 * 2**20)
    (tree / "images").symlink_to(tmp_path / "big")
    with pytest.raises(UserError, match=r"holds 120 MiB to ship .*largest: images \(120 MiB\)"):
        shipping.pack_tree(tree, tmp_path, {})


def test_from_a_folder_without_the_package_the_installed_one_is_shipped(tmp_path: Path) -> None:
    other = tmp_path / "jobs only"
    other.mkdir()
    (other / "job.yaml").touch()
    names = packed_names(other, tmp_path)
    assert {"job.yaml", "moe_dist/__init__.py", "moe_dist/cli/__main__.py", "moe_dist/report/page.css"} <= names
    assert not any("__pycache__" in name for name in names)


SECRETS = {".env", "deploy/id_rsa", "server.PEM", ".aws/config", "credentials.json", "notes.txt"}
PUBLIC = {".env.example", "id_rsa.pub", "moe_dist/token.py", "environment.yaml"}


def with_secrets(root: Path) -> None:
    """Files that hold secrets, by their names and one by its content, and some that are called alike."""
    for name in SECRETS | PUBLIC:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("KEY=1\n")
    (root / "notes.txt").write_text("the key:\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n")


def test_secrets_that_git_does_not_track_stay_here(tree: Path, tmp_path: Path) -> None:
    under_git(tree)
    with_secrets(tree)
    assert packed_names(tree, tmp_path) == SHIPPED | PUBLIC | {".gitignore"}
    told: list[str] = []
    shipping.pack_tree(tree, tmp_path, {}, told.append)
    (sentence,) = told
    assert sentence.startswith(
        "! not shipped: .aws/config, .env, credentials.json, deploy/id_rsa, notes.txt and 1 more: "
    )


def test_secrets_that_git_tracks_are_shipped_and_named(tree: Path, tmp_path: Path) -> None:
    under_git(tree)
    with_secrets(tree)
    in_git("add", ".env", "server.PEM", cwd=tree)
    told: list[str] = []
    shipping.pack_tree(tree, tmp_path, {}, told.append)
    kept, shipped = told
    assert ".env" not in kept and "deploy/id_rsa" in kept
    assert shipped.startswith("! shipped, since git tracks it: .env, server.PEM: ")
    assert {".env", "server.PEM"} <= packed_names(tree, tmp_path)


def test_without_git_secrets_stay_here_too(tree: Path, tmp_path: Path) -> None:
    with_secrets(tree)
    assert packed_names(tree, tmp_path) == SHIPPED | {name for name in PUBLIC if not name.startswith(".")}


def test_secrets_behind_a_link_stay_here(tree: Path, tmp_path: Path) -> None:
    """By the whole name in the tree: a link may be called as a folder of secrets is."""
    (tree / "mine").symlink_to(other_folder(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / ".netrc").touch()
    (tmp_path / "elsewhere" / "gates" / "api.key").touch()
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "config").touch()
    (tree / "gcloud").symlink_to(tmp_path / "another")
    assert packed_names(tree, tmp_path) == SHIPPED | {"mine/gates/own.py"}
