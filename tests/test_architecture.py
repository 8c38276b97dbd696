"""The pages about the code are true: floors, rooms, files and functions that they name are there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_walls import DATA_FLOORS, FLOORS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_dist"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cluster").glob("*.md"))]
PATH = re.compile(r"(?<![\w/.<>-])((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py\b)?|moe_dist/[\w/.]*\w)")
"""A folder such as data/stream/, a file such as data/order.py, or whatever begins with moe_dist/."""
USERS_FOLDERS = {"data", "train"}
"""Folders that users have, too: data/NAME and train/<class>/ of their images are not ours."""
ROOMS = {path.name for path in (*ROOT.iterdir(), *PACKAGE.iterdir()) if path.is_dir()} - {"runs"}
"""Folders of code: of the repository, but for what runs leave there, and of the package."""


def named_paths(text: str) -> Iterator[str]:
    """The paths of code that a page names: those that begin with a folder of the repository or of the package."""
    for match in PATH.finditer(text):
        path = match[1]
        first = path.split("/")[0]
        if first in ROOMS and (path.endswith(".py") or first not in USERS_FOLDERS):
            yield path


def place_of(path: str) -> Path | None:
    """The place of a path of the pages, under the repository or under the package; None if it is missing."""
    return next((place for place in (ROOT / path, PACKAGE / path) if place.exists()), None)


def named_functions(text: str) -> Iterator[tuple[str, str]]:
    """(file, function or class) of every span such as `train/loop.py: train, save`."""
    for file, names in re.findall(r"`([\w/]+\.py): ([\w., ]+)`", " ".join(text.split())):
        for name in names.split(", "):
            yield file, name


def defined(tree: ast.Module) -> set[str]:
    """The functions, classes and methods that a file defines, methods as Class.method."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, kinds)}
    return names


def drawn_floors(block: str) -> list[set[str]]:
    """The rooms of every line of a drawing, from the ground up."""
    lines = [re.split(r"\s{2,}", line)[0] for line in reversed(block.strip().splitlines())]
    return [set(line.split(", ")) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    missing = sorted({path for path in named_paths(page.read_text()) if place_of(path) is None})
    assert missing == []


def test_every_function_that_the_page_names_is_defined_in_its_file() -> None:
    named = list(named_functions(ARCHITECTURE.read_text()))
    assert len(named) > 20
    missing = [
        f"{file}: {name}"
        for file, name in named
        if place_of(file) is None or name not in defined(ast.parse((PACKAGE / file).read_text()))
    ]
    assert missing == []


def test_the_drawn_floors_are_those_that_the_walls_hold() -> None:
    drawings = re.findall(r"```text\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    floors, data_floors = map(drawn_floors, drawings)
    assert floors == [set(names) for names in FLOORS]
    assert data_floors == [set(names) for names in DATA_FLOORS]


def test_every_room_has_a_paragraph() -> None:
    paragraphs = ARCHITECTURE.read_text().split("## The rooms")[1].split("\n## ")[0]
    rooms = {f"{name}/" if (PACKAGE / name).is_dir() else name for names in FLOORS[2:] for name in names}
    assert {room for room in rooms - {"optimisers.py"} if f"`{room}`**" not in paragraphs} == set()


def test_the_way_of_a_training_task_is_printed() -> None:
    """From the loop to the last checkpoint, by a training that is run for it."""
    script = ROOT / "tests" / "way_of_a_task.py"
    *way, length = subprocess.run([sys.executable, str(script)], capture_output=True, text=True).stdout.splitlines()
    files = [line.split()[0] for line in way]
    assert {"train/loop.py", "data/stream/stream.py", "engine/checkpoint.py"} <= set(files)
    number = len(set(files))
    assert length == f"{len(files)} stops in {number} files, {len(files) - number} of them returns"


def test_a_missing_path_and_a_missing_function_are_seen() -> None:
    text = "`data/order.py: mix, gone` and data/build.py, moe_dist/train/pipeline.py, train/loop.py, runs/x/y.py"
    assert [path for path in named_paths(text) if place_of(path) is None] == [
        "data/build.py",
        "moe_dist/train/pipeline.py",
    ]
    assert list(named_functions(text)) == [("data/order.py", "mix"), ("data/order.py", "gone")]
    assert "gone" not in defined(ast.parse((PACKAGE / "data/order.py").read_text()))
