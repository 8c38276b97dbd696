"""The commands and programs of docs/use_a_model.md, run as they stand, in their order, on a small run."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_jobs import dfcp, quiet
from typer.testing import CliRunner

import moe_dist.run.run as run_module
from moe_dist.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "use_a_model.md"
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def command(line: str) -> str:
    """What a command prints."""
    name, *arguments = shlex.split(line)
    assert name == "moe-dist"
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    run_module.run_job(dfcp(), tmp_path / "runs" / "demo" / "latest", "local", quiet())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    for name in ("image.jpg", "images/3/a.png", "images/7/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(name)
    (tmp_path / "more.tar").write_bytes(bytes(10_240))
    printed = []
    for kind, text in BLOCKS:
        if kind == "bash":
            printed += [command(line) for line in text.strip().splitlines()]
        else:
            exec(compile(text, str(PAGE), "exec"), {})
    assert len(printed) == 7 and "top-1 of 2" in printed[2]
    assert all("Checked on" in text and "test samples" in text for text in printed[-2:])
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["images/3/a.png", "images/7/b.png"]
    assert [row["label"] for row in rows] == ["3", "7"]
    programs = capsys.readouterr().out
    assert "torch.Size([2, 10])" in programs and "torch.Size([1, 3, 16, 16])" in programs
