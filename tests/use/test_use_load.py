"""Loading a trained model: what it needs, what is refused, and images as the training saw them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import checkpoints_of, training_of
from small_jobs import traditional
from trained_models import BATCH, JOBS, TrainedModels, evaluated, samples_of

import moe_dist
from moe_dist.data.image.decode import decode_resized
from moe_dist.errors import UserError
from moe_dist.files import read_json, write_json
from moe_dist.use.preprocess import Preprocessing, all_samples

ALONE = """
import pickle, sys
sys.modules['ray'] = sys.modules['deepspeed'] = None

def refuse(*args, **kwargs):
    raise AssertionError('something was unpickled')

import numpy as np, torch, moe_dist
model = moe_dist.load(sys.argv[1])
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
model = moe_dist.load(sys.argv[1])
print(model.predict(np.zeros((2, 16, 16, 3), np.uint8)).names)
assert sys.modules['ray'] is sys.modules['deepspeed'] is None
"""


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def test_a_model_is_loaded_without_ray_deepspeed_data_and_pickle(trained: TrainedModels, tmp_path: Path) -> None:
    """In a fresh interpreter that knows neither, in an empty folder, with an empty cache."""
    environment = os.environ | {"MOE_DIST_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ALONE, str(trained.run("dfcp"))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = moe_dist.load(trained.run("dfcp")).predict(np.zeros((2, 16, 16, 3), np.uint8)).names
    assert done.stdout.strip() == str(names)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_two_ranks_with_experts_on_both_is_loaded_in_one_process(trained: TrainedModels) -> None:
    job = traditional(epochs=1, workers=2, parallel={"expert": 2})
    run = trained.run("two_ranks", job)
    predicted = moe_dist.load(run, checkpoint="last").predict(samples_of(job), batch=BATCH)
    assert np.array_equal(predicted.log_probs.numpy(), evaluated(run, "traditional_moe")["log_probs"])


def test_the_chosen_checkpoint_is_the_one_that_validation_chose(trained: TrainedModels) -> None:
    job = traditional(epochs=4, checkpoint={"every_epochs": 1})
    run = trained.run("several_epochs", job)
    model = moe_dist.load(run)
    wanted = evaluated(run, "traditional_moe")["chosen_argmax"]
    assert np.array_equal(model.predict(samples_of(job), batch=BATCH).labels.numpy(), wanted)
    assert model.about["asked_for"] == "chosen" and model.about["checkpoint"].startswith("checkpoint_")


def test_a_run_of_several_models_asks_which(trained: TrainedModels, tmp_path: Path) -> None:
    run = copied(trained.run("traditional_moe"), tmp_path)
    text = (run / "job.yaml").read_text().replace("method: null", "").replace("kind: train", "kind: reproduce")
    begin = text.index("\nmethod:")
    end = text.index("\nmethods:")
    method = text[begin:end].replace("\nmethod:", "").replace("\n", "\n  ")
    both = f"\nmethods:\n  first: {method}\n  traditional_moe: {method}"
    (run / "job.yaml").write_text(text[:begin] + both + text[end:].replace("\nmethods: {}", ""))
    with pytest.raises(UserError, match=r"several models; choose one as model \(--model\): first, traditional_moe"):
        moe_dist.load(run)
    with pytest.raises(UserError, match="no model 'second'"):
        moe_dist.load(run, "second")
    with pytest.raises(UserError, match="the training of first is not finished"):
        moe_dist.load(run, "first")
    assert len(moe_dist.load(run, "traditional_moe").classes) == 10


def test_a_run_that_did_not_record_what_samples_are_is_refused_where_it_matters(
    trained: TrainedModels, tmp_path: Path
) -> None:
    for name in ("idec", "dense"):
        run = Path(shutil.copytree(trained.run(name), tmp_path / name))
        record = read_json(run / "run.json")
        assert record.pop("vector_size") == 0
        write_json(run / "run.json", record)
    with pytest.raises(UserError, match=r"run.json: does not say vector_size, .* again with --resume"):
        moe_dist.load(tmp_path / "idec")
    assert moe_dist.load(tmp_path / "dense").classes == tuple("0123456789")


def test_what_cannot_be_loaded_is_said(trained: TrainedModels, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run directory .* nor an exported model"):
        moe_dist.load(tmp_path)
    with pytest.raises(UserError, match="choose chosen or last"):
        moe_dist.load(trained.run("dense"), checkpoint="best")  # type: ignore[arg-type]
    run = copied(trained.run("traditional_moe"), tmp_path)
    for path in checkpoints_of(run / "traditional_moe").glob("*/dense.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"dense\.safetensors does not hold the bytes that were written"):
        moe_dist.load(run)
    (training_of(run / "traditional_moe") / "training.json").unlink()
    with pytest.raises(UserError, match="the training of traditional_moe is not finished"):
        moe_dist.load(run)


def test_images_are_given_in_any_form(trained: TrainedModels, tmp_path: Path) -> None:
    model, image = moe_dist.load(trained.run("dense")), samples_of(JOBS["dense"])[0]
    path = tmp_path / "a.png"
    path.write_bytes(image)
    pixels = np.array(Image.open(path).convert("RGB"))
    wanted = model.preprocess(path)
    assert wanted.shape == (1, 3, 32, 32) and wanted.dtype == torch.float32
    forms = [str(path), image, Image.open(path), pixels, pixels[..., 0], pixels[None], [path, pixels][1:]]
    for form in forms:
        assert torch.equal(model.preprocess(form), wanted)
    assert torch.equal(model.preprocess([path, image]), torch.cat([wanted, wanted]))
    predicted = model.predict([path, pixels])
    assert torch.equal(predicted.log_probs, model(model.preprocess([path, pixels])))
    assert len(predicted) == 2 and predicted.best(3)[0][0] == (predicted.names[0], predicted.probabilities[0].item())


@pytest.mark.parametrize("frame", ["stretch", "centre_crop"])
def test_pixels_are_squared_as_files_are(frame: str) -> None:
    """Of a wide image, without a JPEG's decoding at a part of its size."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    preprocessing = Preprocessing(32, frame, (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    of_file = decode_resized(file.getvalue(), 32, frame=frame)  # type: ignore[arg-type]
    for given in (file.getvalue(), pixels, Image.fromarray(pixels)):
        assert np.array_equal(preprocessing.sample(given).numpy(), of_file)


def test_an_image_that_cannot_be_used_is_named(trained: TrainedModels, tmp_path: Path) -> None:
    model = moe_dist.load(trained.run("dense"))
    (tmp_path / "text.jpg").write_text("no image")
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"text.jpg: not a JPEG, PNG or PPM image"):
        model.predict([good, tmp_path / "text.jpg"])
    with pytest.raises(UserError, match=r"missing\.png: No such file"):
        model.preprocess(tmp_path / "missing.png")
    with pytest.raises(UserError, match=r"sample 2: expected pixels .* got float64"):
        model.preprocess([good, good / 255])
    with pytest.raises(UserError, match="sample 3: more than 8 bits"):
        model.predict([good, good, Image.fromarray(np.zeros((8, 8), np.uint16))], batch=2)


def test_vectors_are_checked() -> None:
    preprocessing = Preprocessing(8, "stretch", (0, 0, 0), (1, 1, 1), vector_size=3)
    assert torch.equal(all_samples(preprocessing, np.eye(3)), torch.eye(3))
    for values, reason in (
        ([1, 2], "expected 3 numbers"),
        ([1, 2, np.inf], "not finite"),
        ([1, 2, 1e40], "not finite"),
    ):
        with pytest.raises(UserError, match=f"sample 1: .*{reason}"):
            all_samples(preprocessing, [np.array(values)])


def test_top_k_is_refused_where_it_would_do_nothing(trained: TrainedModels) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="top_k = 1: dense cannot leave out experts"):
        moe_dist.load(trained.run("dense")).predict(image, top_k=1)
    mixture = moe_dist.load(trained.run("traditional_moe"))
    with pytest.raises(UserError, match="top_k = 11: traditional_moe has 10 experts"):
        mixture.predict(image, top_k=11)
    assert mixture.predict(image, top_k=2).gates == {} and mixture.predict([image] * 2, top_k=2).gates[""].shape == (
        2,
        10,
    )
