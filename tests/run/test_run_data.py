"""Runs on unusual data: without validation, with a published one, sampled classes, unreadable images."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_data import built_data
from PIL import Image
from rich.console import Console
from run_folders import training_of
from small_jobs import GATE, NARROW, quiet, traditional

from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.loader import Loader
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.run.run import run_job
from moe_dist.terminal import Show

CLASSES = ("dark", "grey", "light")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three shades: 20, 12 and 4 training pictures, 4 for validation and 5 for testing of each class."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, counts in (("train", (20, 12, 4)), ("val", (4, 4, 4)), ("test", (5, 5, 5))):
        for label, (name, count) in enumerate(zip(CLASSES, counts)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(60 * label, 60 * label + 80, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `pictures`."""
    place = tmp_path_factory.mktemp("built") / "shards"
    job = picture_job(pictures, place)
    built_data(job.data, 0, place.parent / "cache")
    return place


def picture_job(source: Path, shards: Path, method: dict[str, Any] | None = None, **data: Any) -> Job:
    chosen = {"name": "traditional_moe", "experts": [NARROW] * 3, "gate": GATE, "epochs": 2, "batch_size": 8}
    chosen["schedule"] = {"kind": "constant"}
    place = {"dataset": "image_folder", "source": str(source), "shards": str(shards), "image_size": 16}
    return traditional(data=place | data, method=chosen | (method or {}))


def run(job: Job, folder: Path) -> dict[str, Any]:
    run_job(job, folder, "local", quiet())
    return json.loads((folder / "metrics.json").read_text())


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for line in (training_of(folder / "traditional_moe") / "metrics.jsonl").read_text().splitlines()
    ]
    return [line for line in lines if line["kind"] == "epoch"]


def without_validation(**method: Any) -> Job:
    job = traditional(epochs=1)
    data = job.data.model_dump(mode="json") | {"val_fraction": 0.0}
    content = job.method.model_dump(mode="json") | {"schedule": {"kind": "cosine"}} | method
    return traditional(data=data, method=content)


def test_a_run_without_validation_uses_all_images_and_has_a_report(tmp_path: Path) -> None:
    metrics = run(without_validation(), tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    everything = built_data(traditional().data, 0, tmp_path / "cache")
    assert record["counts"]["val"] == 0
    assert record["counts"]["train"] == len(everything.train_samples) + len(everything.val_samples)
    (epoch,) = epochs_of(tmp_path / "run")
    assert not [name for name in epoch if name.startswith("val/")] and "rate_factor" in epoch
    assert 0 <= metrics["traditional_moe/top1"] <= 1
    assert (tmp_path / "run/figures/training_traditional_moe.svg").is_file()
    assert "0 validation" in (tmp_path / "run/report.html").read_text()


def test_a_plateau_schedule_without_validation_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = without_validation(schedule={"kind": "plateau"})
    with pytest.raises(UserError, match=r"stage joint: a plateau schedule waits .* set data.val_fraction above 0"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sampled_classes_and_windows_of_shards_are_refused_before_anything_is_written(
    pictures: Path, built: Path, tmp_path: Path
) -> None:
    job = picture_job(pictures, built, {"sampling": "balanced"}, window_shards=2)
    with pytest.raises(UserError, match=r"data.window_shards = 2 .* sampling = balanced"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_published_validation_split_is_used_and_none_is_set_aside(
    pictures: Path, built: Path, tmp_path: Path
) -> None:
    job = picture_job(pictures, built, val_fraction=0.5)
    data = built_data(job.data, 0, tmp_path / "cache")
    assert data.info.class_counts == (20, 12, 4) and len(data.train_samples) == 36
    assert np.bincount(data.val.labels[data.val_samples]).tolist() == [4, 4, 4]
    published = ShardSet.open(built / "val")
    expected = [np.asarray(Image.open(io.BytesIO(published.read(number)))) for number in range(12)]
    assert np.array_equal(data.val.images.uint8(np.arange(12)).numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    run(job, tmp_path / "run")
    assert len(epochs_of(tmp_path / "run")) == 2 and all("val/top1" in epoch for epoch in epochs_of(tmp_path / "run"))
    assert json.loads((tmp_path / "run/run.json").read_text())["counts"] == {"train": 36, "val": 12, "test": 15}


def test_the_split_digest_covers_a_published_validation_split(pictures: Path, built: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(pictures, fewer)
    (fewer / "val/dark/00.png").unlink()
    one = built_data(picture_job(pictures, built).data, 0, tmp_path / "cache")
    other = built_data(picture_job(fewer, tmp_path / "shards").data, 0, tmp_path / "cache")
    assert one.split_digest != other.split_digest


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("auto", "keeps images that were drawn by imbalance_seed = 0: nothing is known of a shuffled order"),
        ("first", "imbalance_choice = first: a class keeps its first images in the order of their names"),
        ("random", ""),
    ],
)
def test_a_run_says_which_images_a_long_tail_of_folders_keeps(tmp_path: Path, choice: str, sentence: str) -> None:
    source = tmp_path / "even"
    for split, count in (("train", 8), ("test", 2)):
        for label, name in enumerate(CLASSES):
            (source / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((16, 16, 3), 80 * label + number + (split == "test") * 20, np.uint8)
                Image.fromarray(pixels).save(source / split / name / f"{number:02d}.png")
    tail = {"imbalance": 2.0, "imbalance_choice": choice, "val_fraction": 0.0}
    job = picture_job(source, tmp_path / "shards", {"epochs": 1}, **tail)
    told = io.StringIO()
    run_job(job, tmp_path / "run", "local", Show(Console(file=told, width=1000)))
    assert ("imbalance" in told.getvalue()) == bool(sentence)
    assert sentence in told.getvalue()


@pytest.mark.parametrize("sampling", ["balanced", "progressive"])
def test_sampled_classes_are_what_training_sees(
    pictures: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    import moe_dist.train.loop as loop

    seen: dict[int, list[int]] = {}
    real_step = loop.train_step

    def noted(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        seen.setdefault(progress.epoch, []).extend(batch.labels[batch.weight > 0].tolist())
        return real_step(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", noted)
    run(picture_job(pictures, built, {"sampling": sampling}), tmp_path / "run")
    first = [20, 12, 4] if sampling == "progressive" else [12, 12, 12]
    assert [np.bincount(labels).tolist() for labels in seen.values()] == [first, [12, 12, 12]]


@pytest.fixture
def damaged(built: Path, tmp_path: Path) -> Path:
    """`built` with a flipped bit in two training images and in one of every other split."""
    place = tmp_path / "damaged"
    shutil.copytree(built, place)
    for split, samples in (("train", (3, 8)), ("val", (1,)), ("test", (2,))):
        opened, (path,) = ShardSet.open(built / split), (place / split).glob("*.tar")
        content = path.read_bytes()
        for sample in samples:
            data = opened.read(sample)
            content = content.replace(data, data[:-5] + bytes([data[-5] ^ 16]) + data[-4:])
        path.write_bytes(content)
    return place


@pytest.mark.parametrize(
    ("decode", "workers"), [("once", 1), ("each_time", 1), pytest.param("each_time", 2, marks=pytest.mark.slow)]
)
def test_skipped_images_are_counted_and_named_in_record_metrics_and_report(
    pictures: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: str, workers: int
) -> None:
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))  # the session's holds these images, decoded whole
    job = picture_job(pictures, damaged, on_bad_sample="skip", bad_samples_limit=4, decode=decode)
    metrics = run(job.model_copy(update={"workers": workers}), tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["bad_samples"]["count"] == metrics["bad_samples"] == 4
    names = record["bad_samples"]["first"]
    shards = [f"/{split}/{split}-000000.tar: " for split in ("train", "val", "test")]
    assert [sum(shard in name for name in names) for shard in shards] == [2, 1, 1]
    assert all(".png: changed or cut short" in name for name in names)
    assert metrics["traditional_moe/test_images"] == 14
    steps = [
        json.loads(line)
        for line in (training_of(tmp_path / "run/traditional_moe") / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(line["kind"] == "step" for line in steps) == 2 * 5, "36 images in batches of 8, as without damage"
    page = (tmp_path / "run/report.html").read_text()
    assert "4 left out" in page and names[0] in page


def test_more_bad_images_than_the_limit_end_the_run(pictures: Path, damaged: Path, tmp_path: Path) -> None:
    job = picture_job(pictures, damaged, on_bad_sample="skip", bad_samples_limit=1, decode="each_time")
    with pytest.raises(UserError, match=r"2 bad samples are more than data.bad_samples_limit = 1"):
        run(job, tmp_path / "run")


@pytest.mark.parametrize(("split", "called"), [("val", "validation"), ("test", "test")])
def test_a_split_of_bad_images_alone_is_one_sentence(
    pictures: Path, built: Path, tmp_path: Path, split: str, called: str
) -> None:
    place = tmp_path / "damaged"
    shutil.copytree(built, place)
    opened, (path,) = ShardSet.open(built / split), (place / split).glob("*.tar")
    content = path.read_bytes()
    for sample in range(len(opened)):
        content = content.replace(opened.read(sample), bytes(len(opened.read(sample))))
    path.write_bytes(content)
    job = picture_job(pictures, place, {"epochs": 1}, on_bad_sample="skip", decode="each_time")
    with pytest.raises(UserError, match=f"no image of the {called} split can be read or decoded"):
        run(job, tmp_path / "run")


def test_a_bad_image_ends_the_run_where_none_is_to_be_skipped(pictures: Path, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-000000.tar: \S+.png: changed or cut short"):
        run(picture_job(pictures, damaged, decode="each_time"), tmp_path / "run")


def test_a_class_without_a_test_image_is_told_before_the_training(pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(pictures, source)
    shutil.rmtree(source / "test" / "light")
    show = Show(Console(file=io.StringIO(), width=200))
    run_job(picture_job(source, tmp_path / "shards", {"epochs": 1}), tmp_path / "run", "local", show)
    told = show.console.file.getvalue()
    sentence = "! 1 of 3 classes have no test image (light) and are in no average"
    assert 0 < told.index(sentence) < told.index("training on 1 worker")


def test_no_more_loader_processes_than_the_job_says_and_none_started_anew_every_epoch(
    pictures: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and validation of a stage are decoded by the same two processes, epoch after epoch."""
    others = set(multiprocessing.active_children())
    passes: list[set[int | None]] = []
    load = Loader.load

    def counted(self: Loader, *arguments: Any) -> Iterator[Any]:
        passes.append(set())
        for decoded in load(self, *arguments):
            passes[-1] |= {process.pid for process in set(multiprocessing.active_children()) - others}
            yield decoded

    monkeypatch.setattr(Loader, "load", counted)
    stage = {"batch_size": 12, "learning_rate": 0.05, "warmup_epochs": 0}
    method = {"name": "icl", "network": {"width": 2}, "experts": 2, "t_ad": 9, "t_cl": 9}
    method |= {"features": stage | {"epochs": 2}, "classifiers": stage | {"epochs": 1}}
    data = picture_job(pictures, built, decode="each_time", loader_workers=2).data.model_dump(mode="json")
    job = parse_job({"name": "two-stages", "kind": "train", "data": data, "method": method}, "two-stages.yaml")
    run_job(job, tmp_path / "run", "local", quiet())
    first, second = passes[:4], passes[4:6]
    assert first[0] == first[1] == first[2] == first[3] and second[0] == second[1]
    assert first[0].isdisjoint(second[0]) and {len(alive) for alive in passes} == {2}
