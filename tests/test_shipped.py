"""Jobs that come with the package: found by name, in a checkout and in what is installed from a wheel."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from moe_dist.errors import UserError
from moe_dist.job import load_job
from moe_dist.shipped import JOBS, OVERRIDES, found, job_file, shipped, title

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_every_job_is_found_and_its_first_line_is_a_sentence() -> None:
    jobs = shipped()
    files = {path for path in (ROOT / "jobs").rglob("*.yaml") if "\nkind:" in path.read_text()}
    assert set(jobs.values()) == files and {"demo", "icl/cifar100_lt_100", "dfcp/gtsrb"} <= set(jobs)
    assert "dfcp/table1" not in jobs  # a recipe that jobs load
    assert [name for name, path in jobs.items() if not title(path).endswith(".")] == []


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert job_file("demo") == JOBS / "demo.yaml"
    (tmp_path / "demo").mkdir()  # a folder is no job
    assert job_file("demo") == JOBS / "demo.yaml"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("kind: train\n")
    assert job_file("demo") == Path("demo")


def test_overrides_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = load_job(job_file("dfcp/gtsrb"), ["data.source=x", "@dfcp/gtsrb_2cores"])
    assert job.grid is not None and job.grid.seeds == (0,)
    assert found(Path("dfcp/gtsrb"), OVERRIDES) == Path("dfcp/gtsrb")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dem", "did you mean demo?"),
        ("jobs/demo.yaml", "did you mean demo?"),
        ("zzz", "`moe-dist show` lists"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as refused:
        job_file(given)
    assert str(refused.value).startswith(f"{given}: is neither a file nor a job")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a wheel of the package, installed into a new environment outside the checkout.

    What the package depends on is that of these tests: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    for name in ("moe_dist", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))  # whose own .pth files are not read
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return environment / "bin" / "moe-dist"


def moe_dist(*arguments: str, installed: Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    done = subprocess.run(
        [installed, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_has_the_jobs(installed: Path, tmp_path: Path) -> None:
    (package,) = installed.parents[1].glob("lib/python*/site-packages/moe_dist")
    assert (package / "py.typed").is_file()
    listed = moe_dist("show", installed=installed, cwd=tmp_path)
    assert [name for name in shipped() if f" {name} " not in listed] == []
    assert "dfcp" in moe_dist("show", "demo", installed=installed, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_installed_package_runs_the_demo_to_its_report(installed: Path, tmp_path: Path) -> None:
    moe_dist("run", "demo", installed=installed, cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "latest" / "report.html").is_file()


def test_the_bounds_of_the_dependencies_hold_the_versions_that_make_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    installed = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "gcs" for text in texts]
    declared = [*project["dependencies"], *extras]
    outside = [
        text
        for text in declared
        if not (need := Requirement(text)).specifier.contains(Version(installed[need.name.lower()]))
    ]
    assert declared and outside == []
