"""Predictions of whatever is given: a row each, once, whatever happens in between."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_jobs import quiet
from trained_models import BATCH, CLUSTERING, JOBS, TrainedModels, evaluated, job_of, samples_of

import moe_dist
import moe_dist.use.rows as rows_module
from moe_dist.data.image.decode import decode_resized
from moe_dist.data.image.vectors import decode_vector
from moe_dist.errors import UserError
from moe_dist.metrics.calibration import calibration_error
from moe_dist.use.model import TrainedModel
from moe_dist.use.predict import predict_inputs


class Killed(BaseException):
    """Stands for the end of the process."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def saved(name: str, image: Image.Image, folder: Path, **options: Any) -> None:
    image.save(folder / name, **options)


@pytest.fixture(scope="module")
def mixture(trained: TrainedModels) -> TrainedModel:
    return moe_dist.load(trained.run("traditional_moe"), checkpoint="last")


@pytest.fixture
def digits(trained: TrainedModels, tmp_path: Path) -> Path:
    """The test images of the small mixture's run, in folders called as their classes."""
    trained.run("traditional_moe")
    labels = evaluated(trained.run("traditional_moe"), "traditional_moe")["labels"]
    folder = tmp_path / "digits"
    for number, (image, label) in enumerate(zip(samples_of(JOBS["traditional_moe"]), labels.tolist())):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / str(label) / f"{number:03d}.png").write_bytes(image)
    return folder


def odd_images(folder: Path) -> None:
    """Images of every unusual kind, and what only claims to be one."""
    folder.mkdir()
    grey = np.arange(400, dtype=np.uint8).reshape(20, 20) % 200
    rgb = Image.fromarray(np.stack([grey] * 3, 2))
    saved("plain.png", rgb, folder)
    saved("cmyk.jpg", rgb.convert("CMYK"), folder)
    saved("wide.png", Image.fromarray(grey.astype(np.uint16) * 256), folder)
    saved("palette.png", rgb.convert("P"), folder)
    saved("alpha.png", rgb.convert("RGBA"), folder)
    turned = Image.Exif()
    turned[0x0112] = 6
    saved("rotated.jpg", rgb, folder, exif=turned)
    file = io.BytesIO()
    rgb.save(file, "jpeg")
    (folder / "cut.jpg").write_bytes(file.getvalue()[:300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    saved("huge.png", Image.new("1", (20_000, 10_000)), folder)


def reason_of(path: Path) -> str:
    """What the shards' reader says of an image; nothing where it reads it."""
    try:
        decode_resized(path.read_bytes(), 16)
    except ValueError as error:
        return str(error)
    return ""


def test_an_odd_image_is_a_row_with_an_answer_or_the_reason_of_the_shards_reader(
    mixture: TrainedModel, tmp_path: Path
) -> None:
    odd_images(tmp_path / "odd")
    (tmp_path / "odd" / "notes.txt").write_text("passed over")
    predict_inputs(mixture, [tmp_path / "odd"], quiet(), out=tmp_path / "rows.csv", batch=4)
    rows = {Path(row["image"]).name: row for row in rows_of(tmp_path / "rows.csv")}
    wanted = {path.name: reason_of(path) for path in (tmp_path / "odd").iterdir() if path.suffix != ".txt"}
    assert {name: row["reason"] for name, row in rows.items()} == wanted
    assert {name for name, reason in wanted.items() if reason} == {
        *("wide.png", "cut.jpg", "empty.jpg", "text.jpg", "huge.png")
    }
    for name, row in rows.items():
        assert bool(row["class"]) == bool(row["gate_9"]) == (not wanted[name])
        if row["class"]:
            path = tmp_path / "odd" / name
            assert row["class"] == mixture.predict(path).names[0]
            assert float(row["probability"]) == pytest.approx(mixture.predict(path).probabilities.item(), abs=1e-5)


def test_a_folder_whose_subfolders_are_the_classes_is_scored_and_so_is_its_tar(
    mixture: TrainedModel, trained: TrainedModels, digits: Path, tmp_path: Path
) -> None:
    wanted = evaluated(trained.run("traditional_moe"), "traditional_moe")
    top1 = float((wanted["log_probs"].argmax(1) == wanted["labels"]).mean())
    with tarfile.open(tmp_path / "digits.tar", "w") as tar:
        tar.add(digits, ".")
    for place in (digits, tmp_path / "digits.tar"):
        out = tmp_path / f"{place.name}.csv"
        score = predict_inputs(mixture, [place], quiet(), out=out, batch=16).values()
        assert score["top1"] == top1 and score["labelled"] == 60 and score["top1_low"] < top1 < score["top1_high"]
        rows = rows_of(out)
        assert all(row["label"] == Path(row["image"]).parent.name for row in rows) and len(rows) == 60
        assert json.loads((tmp_path / f"{out.name}.json").read_text())["score"] == score
    (digits / "not a class").mkdir()
    (digits / "0").rename(digits / "not a class" / "0")
    assert "top1" not in predict_inputs(mixture, [digits], quiet(), out=tmp_path / "unscored.csv").values()


def test_json_rows_have_five_best_classes_and_the_gates_of_top_k(
    mixture: TrainedModel, digits: Path, tmp_path: Path
) -> None:
    image = next(digits.rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(b"")
    predict_inputs(mixture, [image, tmp_path / "bad.png"], quiet(), top_k=2, form="json", out=tmp_path / "rows.jsonl")
    good, bad = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    wanted = mixture.predict([image] * 2, top_k=2)
    assert good["image"] == str(image) and good["class"] == good["best"][0][0] == wanted.names[0]
    assert np.allclose(good["gates"][""], wanted.gates[""][0]) and np.count_nonzero(good["gates"][""]) == 2
    assert [name for name, _ in good["best"]] == [name for name, _ in wanted.best(5)[0]] and len(good["best"]) == 5
    assert (
        bad["class"] is None
        and bad["reason"].startswith("not a JPEG, PNG or PPM image, but an empty file")
        and bad["best"] == []
    )
    alone = predict_inputs(mixture, [image], quiet(), top_k=2, form="json", out=tmp_path / "alone.jsonl")
    assert alone.samples == 1
    assert np.allclose(json.loads((tmp_path / "alone.jsonl").read_text())["gates"][""], wanted.gates[""][0])


def test_a_threshold_marks_rows_and_says_what_it_covers(mixture: TrainedModel, digits: Path, tmp_path: Path) -> None:
    whole = predict_inputs(mixture, [digits], quiet(), out=tmp_path / "all.csv").values()
    rows = rows_of(tmp_path / "all.csv")
    shares = np.array([float(row["probability"]) for row in rows])
    right = np.array([row["class"] == row["label"] for row in rows])
    threshold = float(np.median(shares))
    score = predict_inputs(mixture, [digits], quiet(), reject=threshold, out=tmp_path / "some.csv")
    marked = np.array([row["rejected"] == "yes" for row in rows_of(tmp_path / "some.csv")])
    assert 0 < marked.sum() == score.rejected < 60 and shares[marked].max() <= threshold <= shares[~marked].min() + 1e-6
    values = score.values()
    assert values["coverage"] == pytest.approx(1 - marked.mean()) and whole["coverage"] == 1
    assert values["top1"] == whole["top1"] and values["top1_accepted"] == right[~marked].mean()
    assert values["ece"] == pytest.approx(calibration_error(shares, right), abs=1e-5)
    assert f"{marked.sum()} rejected, coverage" in score.sentence()


def killed_in(batch: int, predict: Callable[..., Any]) -> Callable[..., Any]:
    """The method predict_samples, which dies in the call number `batch`."""
    calls = iter(range(10_000))

    def dying(*arguments: Any) -> Any:
        if next(calls) == batch:
            raise Killed
        return predict(*arguments)

    return dying


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_killed_prediction_goes_on_and_every_image_is_there_once(
    mixture: TrainedModel, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    """Also where the last row was torn, and where a batch was written but not noted."""
    monkeypatch.setattr(rows_module, "SURE_EVERY_SECONDS", 0.0)
    out = tmp_path / "rows"

    def predict() -> dict[str, Any]:
        return predict_inputs(mixture, [digits], quiet(), form=form, out=out, batch=8).values()

    whole = predict_inputs(mixture, [digits], quiet(), form=form, out=tmp_path / "whole", batch=8).values()
    for batch in (2, 3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(mixture, "predict_samples", killed_in(batch, mixture.predict_samples))
            predict()
        assert not out.exists()
        with (tmp_path / "rows.part").open("ab") as file:
            file.write(b'"torn, \xff')
    assert predict() == whole
    assert sorted(out.read_text().splitlines()) == sorted((tmp_path / "whole").read_text().splitlines())
    (digits / "3" / "new.png").write_bytes(next(digits.rglob("*.png")).read_bytes())
    assert predict()["samples"] == whole["samples"] + 1  # finished, and only the new one is predicted
    assert not (tmp_path / "rows.part").exists()


def test_rows_of_something_else_are_not_added_to(
    mixture: TrainedModel, trained: TrainedModels, digits: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "rows.csv", next(digits.rglob("*.png"))
    out.write_text("mine\n")
    with pytest.raises(UserError, match=r"rows.csv: is not of `moe-dist predict`"):
        predict_inputs(mixture, [image], quiet(), out=out)
    assert out.read_text() == "mine\n"
    out.unlink()
    predict_inputs(mixture, [image], quiet(), out=out)
    with pytest.raises(UserError, match=r"another model or setting \(top_k: null, now 2\)"):
        predict_inputs(mixture, [image], quiet(), top_k=2, out=out)
    with pytest.raises(UserError, match=r'model.model: "traditional_moe", now "dense"'):
        predict_inputs(moe_dist.load(trained.run("dense")), [image], quiet(), out=out)
    out.write_text("")
    with pytest.raises(UserError, match="has lost rows"):
        predict_inputs(mixture, [image], quiet(), out=out)


def test_inputs_that_the_model_does_not_take_are_refused(mixture: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    for name, reason in {
        "missing.png": "no such image",
        "empty": "no images there",
        "a.csv": "the model takes images",
        "a.tar.gz": "download or pack it again",
    }.items():
        with pytest.raises(UserError, match=reason):
            predict_inputs(mixture, [tmp_path / name], quiet())


def test_vectors_become_clusters_that_are_scored(trained: TrainedModels, tmp_path: Path) -> None:
    """Of a table with a column `label`, and of arrays without classes; the run's own evaluation is met."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    vectors = (random.normal(size=(90, 5)) + 8 * labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", X=vectors, y=labels)
    data = {"dataset": "vectors", "source": str(tmp_path / "vectors.npz"), "max_train_images": None}
    method = CLUSTERING | {"network": {"hidden": [16], "code": 4}, "pretrain": {"steps": 30}}
    method |= {"optimiser": {"kind": "sgd", "learning_rate": 0.001}}
    job = job_of("edcwrn", method, **data, max_test_images=None, val_fraction=0)
    run = trained.run("of_vectors", job)
    model = moe_dist.load(run)
    assert model.classes == ("cluster 0", "cluster 1", "cluster 2")
    wanted = evaluated(run, "edcwrn")["log_probs"]
    as_evaluated = np.stack([decode_vector(sample) for sample in samples_of(job)])
    assert np.array_equal(model.predict(as_evaluated, batch=BATCH).log_probs.numpy(), wanted)
    np.savetxt(
        tmp_path / "table.csv",
        np.column_stack([vectors, labels]),
        delimiter=",",
        header="a,b,c,d,e,label",
        comments="",
        fmt=["%.9g"] * 5 + ["%d"],
    )
    score = predict_inputs(model, [tmp_path / "table.csv"], quiet(), out=tmp_path / "rows.csv").values()
    assert score["labelled"] == 90 and 0 < score["accuracy"] <= 1
    clusters = [int(row["class"].removeprefix("cluster ")) for row in rows_of(tmp_path / "rows.csv")]
    assert clusters == model.predict(vectors).labels.tolist()
    np.save(tmp_path / "plain.npy", vectors)
    assert "accuracy" not in predict_inputs(model, [tmp_path / "plain.npy"], quiet(), out=tmp_path / "p.csv").values()
    np.save(tmp_path / "short.npy", vectors[:, :4])
    predict_inputs(model, [tmp_path / "short.npy"], quiet(), out=tmp_path / "short.csv")
    assert {row["reason"] for row in rows_of(tmp_path / "short.csv")} == {"expected 5 numbers, got float32 [4]"}
    with pytest.raises(UserError, match="takes vectors of 5 numbers"):
        predict_inputs(model, [tmp_path], quiet())


def command(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "moe_dist.cli", "predict", *map(str, arguments)]
    return subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_prints_rows_or_keeps_them(trained: TrainedModels, digits: Path, tmp_path: Path) -> None:
    run = trained.run("traditional_moe")
    printing = command(run, digits, folder=tmp_path)
    rows, about = printing.communicate()
    assert printing.returncode == 0, about
    assert len(list(csv.DictReader(io.StringIO(rows)))) == 60
    assert "traditional_moe of traditional_moe, checkpoint_" in about and "top-1 of 60: " in about
    keeping = command(run, digits, "--format", "json", "--out", "rows.jsonl", folder=tmp_path)
    assert "rows: rows.jsonl" in keeping.communicate()[0]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 60
    refused = command(run, digits, "--out", "s3://bucket/rows", folder=tmp_path)
    assert "must be a path of this machine" in refused.communicate()[1] and refused.returncode == 2


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_twenty_thousand_images_killed_twice_are_each_predicted_once(trained: TrainedModels, tmp_path: Path) -> None:
    """By SIGKILL, whenever some more of the rows are on the disk."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for number in range(20_000):
            file = io.BytesIO()
            pixels[0, 0] = number % 251, number % 241, number % 239
            Image.fromarray(pixels).save(file, "ppm")
            member = tarfile.TarInfo(f"{number:05d}.ppm")
            member.size = file.tell()
            tar.addfile(member, io.BytesIO(file.getvalue()))
    arguments = (trained.run("traditional_moe"), "many.tar", "--out", "rows.csv")
    part, sizes = tmp_path / "rows.csv.part", [0]
    for _ in range(2):
        dying = command(*arguments, folder=tmp_path)
        while not part.exists() or part.stat().st_size < sizes[-1] + 100_000:
            assert dying.poll() is None, "the command ended before it was killed"
            time.sleep(0.01)
        os.kill(dying.pid, signal.SIGKILL)
        dying.communicate()
        sizes.append(part.stat().st_size)
    ending = command(*arguments, folder=tmp_path)
    assert "20,000 samples" in ending.communicate()[0]
    names = [row["image"] for row in rows_of(tmp_path / "rows.csv")]
    assert sorted(names) == [f"many.tar/{number:05d}.ppm" for number in range(20_000)]
