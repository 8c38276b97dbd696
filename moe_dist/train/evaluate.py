"""A trained model on the test split: predictions and latency, once, by one process that holds the whole network."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_dist.data.opened import OpenedData, open_data
from moe_dist.data.stream import evaluation_batches
from moe_dist.methods.base import Method, TaskContext
from moe_dist.report.latency import Latency, measure_latency
from moe_dist.train.checkpoint import load_weights
from moe_dist.train.makers import IN_ONE_PROCESS
from moe_dist.train.results import Results, write_json
from moe_dist.train.task import EVALUATION_BATCH, TrainingTask, open_method

ALL = "all"


def evaluate_task(packed: dict[str, Any], checkpoint: str, context: TaskContext) -> dict[str, Any]:
    """Predictions of the test split by all experts and by each top-k, and how long one image takes with each."""
    task = TrainingTask.unpack(packed)
    data = open_data(task.job.data, task.job.seed, task.cache)
    method = open_method(task.job, task.label, data)
    network = load_network(task, method, Path(checkpoint)).to(context.device)
    arrays = predict_test(method, network, data, context)
    image = next(
        evaluation_batches(data.test.images, data.test_samples[:1], data.test.labels[:1], data.config, batch_size=1)
    )
    latency: dict[str, Latency] = {}
    for name, top_k in {ALL: None, **{f"top{k}": k for k in method.top_ks()}}.items():
        predict = partial(method.predict, network, top_k=top_k)
        latency[name] = measure_latency(predict, image.images, device=context.device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"arrays": arrays, "latency": latency, "parameters": parameters}


def load_network(task: TrainingTask, method: Method, checkpoint: Path) -> nn.Module:
    """The trained network with all its experts, in eval mode on the CPU."""
    network = method.build(IN_ONE_PROCESS, Results(task.folder / "steps"), task.job.seed)
    load_weights(checkpoint, network)
    return network.eval()


@torch.inference_mode()
def predict_test(method: Method, network: nn.Module, data: OpenedData, context: TaskContext) -> dict[str, np.ndarray]:
    """labels [N], log_probs [N, C], gate [N, E] where there is one, and log_probs_top<k> [N, C]."""
    labels = data.test.labels[data.test_samples]
    collected: dict[str, list[np.ndarray]] = {}
    done = 0
    for batch in evaluation_batches(
        data.test.images, data.test_samples, labels, data.config, batch_size=EVALUATION_BATCH, device=context.device
    ):
        valid = (batch.weight > 0).cpu().numpy()
        prediction = method.predict(network, batch.images)
        outputs = {"log_probs": prediction.log_probs}
        if prediction.gate is not None:
            outputs["gate"] = prediction.gate
        for k in method.top_ks():
            outputs[f"log_probs_top{k}"] = method.predict(network, batch.images, k).log_probs
        for name, output in outputs.items():
            collected.setdefault(name, []).append(output.float().cpu().numpy()[valid])
        done += int(valid.sum())
        context.progress(done, len(labels) + 1)  # the last one is the latency's
    return {"labels": labels, **{name: np.concatenate(parts) for name, parts in collected.items()}}


def save_evaluation(folder: Path, outcome: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write predictions.npz and, last, evaluation.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").unlink(missing_ok=True)
    with (folder / "predictions.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **outcome["arrays"])
    about = {"latency": outcome["latency"], "parameters": outcome["parameters"], "finished": time.time(), **facts}
    write_json(folder / "evaluation.json", about)
