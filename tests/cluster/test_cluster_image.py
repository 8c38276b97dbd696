"""cluster/Dockerfile passes hadolint, is pinned and not root, and nothing that is private can get into the image."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from running_cluster import tool


@pytest.fixture
def dockerfile(repository: Path) -> str:
    return (repository / "cluster/Dockerfile").read_text()


def test_hadolint_finds_nothing(repository: Path) -> None:
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "style", "cluster/Dockerfile"]
    outcome = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (0, "")


def test_hadolint_would_find_a_flaw(dockerfile: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(dockerfile.replace("python:3.11.11-slim-bookworm", "python:latest"))
    outcome = subprocess.run([tool("hadolint"), str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert outcome.returncode != 0
    assert "DL3007" in outcome.stdout


def test_it_is_pinned(dockerfile: str) -> None:
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["python:3.11.11-slim-bookworm"]
    installs = re.findall(r"pip install (.+)", dockerfile)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)


def test_it_runs_as_a_user_by_number(dockerfile: str) -> None:
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["1000"]


def test_cuda_is_a_build_argument(dockerfile: str) -> None:
    assert "ARG CUDA=1" in dockerfile
    assert re.search(r'"\$CUDA" = 0 \].*whl/cpu', dockerfile)


def test_all_that_is_copied_exists_and_nothing_else_is_sent_to_the_builder(dockerfile: str, repository: Path) -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    lines = (repository / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((repository / name).exists() for name in copied)
