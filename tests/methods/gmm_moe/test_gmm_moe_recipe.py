"""The paper's recipe, as its job file has it, on a tiny tree of IP102's format: both stages, resumption, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_folders import log_of, training_of
from safetensors.numpy import load_file
from small_jobs import quiet

import moe_dist.train.loop as loop
from moe_dist.job import parse_job
from moe_dist.report.build import build_report
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint
from tests.methods.gmm_moe.small_gmm_moe import METHOD, STAGE, job

ROOT = Path(__file__).parents[3]
CLASSES = 4


def write_ip102(root: Path, train: int) -> Path:
    """IP102's files with `train` images of each of four classes, two crops; the hue tells the class."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{n} pest {n}\n" for n in range(1, CLASSES + 1)))
    (root / "superclasses.txt").write_text("1-2 Rice\n3-4 Corn\n")
    number = 0
    for split, count in (("train", train), ("val", 2), ("test", 3)):
        lines = []
        for label in range(CLASSES):
            for _ in range(count):
                pixels = random.integers(0, 80, (40, 40, 3)) + 40 * np.eye(CLASSES, 3)[label] * 4
                Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number:05d}.png")
                lines.append(f"{number:05d}.png {label}")
                number += 1
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


class Killed(BaseException):
    """Stands for the end of the process."""


def tensors(model: Path) -> dict[str, np.ndarray]:
    newest = newest_checkpoint(training_of(model) / "checkpoints")
    assert newest is not None
    files = {path.name: load_file(path) for path in newest.glob("*.safetensors")}
    return {f"{file}/{key}": each for file, named in files.items() for key, each in named.items()}


def test_superclasses_responsibilities_and_gates_are_in_the_report(tmp_path: Path) -> None:
    source = write_ip102(tmp_path / "ip102", train=10)
    data = {"dataset": "ip102", "source": str(source), "image_size": 32}
    asked = job({"frozen": STAGE | {"epochs": 3}, "top_k": [1]}, data=data)
    run_job(asked, tmp_path / "run", "local", quiet())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["superclasses"] == ["Rice", "Rice", "Corn", "Corn"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    superclass = next(value for name, value in flat(metrics).items() if "superclass_top1" in name)
    top1 = next(value for name, value in flat(metrics).items() if name.endswith("top1") and "superclass" not in name)
    assert top1 <= superclass <= 1
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")}
    assert {"superclasses_gmm_moe", "responsibilities_gmm_moe", "gates_gmm_moe", "training_gmm_moe"} <= figures
    assert {"gate_load_gmm_moe_blocks.2", "gate_load_gmm_moe_blocks.4"} <= figures, "classes x experts, at every tap"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Top-1 of superclasses" in page and "gates" in page and "blocks.2" in page


def flat(values: object, prefix: str = "") -> dict[str, float]:
    if isinstance(values, dict):
        return {path: leaf for key, each in values.items() for path, leaf in flat(each, f"{prefix}/{key}").items()}
    return {prefix: values} if isinstance(values, int | float) else {}


def test_a_report_of_a_model_without_experts_has_none_of_their_figures(tmp_path: Path) -> None:
    data = {"dataset": "ip102", "source": str(write_ip102(tmp_path / "ip102", train=6)), "image_size": 32}
    run_job(job(METHOD | {"modules": "linear", "whole": None}, data=data), tmp_path / "run", "local", quiet())
    build_report(tmp_path / "run")
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")}
    assert "superclasses_gmm_moe" in figures
    assert not {"responsibilities_gmm_moe", "gates_gmm_moe"} & figures


@pytest.mark.slow
def test_the_full_recipe_on_densenet_trains_both_stages_and_resumes_bit_identically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of jobs/gmm_moe/ip102.yaml but its images' side, its weights and the number of its epochs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    source = write_ip102(tmp_path / "ip102", train=16)
    content = yaml.safe_load((ROOT / "jobs" / "gmm_moe" / "ip102.yaml").read_text())
    content["data"] |= {"source": str(source), "image_size": 64}
    content["methods"] = {"gmm_moe": content["methods"]["gmm_moe"] | {"weights": None}}
    content["methods"]["gmm_moe"] |= {"frozen": {"epochs": 1}, "whole": {"epochs": 1}}
    content |= {"resources": {}, "paper_table": None}
    asked = parse_job(content, "ip102.yaml")
    run_job(asked, tmp_path / "unbroken", "local", quiet())
    real, done = loop.train_step, [0]

    def three_steps(*arguments: object) -> object:
        if done[0] == 3:
            raise Killed
        done[0] += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", three_steps)
    saving = parse_job(content | {"checkpoint": {"every_steps": 1}}, "ip102.yaml")
    with pytest.raises(Killed):
        run_job(saving, tmp_path / "broken", "local", quiet())
    monkeypatch.setattr(loop, "train_step", real)
    run_job(saving, tmp_path / "broken", "local", quiet())
    ours, theirs = (tensors(tmp_path / name / "gmm_moe") for name in ("broken", "unbroken"))
    assert ours.keys() == theirs.keys() and len(ours) > 700
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name
    stages = [line["stage"] for line in log_of(tmp_path / "broken" / "gmm_moe") if line["kind"] == "step"]
    assert stages == ["frozen", "frozen", "whole", "whole"]
    assert torch.isfinite(torch.tensor([each.sum() for each in theirs.values() if each.dtype == np.float32])).all()
