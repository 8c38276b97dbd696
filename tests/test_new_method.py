"""docs/new_method.md: the package it builds, outside the checkout, through run, report and search."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new_method.md").read_text()
MADE_UP = ROOT / "tests" / "installed" / "made_up"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """The page's files by name: a block's first line names its file, and goes on with it where it says so."""
    found: dict[str, str] = {}
    for language, text in BLOCK.findall(PAGE):
        if language == "bash":
            continue
        head, _, body = text.partition("\n")
        name = head.removeprefix("# ").removesuffix(", continued")
        found[name] = found.get(name, "") + ("\n\n" if head.endswith(", continued") else "") + body
    return found


def commands() -> list[str]:
    return [line for language, text in BLOCK.findall(PAGE) if language == "bash" for line in text.splitlines()]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and the package's metadata as an installation leaves it."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in {"made_up/__init__.py": "", **files()}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    build = "from setuptools.build_meta import prepare_metadata_for_build_wheel as build; build('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    assert list(folder.glob("*.dist-info/entry_points.txt"))
    return folder


def moe_dist(command: str, package: Path) -> str:
    """What `moe-dist ...` prints, where the package is installed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and "installed" not in path]
    path = os.pathsep.join([str(package), str(ROOT), *others])
    run = subprocess.run(
        [sys.executable, "-m", "moe_dist.cli", *command.split()[1:]],
        cwd=package,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_page_is_the_made_up_method_of_the_tests() -> None:
    """What is tested as tests/installed/made_up is what the page shows, but for the places where tests let it die."""
    gates = (MADE_UP / "gates.py").read_text()
    shown = "\n".join(line for line in gates.splitlines() if "here(" not in line and "made_up.dying" not in line)
    assert files()["made_up/gates.py"].strip() == shown.strip()
    assert files()["made_up/gates_report.py"].strip() == (MADE_UP / "gates_report.py").read_text().strip()


def test_the_page_counts_its_lines() -> None:
    method, report = (files()[f"made_up/{name}.py"].strip().splitlines() for name in ("gates", "gates_report"))
    assert f"{len(method)} lines of method and {len(report)} of report in two files" in PAGE
    assert f"in {len((MADE_UP / 'clusters.py').read_text().splitlines())} lines" in PAGE


def test_the_page_s_commands_run_its_package(package: Path) -> None:
    run, report, search = commands()
    moe_dist(run, package)
    moe_dist(report, package)
    metrics = json.loads((package / "runs/gates/metrics.json").read_text())
    results = (package / "runs/gates/results.md").read_text()
    assert 1 / 3 <= metrics["made_up_gates/largest_weight"] <= 1
    assert "Largest mean weight of an expert" in results and "mean gate weights" in results
    moe_dist(search, package)
    best = (package / "runs/search/made_up_gates/search/best.set").read_text()
    assert "learning_rate" in best


@pytest.mark.slow
def test_its_method_trains_and_is_searched_on_ray_workers(package: Path) -> None:
    run, _, search = (command.replace(" --launcher local", "") for command in commands())
    moe_dist(f"{run.replace('runs/gates', 'runs/on_ray')} --set workers=2", package)
    metrics = json.loads((package / "runs/on_ray/metrics.json").read_text())
    assert 1 / 3 <= metrics["made_up_gates/largest_weight"] <= 1
    moe_dist(search.replace("runs/search", "runs/search_on_ray"), package)
    assert (package / "runs/search_on_ray/made_up_gates/search/best.set").exists()
