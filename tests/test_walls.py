"""The walls between rooms, as imports (top-level and inside functions)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moe_dist"
FILES = sorted(PACKAGE.rglob("*.py"))
RAY = ("train/", "tune/", "data/build.py")
DEEPSPEED = ("train/", "parallel/")
NUMPY_ALONE = ("data/order.py", "data/longtail.py")
ORDER_STANDARD = {"__future__", "dataclasses", "collections", "math", "typing"}


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=room)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    packages = {name.partition(".")[0] for name in imports(path)}
    assert "ray" not in packages or room(path).startswith(RAY)
    assert "deepspeed" not in packages or room(path).startswith(DEEPSPEED)
    assert "moe_dist.cli" not in set(imports(path))
    assert "torchvision" not in packages or room(path) == "vision.py"


@pytest.mark.parametrize("path", [PACKAGE / name for name in NUMPY_ALONE if (PACKAGE / name).exists()], ids=room)
def test_the_arithmetic_of_order_needs_numpy_alone(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path)} <= {"numpy", *ORDER_STANDARD}


def test_methods_models_and_banks_do_not_know_the_loop() -> None:
    for path in FILES:
        if room(path).startswith(("methods/", "models/", "bank/")):
            rooms = {name.split(".")[1] for name in imports(path) if name.startswith("moe_dist.")}
            assert not rooms & {"train", "tune", "parallel", "report"}, f"{room(path)} imports {rooms}"


def test_the_package_imports_without_ray_and_deepspeed() -> None:
    """In a fresh interpreter where both are missing, everything but what is for them imports."""
    hidden = "import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None\n"
    modules = [
        "moe_dist.cli",
        "moe_dist.train.run",
        "moe_dist.train.local_launcher",
        "moe_dist.train.loop",
        "moe_dist.methods.dfcp",
        "moe_dist.methods.baselines.sparse_moe",
        "moe_dist.data.build",
        "moe_dist.report.build",
    ]
    script = hidden + "\n".join(f"import {module}" for module in modules)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
