"""Evaluates a trained model on the test split in one process: predictions, latency, calibration and pictures."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.bad_samples import require_readable
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.engine.checkpoint import damaged_file, load_weights
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.evaluate.calibration import calibrate
from moe_dist.evaluate.latency import Latency, measure_latency
from moe_dist.evaluate.pictures import look_at_images, own_pictures, project_features
from moe_dist.files import whole_file, write_json
from moe_dist.methods.base import Method
from moe_dist.methods.phases import TaskContext
from moe_dist.metrics.classification import pairwise_divergence
from moe_dist.record.provenance import hardware
from moe_dist.record.results import Results
from moe_dist.train.task import BAD_SAMPLES, EVALUATION_BATCH, TrainingTask, build_network, open_method

ALL = "all"
EXPERTS_BYTES = 64 * 2**20
"""Largest size of the experts' log-probabilities that are kept; of larger ones only the classes are kept."""


def evaluate_task(packed: dict[str, Any], checkpoints: tuple[str, str | None], context: TaskContext) -> dict[str, Any]:
    """A task: predictions on the test split and latency, with all experts and with each top-k, and pictures.

    checkpoints: the last one, which is evaluated, and the best one on validation (or None), of which only the predicted
    classes are kept; of both, the temperature; as `TrainingTask.in_run` names them. Returns arrays, pictures and about,
    for `save_evaluation`.
    """
    task = TrainingTask.unpack(packed)
    last, chosen = (task.run / name if name else None for name in checkpoints)
    assert last is not None
    task.fetch_inputs(*filter(None, (last, chosen)))
    data = open_data(task.job.data, task.job.seed, task.cache, task.shards)
    data.bad_samples.write_to(task.run / BAD_SAMPLES)
    method = open_method(task.job, task.model, data)
    network = load_network(task, method, last).to(context.device)
    fast = method.packed(network)
    arrays = predict_test(method, fast, data, context)
    image = next(
        evaluation_batches(data.test.images, data.test_samples[:1], data.test.labels[:1], data.config, batch_size=1)
    )
    latency: dict[str, Latency] = {}
    for name, top_k in {ALL: None, **{f"top{k}": k for k in method.top_ks()}}.items():
        predict = partial(method.predict, fast, top_k=top_k)
        latency[name] = measure_latency(predict, image.images, device=context.device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    pictures = {"tsne": project_features(method, network, data, context.device)}
    pictures["grad_cam"] = look_at_images(method, network, data, context.device)
    pictures["own"] = own_pictures(method, network, data, context.device)
    calibration = {last.name: calibrate(method, fast, data, context.device)}
    if chosen == last:
        arrays["chosen_argmax"] = arrays["log_probs"].argmax(1).astype(np.int16)
    elif chosen is not None:
        load_weights(chosen, network)
        fast = method.packed(network)
        arrays["chosen_argmax"] = choose_classes(method, fast, data, context.device)
        calibration[chosen.name] = calibrate(method, fast, data, context.device)
    about: dict[str, Any] = {"predicts": method.predicts, "latency": latency, "parameters": parameters}
    about |= {"hardware": hardware(), "evaluated": last.name, "calibration": calibration}
    task.push_bad_samples()
    return {"arrays": arrays, "pictures": pictures, "about": about}


def load_network(task: TrainingTask, method: Method, checkpoint: Path) -> nn.Module:
    """The trained network with all experts, in eval mode on the CPU. Raises UserError for a damaged checkpoint."""
    if file := damaged_file(checkpoint):
        raise UserError(
            f"{checkpoint}: {file} does not hold the bytes that were written; run again with --resume, which goes on "
            "from the checkpoint before it"
        )
    first = next(stage for stage in method.stages() if not task.stages or stage.name in task.stages)
    network = build_network(task, method, first, IN_ONE_PROCESS, Results(task.steps))
    load_weights(checkpoint, network)
    return network.eval()


@torch.inference_mode()
def predict_test(method: Method, network: nn.Module, data: OpenedData, context: TaskContext) -> dict[str, np.ndarray]:
    """The predictions on the test split: labels [N], log_probs [N, C], gate [N, E] if any, log_probs_top<k> [N, C].

    If experts predict classes, also experts_argmax [N, E] int16 (each expert's class), experts_divergence [N] float32
    and, if it is small, experts_log_probs [N, E, C] float16. Bad samples are left out of all arrays.
    """
    labels = data.test.labels[data.test_samples]
    collected: dict[str, list[np.ndarray]] = {}
    done = 0
    for batch in evaluation_batches(
        data.test.images, data.test_samples, labels, data.config, batch_size=EVALUATION_BATCH, device=context.device
    ):
        valid = (batch.weight > 0).cpu().numpy()
        by_number = method.predict_by(network, batch.images, method.top_ks())
        prediction = by_number[None]
        outputs = {"labels": batch.labels, "log_probs": prediction.log_probs}
        outputs |= {f"gate.{name}" if name else "gate": gate for name, gate in prediction.gates.items()}
        for k in method.top_ks():
            outputs[f"log_probs_top{k}"] = by_number[k].log_probs
        arrays = {name: (output if name == "labels" else output.float()) for name, output in outputs.items()}
        arrays |= _of_experts(prediction.experts, len(labels))
        for name, array in arrays.items():
            collected.setdefault(name, []).append(array.cpu().numpy()[valid])
        done += len(valid)
        context.progress(min(done, len(labels)), len(labels) + 1)  # the last part is the latency
    require_readable(sum(map(len, collected["labels"])), "test")
    return {name: np.concatenate(parts) for name, parts in collected.items()}


@torch.inference_mode()
def choose_classes(method: Method, network: nn.Module, data: OpenedData, device: torch.device) -> np.ndarray:
    """The class [N] int16 that `network` predicts for each test image, without bad samples."""
    labels = data.test.labels[data.test_samples]
    chosen = [
        method.predict(network, batch.images).log_probs.argmax(1)[batch.weight > 0]
        for batch in evaluation_batches(
            data.test.images, data.test_samples, labels, data.config, batch_size=EVALUATION_BATCH, device=device
        )
    ]
    return torch.cat(chosen).to(torch.int16).cpu().numpy()


def _of_experts(experts: Tensor | None, images: int) -> dict[str, Tensor]:
    """The arrays to keep of the experts' predictions [B, E, C] for a batch; images: the number of all test images."""
    if experts is None or experts.dim() != 3:
        return {}
    log_probs = experts.float().log_softmax(2)
    divergence = torch.from_numpy(pairwise_divergence(log_probs.cpu().numpy())).float()
    kept = {"experts_argmax": experts.argmax(2).to(torch.int16), "experts_divergence": divergence}
    if images * experts[0].numel() * torch.float16.itemsize <= EXPERTS_BYTES:
        kept["experts_log_probs"] = log_probs.half()
    return kept


def save_evaluation(folder: Path, outcome: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write predictions.npz, a file of arrays for each kind of picture, and last evaluation.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").unlink(missing_ok=True)
    for name, arrays in {"predictions": outcome["arrays"], **outcome["pictures"]}.items():
        path = folder / f"{name}.npz"
        path.unlink(missing_ok=True)
        if arrays:
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
    write_json(folder / "evaluation.json", {**outcome["about"], "finished": time.time(), **facts})
