"""Probabilities at the temperature that a run fitted on its validation split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from built_data import built_data
from run_folders import evaluation_of
from small_jobs import quiet, sparse
from trained_models import JOBS, TrainedModels, samples_of

import moe_dist
from moe_dist.errors import UserError
from moe_dist.job import parse_job
from moe_dist.metrics.calibration import negative_log_likelihood, tempered
from moe_dist.places import cache_folder
from moe_dist.use.export import export
from moe_dist.use.predict import predict_inputs

MODEL = "traditional_moe"


def test_the_temperature_is_the_best_one_on_validation(trained: TrainedModels) -> None:
    """Against a scan of temperatures, with predictions of validation images by the loaded model."""
    job = JOBS[MODEL]
    data = built_data(job.data, job.seed, cache_folder())
    model = moe_dist.load(trained.run(MODEL))
    samples = data.val.images.uint8(data.val_samples)
    log_probs = model.predict_samples(samples, samples).log_probs.numpy()
    labels = data.val.labels[data.val_samples]
    fitted = model.about["calibration"]
    assert fitted["samples"] == len(labels)
    scanned = [negative_log_likelihood(tempered(log_probs, t), labels) for t in np.geomspace(0.05, 20, 400)]
    assert fitted["nll_calibrated"] == pytest.approx(min(scanned), abs=1e-4)
    assert fitted["nll"] == pytest.approx(negative_log_likelihood(log_probs, labels), abs=1e-4)


def test_a_calibrated_model_divides_its_logits_and_says_the_same_classes(
    trained: TrainedModels, tmp_path: Path
) -> None:
    run, samples = trained.run(MODEL), samples_of(JOBS[MODEL])[:9]
    plain, calibrated = moe_dist.load(run), moe_dist.load(run, calibrated=True)
    about = json.loads((evaluation_of(run / MODEL) / "evaluation.json").read_text())
    assert calibrated.temperature == about["calibration"][calibrated.about["checkpoint"]]["temperature"] != 1
    was, now = plain.predict(samples), calibrated.predict(samples)
    assert now.names == was.names
    np.testing.assert_allclose(now.log_probs, tempered(was.log_probs.numpy(), calibrated.temperature), atol=1e-5)
    assert torch.allclose(calibrated(calibrated.preprocess(samples)), now.log_probs, atol=1e-5)
    export(run, "folder", tmp_path / "plain")
    export(run, "folder", tmp_path / "calibrated", calibrated=True)
    assert torch.equal(moe_dist.load(tmp_path / "calibrated").predict(samples).log_probs, now.log_probs)
    assert torch.equal(moe_dist.load(tmp_path / "plain", calibrated=True).predict(samples).log_probs, now.log_probs)
    assert torch.equal(moe_dist.load(tmp_path / "plain").predict(samples).log_probs, was.log_probs)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("plain", "calibrated")]
    assert "Probabilities were not calibrated" in cards[0]
    assert f"at the temperature {calibrated.temperature:.3f}, fitted on" in cards[1]


def test_rows_of_another_temperature_are_not_added_to(trained: TrainedModels, tmp_path: Path) -> None:
    run = trained.run(MODEL)
    (tmp_path / "a.png").write_bytes(samples_of(JOBS[MODEL])[0])
    predict_inputs(moe_dist.load(run), [tmp_path / "a.png"], quiet(), out=tmp_path / "rows.csv")
    with pytest.raises(UserError, match=r"another model or setting \(model.temperature"):
        calibrated = moe_dist.load(run, calibrated=True)
        predict_inputs(calibrated, [tmp_path / "a.png"], quiet(), out=tmp_path / "rows.csv")


def test_what_cannot_be_calibrated_says_so(trained: TrainedModels) -> None:
    with pytest.raises(UserError, match="the temperature is that of all experts"):
        moe_dist.load(trained.run(MODEL), calibrated=True).require_top_k(1)
    with pytest.raises(UserError, match="found clusters, for which there is no temperature"):
        moe_dist.load(trained.run("idec"), calibrated=True)
    content = sparse(epochs=1).model_dump(mode="json")
    job = parse_job(content | {"data": content["data"] | {"val_fraction": 0}}, "unvalidated")
    with pytest.raises(UserError, match="fitted no temperature; where it validates, run its job again"):
        moe_dist.load(trained.run("unvalidated", job), calibrated=True)
