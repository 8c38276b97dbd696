"""Exported models: graphs that compute what the model does, folders that load, and cards that say where it is from."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from trained_models import JOBS, TrainedModels, evaluated, samples_of

import moe_dist
import moe_dist.use.graph as graph_module
from moe_dist.errors import UserError
from moe_dist.methods.edcwrn.method import Idec
from moe_dist.use.export import export

QUICK = ("dfcp", "gmm_moe", "sparse_moe", "edcwrn")
"""The other methods' networks are of the same parts; all of them are exported in the slow tests."""


def front_of(card: str) -> dict:
    """What a hub reads of a card."""
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


@pytest.mark.parametrize("name", QUICK)
def test_a_graph_of_torch_computes_what_the_model_does_for_any_batch(
    name: str, trained: TrainedModels, tmp_path: Path
) -> None:
    torch_graph_agrees(name, trained, tmp_path)


@pytest.mark.parametrize("name", QUICK)
def test_an_onnx_graph_computes_what_the_model_does_for_any_batch(
    name: str, trained: TrainedModels, tmp_path: Path
) -> None:
    onnx_graph_agrees(name, trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_method_as_a_graph_of_torch(name: str, trained: TrainedModels, tmp_path: Path) -> None:
    torch_graph_agrees(name, trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_method_as_an_onnx_graph(name: str, trained: TrainedModels, tmp_path: Path) -> None:
    onnx_graph_agrees(name, trained, tmp_path)


def torch_graph_agrees(name: str, trained: TrainedModels, folder: Path) -> None:
    run, samples = trained.run(name), samples_of(JOBS[name])
    said = export(run, "torch", folder)
    assert said.startswith("Checked on ") and " test samples: torch.export's results differ" in said
    model, graph = moe_dist.load(run), torch.export.load(folder / "model.pt2").module()
    for count in (1, 5):
        shown = model.preprocess(samples[:count])
        assert np.allclose(graph(shown)[0].detach().numpy(), model(shown).detach().numpy(), atol=1e-5)


def onnx_graph_agrees(name: str, trained: TrainedModels, folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, samples = trained.run(name), samples_of(JOBS[name])
    assert "test samples: onnxruntime's results differ" in export(run, "onnx", folder)
    model = moe_dist.load(run)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    seen = json.loads((folder / "preprocessing.json").read_text())
    assert [output.name for output in session.get_outputs()] == seen["outputs"]
    assert seen["classes"] == list(model.classes) and seen["preprocessing"]["image_size"] == JOBS[name].data.image_size
    for count in (1, 5):
        shown = model.preprocess(samples[:count])
        predicted, *gates = session.run(None, {"samples": shown.numpy()})
        assert np.allclose(predicted, model(shown).detach().numpy(), atol=1e-4)
        assert len(gates) == len(model.gate_sizes)


def test_a_method_whose_way_depends_on_the_samples_says_so(
    trained: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one would whose author computes experts of some images only."""
    predict = Idec.predict

    def depending(self: Idec, network: Any, images: Any, top_k: int | None = None) -> Any:
        return predict(self, network, images * 2 if images.mean() > 0 else images)

    monkeypatch.setattr(Idec, "predict", depending)
    with pytest.raises(UserError, match=r"idec cannot be exported as a graph, .* depends on the samples \(.*\)"):
        export(trained.run("idec"), "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_has_no_onnx_graph_says_so(
    trained: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(torch.onnx, "export", refusing)
    with pytest.raises(UserError, match=r"idec cannot be exported to ONNX \(no such operation\); use --to torch"):
        export(trained.run("idec"), "onnx", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_is_not_written(
    trained: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"log_probs differs by 0 from the model's.* nothing was written"):
        export(trained.run("idec"), "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_onnx_says_what_to_install(
    trained: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(graph_module, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UserError, match=r"ONNX needs onnxruntime: pip install 'moe-dist\[export\]'"):
        export(trained.run("idec"), "onnx", tmp_path)


def test_a_folder_has_a_card_and_is_loaded_exported_and_predicted_from(trained: TrainedModels, tmp_path: Path) -> None:
    """Also without the run, and once more from the folder itself."""
    run = Path(shutil.copytree(trained.run("dfcp"), tmp_path / "run"))
    images, folder, line = samples_of(JOBS["dfcp"])[:7], tmp_path / "model", [sys.executable, "-m", "moe_dist.cli"]
    wanted = moe_dist.load(run, checkpoint="last").predict(images).log_probs
    line += ["export", str(run), "--to", "folder", "--out", str(folder), "--checkpoint", "last", "--licence", "mit"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "read by moe_dist.load" in done.stdout, done.stderr
    shutil.rmtree(run)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(moe_dist.load(folder).predict(images).log_probs, wanted)
    text = (folder / "README.md").read_text()
    front = front_of(text)
    assert front["license"] == "mit" and front["pipeline_tag"] == "image-classification"
    arrays = evaluated(trained.run("dfcp"), "dfcp")
    top1 = float((arrays["log_probs"].argmax(1) == arrays["labels"]).mean())
    (metric, *_) = front["model-index"][0]["results"][0]["metrics"]
    assert metric["type"] == "top-1" and metric["value"] == pytest.approx(top1, abs=1e-6)
    record = json.loads((trained.run("dfcp") / "run.json").read_text())
    for said in (record["split_digest"], record["hardware"], "Seed 0", "40% trusted", f"| top-1 | {top1:.4f} | 0."):
        assert said in text
    again = export(folder, "torch", tmp_path / "graph")
    assert "64 images of noise" in again
    assert record["split_digest"] in (tmp_path / "graph" / "README.md").read_text()
    with pytest.raises(UserError, match="is what is exported"):
        export(folder, "folder", folder)
    with pytest.raises(UserError, match="leave model and checkpoint out"):
        moe_dist.load(folder, checkpoint="last")


def test_a_chosen_checkpoints_card_has_its_own_accuracy(trained: TrainedModels, tmp_path: Path) -> None:
    run = trained.run("traditional_moe")
    arrays = evaluated(run, "traditional_moe")
    export(run, "folder", tmp_path)
    chosen = float((arrays["chosen_argmax"] == arrays["labels"]).mean())
    assert f"| top-1 | {chosen:.4f} |" in (tmp_path / "README.md").read_text()


def test_a_damaged_folder_is_not_loaded(trained: TrainedModels, tmp_path: Path) -> None:
    export(trained.run("idec"), "folder", tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors: does not hold the bytes that were written"):
        moe_dist.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: cannot be loaded"):
        moe_dist.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json: is not of a model"):
        moe_dist.load(tmp_path)
