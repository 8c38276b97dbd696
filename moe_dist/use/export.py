"""Writes a trained model for others, with a model card: a folder for moe_dist.load, ONNX, or torch's own graph."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from moe_dist.data.opened.job_shards import shards_place
from moe_dist.data.opened.opened import are_whole, open_data
from moe_dist.errors import UserError
from moe_dist.files import write_json, write_text
from moe_dist.job import load_job
from moe_dist.places import cache_folder, shared_cache
from moe_dist.record.exported import CONFIG, WEIGHTS, is_exported
from moe_dist.train.finished import Choice
from moe_dist.use.card import card, facts_of
from moe_dist.use.exported import save_exported
from moe_dist.use.graph import ONNX, PT2, Graph, export_onnx, export_torch
from moe_dist.use.load import load

To = Literal["folder", "onnx", "torch"]
SEEN = "preprocessing.json"
CHECKED = 64
"""Test samples on which a graph is compared with the model."""


def export(
    run: Path,
    to: To,
    out: Path,
    *,
    model: str | None = None,
    checkpoint: Choice = "chosen",
    calibrated: bool = False,
    licence: str | None = None,
) -> str:
    """Write the model of a run, or of an exported folder, into the folder `out`; return how it was checked, in words.

    Raises UserError where the run has no such model, its method cannot be exported so, or `out` is `run`.
    """
    if out.resolve() == run.resolve():
        raise UserError(f"--out {out}: is what is exported; choose another folder")
    loaded = load(run, model, checkpoint, calibrated=calibrated)
    if "card" not in loaded.about:
        loaded.about["card"] = facts_of(run, loaded.about)
    if to == "folder":
        files = {WEIGHTS: "the network's parameters and buffers", CONFIG: "settings, classes and preprocessing"}
        checked = None
        save_exported(loaded, out)
    else:
        samples, what = _samples(run, loaded.preprocessing.empty(CHECKED))
        shown = loaded.preprocessing.normalised(samples)
        difference = (export_onnx if to == "onnx" else export_torch)(loaded, out, shown)
        by = "onnxruntime's" if to == "onnx" else "torch.export's"
        checked = f"Checked on {len(samples)} {what}: {by} results differ from the model's by at most {difference:.1e}."
        files = {ONNX if to == "onnx" else PT2: _of_graph(Graph(loaded)), SEEN: "classes and preprocessing"}
        seen = {"classes": list(loaded.classes), "predicts": loaded.predicts, "outputs": Graph(loaded).outputs}
        write_json(out / SEEN, seen | {"preprocessing": asdict(loaded.preprocessing)})
    write_text(out / "README.md", card(loaded, files, licence, checked))
    return checked or "The folder is read by moe_dist.load and by moe-dist predict."


def _of_graph(graph: Graph) -> str:
    outputs = ", ".join(graph.outputs)
    experts = "; all experts are computed, top-k is not a part of it" if graph.model.gate_sizes else ""
    return f"`samples` [B, ...] float32, preprocessed, any B -> {outputs}{experts}"


def _samples(run: Path, empty: Tensor) -> tuple[Tensor, str]:
    """Test samples of the run before normalising, or random ones where its data is not at hand; and which they are."""
    if not is_exported(run):
        job, cache = load_job(run / "job.yaml"), cache_folder()
        data = job.data
        source_is_here = data.shards is not None or data.source is None or data.source.exists()
        if source_is_here and are_whole(place := shards_place(data, shared_cache()), data):
            opened = open_data(data, job.seed, cache, place)
            return opened.test.images.uint8(opened.test_samples[:CHECKED]), "test samples"
    generator = torch.Generator().manual_seed(0)
    if empty.dtype == torch.uint8:
        return torch.randint(0, 256, empty.shape, generator=generator).to(torch.uint8), "images of noise"
    return torch.randn(empty.shape, generator=generator), "random vectors"
