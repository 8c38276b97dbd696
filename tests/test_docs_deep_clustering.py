"""The programs of docs/deep_clustering.md, run as they stand but for the networks' size and the length of training."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, make_blobs

PAGE = Path(__file__).parents[1] / "docs" / "deep_clustering.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SHORTER = "hidden=(16,), pretrain_steps=60, max_steps=10, n_clusters="


def run(number: int) -> None:
    program = PROGRAMS[number]
    assert "n_clusters=" in program
    exec(compile(program.replace("n_clusters=", SHORTER), f"program {number}", "exec"), {})


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    X, _ = make_blobs(90, 5, centers=3, random_state=0)
    np.savetxt("table.csv", X, delimiter=",", header="a,b,c,d,e", comments="")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(load_digits().images[:40]):
        Image.fromarray(np.uint8(image * 15)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def test_every_program_has_a_test() -> None:
    assert len(PROGRAMS) == 3 and all(len(program.strip().splitlines()) <= 15 for program in PROGRAMS)


def test_a_table_becomes_labels_and_a_map(somewhere: Path) -> None:
    run(0)
    assert len(np.loadtxt(somewhere / "labels.csv")) == 90 and (somewhere / "map.png").stat().st_size > 5000


def test_a_folder_of_images_becomes_labels(capsys: pytest.CaptureFixture[str]) -> None:
    run(1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 and all(re.fullmatch(r"[012] images/\d+\.png", line) for line in lines)


def test_numbers_of_clusters_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    run(2)
    assert re.findall(r"^(\d) clusters: agreement", capsys.readouterr().out, re.MULTILINE) == ["2", "3", "4"]
