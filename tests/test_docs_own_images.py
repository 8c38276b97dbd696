"""docs/own_images.md, step by step as it stands, on made-up shapes: from a folder to a second run."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from moe_dist.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "own_images.md"
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
]
SHORTER = "--launcher local --set methods.dense.epochs=1 --set methods.traditional_moe.epochs=1"
KINDS = {"c": "circle", "s": "square", "t": "triangle"}


def shape(kind: str, random: np.random.Generator) -> Image.Image:
    """A dark shape somewhere on bright noise."""
    image = Image.fromarray(random.integers(150, 255, (48, 56, 3), np.uint8))
    x, y, size = (int(random.integers(*ends)) for ends in ((10, 26), (6, 18), (16, 24)))
    draw, colour = ImageDraw.Draw(image), tuple(random.integers(0, 120, 3).tolist())
    if kind == "circle":
        draw.ellipse([x, y, x + size, y + size], fill=colour)
    elif kind == "square":
        draw.rectangle([x, y, x + size, y + size], fill=colour)
    else:
        draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
    return image


def write_photos(folder: Path) -> None:
    """photos/ as the page lays it out; an unlabelled image's name tells a test, and nobody else, what it shows."""
    random = np.random.default_rng(0)
    for letter, kind in KINDS.items():
        for split, name, count in (("train", kind, 20), ("train", "unlabelled", 60), ("test", kind, 15)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape(kind, random).save(folder / split / name / f"{letter}{number:03d}.jpg")


def moe_dist(command: str) -> str:
    """What a command of the page prints."""
    name, *words = shlex.split(command)
    assert name == "moe-dist"
    done = CliRunner().invoke(app, words + (shlex.split(SHORTER) if words[0] == "run" else []), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def corrected(review: Path) -> int:
    """Write the true class into the empty labels of a review, as a person would; how many these were."""
    with review.open(newline="") as file:
        rows = list(csv.DictReader(file))
    empty = [row for row in rows if not row["label"]]
    for row in empty:
        row["label"] = KINDS[Path(row["image"]).name[0]]
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(empty)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_folder_to_a_report_and_from_a_review_to_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos")
    latest = tmp_path / "runs" / "own-images" / "latest"
    said = {}
    for command in COMMANDS:
        said[command] = moe_dist(command)
        if command.startswith("moe-dist review"):
            assert corrected(latest / "review" / "review.csv") > 0
    page = (latest / "report.html").read_text()
    assert "sample_images" in {path.stem for path in (latest / "figures").iterdir()} and "circle" in page
    compared = next(text for command, text in said.items() if " compare " in command)
    assert "methods.dfcp.trusted.labels" in compared and "dfcp: Top-1 accuracy" in compared
    with open("labels.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 60
