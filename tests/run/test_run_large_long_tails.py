"""The recipes of ImageNet-LT and iNaturalist 2018 on tiny trees in their formats: 224 pixels, ResNet-50, 2 workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from run_folders import checkpoints_of, training_of
from safetensors.numpy import load_file
from small_jobs import quiet

import moe_dist.evaluate.predictions as evaluate
from moe_dist.evaluate.latency import measure_latency
from moe_dist.job import Job, load_job
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import checkpoints
from tests.data.pictures import encode, gradient

JOBS = Path(__file__).parents[2] / "jobs" / "icl"
LABEL = "icl_2experts"
CLASSES = ("n01440764", "n01443537", "n01484850")
IMAGES = {"train": (2, 1, 1), "val": (1, 1, 1), "test": (1, 1, 1)}
"""Number of images of each class."""
STAGE = "{epochs: 1, batch_size: 2, learning_rate: 0.01, warmup_epochs: 0, augment: {resized_crop: [0.08, 1]}}"


def labels_of(split: str) -> list[int]:
    return [label for label, count in enumerate(IMAGES[split]) for _ in range(count)]


def write_image(path: Path, shade: int) -> None:
    """A picture of 96 x 64 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(gradient(64, 96, shade), "JPEG"))


def write_imagenet_lt(root: Path) -> None:
    """Images below train/ and val/, and ImageNet-LT's three lists."""
    for split in IMAGES:
        folder = "val" if split == "test" else "train"
        lines = []
        for number, label in enumerate(labels_of(split)):
            name = f"{folder}/{CLASSES[label]}/{split}_{number}.JPEG"
            write_image(root / name, 20 * number)
            lines.append(f"{name} {label}\n")
        (root / f"ImageNet_LT_{split}.txt").write_text("".join(lines))


def write_inat2018(root: Path) -> None:
    """Images below train_val2018/, and the competition's JSON of both splits."""
    for split, table in (("train", "train2018.json"), ("test", "val2018.json")):
        names = {n: f"train_val2018/Aves/{label}/{split}_{n}.jpg" for n, label in enumerate(labels_of(split))}
        for number, name in names.items():
            write_image(root / name, 20 * number)
        content = {
            "images": [{"id": number, "file_name": name} for number, name in names.items()],
            "annotations": [{"image_id": n, "category_id": label} for n, label in enumerate(labels_of(split))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
        }
        (root / table).write_text(json.dumps(content))


def tiny(dataset: str, source: Path) -> Job:
    """The shipped job with one epoch a stage, two steps each, and the model LABEL alone."""
    overrides = [
        f"data.source={source}",
        "data.loader_workers=1",
        "workers=2",
        "resources={cpus_per_worker: 1}",
        f"methods.{LABEL}.features={STAGE}",
        f"methods.{LABEL}.classifiers={STAGE}",
        f"methods.{LABEL}.t_cl=0",
    ]
    job = load_job(JOBS / f"{dataset}.yaml", overrides)
    return job.model_copy(update={"methods": {LABEL: job.methods[LABEL]}})


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, by file and name."""
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.fixture
def one_timed_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure latency with one call instead of 220, which take minutes on a busy machine."""
    monkeypatch.setattr(evaluate, "measure_latency", partial(measure_latency, warm_up=0, images=1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_timed_image")
@pytest.mark.parametrize(("dataset", "write"), [("imagenet_lt", write_imagenet_lt), ("inat2018", write_inat2018)])
def test_it_trains_and_goes_on_from_its_checkpoint(
    dataset: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed after stage one, the run ends bit-identical."""
    write(tmp_path / "source")
    job, run = tiny(dataset, tmp_path / "source"), tmp_path / "run"
    run_job(job, run, "local", quiet())
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics[f"{LABEL}/test_images"] == 3

    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)  # one is enough
    training = checkpoints_of(run / LABEL)
    first, last = checkpoints(training)
    whole = tensors(last)
    shutil.rmtree(last)
    (training_of(run / LABEL) / "training.json").unlink()
    run_job(job, run, "local", quiet())
    after = checkpoints(training)
    assert [path.name for path in after] == [first.name, last.name]
    resumed = tensors(after[-1])
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert np.array_equal(resumed[name], tensor, equal_nan=name.startswith("random")), name
