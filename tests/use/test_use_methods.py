"""Every method of the registry is loaded and predicts what the run's own evaluation predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trained_models import BATCH, JOBS, TrainedModels, evaluated, samples_of

import moe_dist
from moe_dist.methods.registry import method_names
from moe_dist.use.exported import save_exported

METHODS = sorted(JOBS)


def test_every_method_of_the_registry_has_a_small_job() -> None:
    assert method_names() == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_model_predicts_what_its_run_evaluated(name: str, trained: TrainedModels) -> None:
    """To the last bit in batches of the same size, else to 1e-5; with gates and top-k, where the method has them."""
    run = trained.run(name)
    model, wanted, images = moe_dist.load(run, checkpoint="last"), evaluated(run, name), samples_of(JOBS[name])
    predicted = model.predict(images, batch=BATCH)
    assert np.array_equal(predicted.log_probs.numpy(), wanted["log_probs"])
    gates = {f"gate.{gate}" if gate else "gate": weights.numpy() for gate, weights in predicted.gates.items()}
    assert gates.keys() == {key for key in wanted if key.startswith("gate")}
    assert all(np.array_equal(weights, wanted[key]) for key, weights in gates.items())
    one_by_one = model.predict(images, batch=7)
    assert np.array_equal(one_by_one.labels.numpy(), wanted["log_probs"].argmax(1))
    assert np.allclose(one_by_one.log_probs.numpy(), wanted["log_probs"], atol=1e-5)
    for k in [int(key.removeprefix("log_probs_top")) for key in wanted if key.startswith("log_probs_top")]:
        found, evaluated_k = model.predict(images, top_k=k, batch=BATCH).log_probs.numpy(), wanted[f"log_probs_top{k}"]
        if name in ("dfcp", "traditional_moe"):  # a prediction computes k experts alone; an evaluation each once
            assert np.array_equal(found.argmax(1), evaluated_k.argmax(1))
            assert np.allclose(found, evaluated_k, atol=1e-5)
        else:
            assert np.array_equal(found, evaluated_k)


@pytest.mark.parametrize("name", METHODS)
def test_an_exported_folder_is_loaded_as_the_same_model(name: str, trained: TrainedModels, tmp_path: Path) -> None:
    run, images = trained.run(name), samples_of(JOBS[name])[:9]
    model = moe_dist.load(run)
    save_exported(model, tmp_path / "model")
    again = moe_dist.load(tmp_path / "model")
    assert again.classes == model.classes and again.preprocessing == model.preprocessing
    assert torch.equal(again.predict(images).log_probs, model.predict(images).log_probs)
