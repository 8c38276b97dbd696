"""What the doctor finds wrong: versions, GPUs, disks, clocks, limits, tokens; and how it reads its job's answers."""

from __future__ import annotations

import json
import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.errors import UserError
from moe_dist.launch import doctor as examining
from moe_dist.launch.doctor import Patient, facts_table, findings, read_answers, this_machine
from moe_dist.launch.doctor_job import MARK
from moe_dist.launch.node_facts import PACKAGES, node_facts
from moe_dist.terminal import console

HEALTHY: dict[str, Any] = {
    "python": "3.11.9",
    "packages": dict.fromkeys(PACKAGES, "1.0"),
    "torch": {"cuda": "12.8", "nccl": "2.27.3", "gpus": ["L4", "L4"]},
    "driver_gpus": 2,
    "free_bytes": {"--out": 100 * 2**30},
    "open_files": 65536,
}


def node(name: str = "10.0.0.2", wrong: list[str] | None = None, clock: float = 0.0, **changes: Any) -> Patient:
    """A healthy node with two GPUs but for `changes`."""
    return Patient(name, deepcopy(HEALTHY) | changes, wrong or [], clock, gpus=2)


def here(**changes: Any) -> Patient:
    """The machine that submits, without GPUs."""
    return Patient(
        "here", deepcopy(HEALTHY) | {"torch": {"cuda": None, "nccl": None, "gpus": []}, "driver_gpus": 0} | changes
    )


def test_healthy_nodes_have_no_findings() -> None:
    assert findings([here(), node("10.0.0.2"), node("10.0.0.3")]) == []


@pytest.mark.parametrize(
    ("sick", "sentence"),
    [
        (node(python="3.12.1"), "Python 3.12.1, and 3.11.9 here: a job needs the same minor version"),
        (node(packages=HEALTHY["packages"] | {"ray": "2.59.0"}), "other versions than here: ray 2.59.0 (here 1.0)"),
        (node(packages=HEALTHY["packages"] | {"timm": None}), "not installed: timm: install"),
        (
            node(torch={"error": "OSError: libcudart.so.12: cannot open"}),
            "torch cannot be used: OSError: libcudart.so.12",
        ),
        (
            node(torch={"cuda": None, "nccl": None, "gpus": []}),
            "torch, built without CUDA, sees 0 of the driver's 2 GPUs",
        ),
        (
            node(torch={"cuda": "13.0", "nccl": None, "gpus": []}),
            "torch, built for CUDA 13.0, sees 0 of the driver's 2",
        ),
        (node(driver_gpus=4, torch=HEALTHY["torch"] | {"gpus": ["L4"] * 4}), "Ray offers 2 of 4 GPUs: start it with"),
        (node(free_bytes={"--out": 2**30}), "--out has 1.0 GiB free"),
        (node(open_files=1024), "a process may open 1024 files: `ulimit -n 65536`"),
        (node(clock=-7.25), "its clock is 7.2 s behind the head's"),
        (node(clock=2.5), "its clock is 2.5 s ahead of the head's"),
        (node(wrong=["has no folder /shared"]), "has no folder /shared"),
        (Patient("10.0.0.2", None, ["does not answer within 60 s"]), "does not answer within 60 s"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_sentence(sick: Patient, sentence: str) -> None:
    (found,) = findings([here(), sick, node("10.0.0.3")])
    assert found.startswith(f"10.0.0.2: {sentence}")


def test_nodes_with_gpus_are_compared_with_each_other() -> None:
    older = node("10.0.0.3", torch=HEALTHY["torch"] | {"nccl": "2.26.2"})
    (found,) = findings([here(), node(), older])
    assert found == "NCCL is not the same on all nodes with GPUs: 2.27.3 on 10.0.0.2; 2.26.2 on 10.0.0.3"


def test_the_table_has_a_row_for_a_node_that_is_silent_too() -> None:
    with console.capture() as captured:
        console.print(facts_table([here(free_bytes={}), node(), Patient("10.0.0.3", None, ["is silent"])]))
    rows = captured.get().splitlines()
    assert any("10.0.0.3" in row and "no answer" in row for row in rows)
    assert any("10.0.0.2" in row and "100 GiB" in row and "2.27.3" in row for row in rows)


def test_the_answers_are_found_in_the_jobs_log() -> None:
    answered = {"name": "10.0.0.2", "facts": HEALTHY, "wrong": [], "clock": 0.0, "gpus": 2}
    log = f"a warning of Ray's\n{MARK}{json.dumps([answered])}\nanother\n"
    assert read_answers(log) == [node()]
    with pytest.raises(UserError, match=r"came to no answer; its log ends with: ModuleNotFoundError: No module"):
        read_answers("Traceback\nModuleNotFoundError: No module named 'ray'\n")


def test_the_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[\[<>=]", package)[0] for package in project["dependencies"]]
    assert sorted(PACKAGES) == sorted(needed)


def test_a_machine_answers_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_dist.launch.node_facts._torch", lambda: {"cuda": None, "nccl": None, "gpus": []})
    facts = node_facts({"cache": str(tmp_path / "not" / "there")})
    assert facts["free_bytes"]["cache"] > 0 and facts["packages"]["numpy"] and facts["open_files"] > 0


def test_a_token_that_others_can_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "node_facts", lambda folders: HEALTHY)
    token = tmp_path / "token"
    token.touch(mode=0o644)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    (told,) = findings([this_machine({})])
    assert told == f"here: {token}: others can read the token (mode 0644): chmod 600 {token}"
    token.chmod(0o600)
    assert findings([this_machine({})]) == []


def test_the_exit_code_says_whether_anything_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "node_facts", lambda folders: HEALTHY)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    healthy = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path)])
    assert (healthy.exit_code, healthy.stdout.splitlines()[-1]) == (0, "+ nothing is wrong")
    (tmp_path / "file").touch()
    sick = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path / "file" / "x")])
    assert sick.exit_code == 1 and "! here: --out: " in sick.stdout
