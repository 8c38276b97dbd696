"""benchmarks/on_gpu: all of it with tiny sizes on a CPU, and what it does where a part fails or takes too long."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.on_gpu.__main__ import main
from benchmarks.on_gpu.prepare import pack_images
from benchmarks.on_gpu.running import Options, Outcome, Part, _in_child, run_parts
from benchmarks.on_gpu.trainings import recipes
from moe_dist.data.datasets.catalog import open_contents
from moe_dist.errors import UserError


def results(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "results.json").read_text())


def test_a_dry_run_does_every_part_on_a_cpu(tmp_path: Path) -> None:
    from benchmarks.on_gpu.parts import PARTS

    assert main(["--dry-run", "--out", str(tmp_path)]) == 0, (tmp_path / "lines.txt").read_text()
    found = results(tmp_path)
    assert set(found) == set(PARTS) == {line.partition(":")[0] for line in (tmp_path / "lines.txt").open()}
    assert all(part["dry"] and part["machine"]["code"] and "failed" not in part for part in found.values())
    assert found["steps"]["steps"]["icl fp32"]["eager"]["images_per_second"] > 0
    assert found["bits"]["runs"]["deterministic"]["largest_difference"] == 0
    assert found["joint"]["steps"]["eager"]["ms"] > 0 and "not installed" not in found["joint"]["line"]
    assert "tests/engine/test_engine_captured.py" in found["tests"]["files"]
    (training,) = found["recipes"]["trainings"].values()
    assert training["code"] == 0 and training["epochs"] == 2 and 0 <= training["top1"] <= 1


def test_a_part_that_fails_does_not_stop_the_next_and_earlier_results_stay(tmp_path: Path) -> None:
    def breaks(options: Options) -> Outcome:
        assert (results(tmp_path)["first"]["line"], options.dry) == ("made", True), "the first is written at once"
        raise RuntimeError("no such kernel\nand more")

    parts = {
        "first": Part("", lambda options: Outcome("made", {"value": 1})),
        "second": Part("", breaks),
        "third": Part("", lambda options: Outcome("also made")),
    }
    options = Options(tmp_path)
    assert run_parts(["first", "second", "third"], parts, options) == 1
    assert results(tmp_path)["second"]["failed"] == "RuntimeError: no such kernel"
    assert run_parts(["third"], parts, options) == 0
    assert set(results(tmp_path)) == {"first", "second", "third"} and results(tmp_path)["first"]["value"] == 1
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert lines[1].startswith("second: FAILED: RuntimeError: no such kernel (")


def test_a_part_of_a_gpu_is_a_process_that_gives_its_result_or_is_ended(tmp_path: Path) -> None:
    options = Options(tmp_path, dry=True)
    assert "files have tests for a GPU" in _in_child("tests", options)["line"]
    assert _in_child("tests", Options(tmp_path, dry=True, seconds=-9.9)) == {
        "failed": "was not over after -9.9 seconds"
    }
    assert not list(tmp_path.glob("*.part.json"))


def test_an_unknown_part_is_refused_with_the_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stepps", "--out", str(tmp_path)])
    assert "no part is called stepps; choose of tests, steps, " in capsys.readouterr().err


def test_without_a_gpu_and_without_images_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["steps", "--out", str(tmp_path)])
    assert "torch sees no GPU here; --dry-run" in capsys.readouterr().err
    with pytest.raises(UserError, match="no images; `prepare --source PATH` packs them"):
        recipes(Options(tmp_path, dry=False, source=tmp_path / "none.tar"))
    assert main(["prepare", "--source", str(tmp_path / "none"), "--folder", str(tmp_path / "to"), "--no-wheels"]) == 1
    assert "no such folder or tar" in capsys.readouterr().err


def test_packed_images_are_those_of_the_long_tail(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 1)):
        for label in range(100):
            folder = tmp_path / "source" / split / f"{label:03d}_kind"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((2, 2, 3), 2 * label + number, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    # int(4 * (1 / 4) ** (c / 99)): 4 once, 3 up to c = 20 (4 * 0.25 ** (20 / 99) = 3.02), 2 up to 49, then 1
    expected = 4 + 3 * 20 + 2 * 29 + 50
    assert pack_images(tmp_path / "source", "auto", tmp_path / "packed.tar.gz", imbalance=4) == expected + 100
    packed = open_contents("cifar100", tmp_path / "packed.tar.gz")
    assert packed.counts == {"train": expected, "test": 100} and packed.class_names[7] == "007_kind"
    shade = np.asarray(Image.open(io.BytesIO(packed.sample("test", 42).image)))
    assert (shade == 84).all()
