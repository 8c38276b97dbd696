"""The walls between rooms: floors, circles, and who may know which library. Imports inside functions count."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moe_dist"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    ("errors.py", "__init__.py", "files.py", "vision.py", "processor.py", "yaml_core.py"),
    ("paths.py", "places.py", "terminal.py", "disk.py", "signals.py", "ray_address.py", "private_ray.py"),
    ("settings", "shipped.py"),
    ("optimisers.py", "data"),
    ("plots", "metrics"),
    ("models",),
    ("bank", "parallel"),
    ("methods",),
    ("job.py", "overrides.py"),
    ("engine",),
    ("record",),
    ("train",),
    ("evaluate", "estimators.py"),
    ("launch",),
    ("tune",),
    ("report",),
    ("run", "use"),
    ("grid", "history"),
    ("cli",),
)
"""From the ground up: a room, or a file at the package's top, imports only from floors below its own."""
DATA_FLOORS = (
    ("order.py", "longtail.py", "bad_samples.py", "image", "storage"),
    ("batch.py", "datasets", "augment"),
    ("shards",),
    ("opened",),
    ("stream",),
)
"""The same inside data/."""
RAY = ("launch/", "tune/", "data/shards/build/")
DEEPSPEED = ("engine/", "parallel/")
NUMPY_ALONE = ("data/order.py", "data/longtail.py")
ORDER_STANDARD = {"__future__", "dataclasses", "collections", "math", "typing"}


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module a file imports, wherever in the file; `from package import module` counts as the module."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [module if file_of(module) else node.module for module in modules]
    return tuple(found)


def file_of(module: str) -> Path | None:
    """The file of a module of the package; None for any other."""
    if module.partition(".")[0] != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*module.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def imported_files(path: Path) -> Iterator[Path]:
    """The files of the package that a file imports."""
    for module in imports(path):
        file = file_of(module)
        if file is not None and file != path:
            yield file


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """A way from each node back to itself, where there is one."""
    found = []
    for start in arrows:
        ways = [[start]]
        seen: set[str] = set()
        while ways:
            way = ways.pop()
            for following in arrows.get(way[-1], ()):
                if following == start:
                    found.append([*way, start])
                elif following not in seen:
                    seen.add(following)
                    ways.append([*way, following])
    return found


def floor_of(path: Path, floors: tuple[tuple[str, ...], ...]) -> int:
    """The number of the floor that a file lies on, by the first part of its path."""
    name = path.parts[0]
    return next(number for number, names in enumerate(floors) if name in names)


def folder_of(path: Path) -> str:
    """A file's folder; a file at the package's top is a room of its own."""
    return room(path) if path.parent == PACKAGE else room(path.parent)


@pytest.mark.parametrize("path", FILES, ids=room)
def test_a_file_imports_only_from_floors_below(path: Path) -> None:
    for floors, home in ((FLOORS, PACKAGE), (DATA_FLOORS, PACKAGE / "data")):
        if not path.is_relative_to(home) or path == home / "__init__.py":
            continue
        own = path.relative_to(home)
        for file in imported_files(path):
            if file.is_relative_to(home) and file != home / "__init__.py":
                other = file.relative_to(home)
                below = floor_of(other, floors) < floor_of(own, floors)
                assert below or other.parts[0] == own.parts[0] or len(own.parts) == len(other.parts) == 1, (
                    f"{own} imports {other}"
                )


def test_every_room_stands_on_one_floor() -> None:
    for floors, home in ((FLOORS, PACKAGE), (DATA_FLOORS, PACKAGE / "data")):
        named = [name for names in floors for name in names]
        there = {path.name for path in home.iterdir() if path.suffix == ".py" or path.is_dir()}
        there -= {"__pycache__"} | ({"__init__.py"} if home != PACKAGE else set())
        assert sorted(named) == sorted(there)


def test_there_is_no_circle_of_files() -> None:
    arrows = {room(path): sorted({room(file) for file in imported_files(path)}) for path in FILES}
    assert circles(arrows) == []


def test_there_is_no_circle_of_folders() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        others = {folder_of(file) for file in imported_files(path)}
        arrows.setdefault(folder_of(path), set()).update(others - {folder_of(path)})
    assert circles(arrows) == []


def test_the_judge_of_circles_sees_them() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [
        ["a", "b", "c", "a"],
        ["b", "c", "a", "b"],
        ["c", "a", "b", "c"],
    ]


@pytest.mark.parametrize("path", FILES, ids=room)
def test_a_library_is_known_only_where_it_may_be(path: Path) -> None:
    packages = {name.partition(".")[0] for name in imports(path)}
    assert "ray" not in packages or room(path).startswith(RAY)
    assert "deepspeed" not in packages or room(path).startswith(DEEPSPEED)
    assert "torchvision" not in packages or room(path) == "vision.py"
    assert "moe_dist.cli" not in set(imports(path)) or room(path).startswith("cli/")


@pytest.mark.parametrize("path", [PACKAGE / name for name in NUMPY_ALONE], ids=room)
def test_the_arithmetic_of_order_needs_numpy_alone(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path)} <= {"numpy", *ORDER_STANDARD}


def test_methods_models_and_banks_do_not_know_how_experts_are_spread() -> None:
    for path in FILES:
        if room(path).startswith(("methods/", "models/", "bank/")):
            rooms = {name.split(".")[1] for name in imports(path) if name.startswith("moe_dist.")}
            assert "parallel" not in rooms, f"{room(path)} imports {rooms}"


def test_a_run_begins_without_what_only_its_end_needs() -> None:
    """scikit-learn with pandas, SciPy and matplotlib take as long to import as torch does, and the first step waits."""
    script = "import sys, moe_dist.cli, moe_dist.grid.cells, moe_dist.run.run, moe_dist.train.loop\n"
    script += "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    late = {"sklearn", "pandas", "scipy", "matplotlib", "ray", "deepspeed", "torchvision", "tensorboard"}
    assert not late & set(ast.literal_eval(said.stdout))


def test_the_package_imports_without_ray_deepspeed_and_torchvision() -> None:
    """In a fresh interpreter where all are missing, everything but what is for them imports. timm imports torchvision,
    and torchvision torch's compiler, which is a third of what a process takes to start."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(['ray', 'deepspeed', 'torchvision', 'timm']))\n"
    modules = [
        "moe_dist.cli",
        "moe_dist.run.run",
        "moe_dist.launch.local",
        "moe_dist.train.loop",
        "moe_dist.methods.dfcp",
        "moe_dist.methods.baselines.sparse_moe",
        "moe_dist.data.shards.build.build",
        "moe_dist.report.build",
        "moe_dist.use.load",
    ]
    script = hidden + "\n".join(f"import {module}" for module in modules)
    subprocess.run([sys.executable, "-c", script], check=True)
