"""The temperature of a trained network's probabilities, fitted on the validation split."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from moe_dist.data.opened.opened import OpenedData
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.methods.base import Method
from moe_dist.metrics.calibration import (
    calibration_error_of,
    fitted_temperature,
    negative_log_likelihood,
    tempered,
)
from moe_dist.train.task import EVALUATION_BATCH


@torch.inference_mode()
def calibrate(method: Method, network: nn.Module, data: OpenedData, device: torch.device) -> dict[str, float] | None:
    """The temperature of all experts' predictions for the validation images, and what it does to them there.

    samples; ece and nll, and both at the temperature as ece_calibrated and nll_calibrated. None for clusters, and
    where there are no validation images to be read.
    """
    samples = data.val_samples
    if method.predicts != "classes" or not len(samples):
        return None
    found: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for batch in evaluation_batches(
        data.val.images, samples, data.val.labels[samples], data.config, batch_size=EVALUATION_BATCH, device=device
    ):
        valid = batch.weight > 0
        found.append(method.predict(network, batch.images).log_probs[valid].float().cpu().numpy())
        labels.append(batch.labels[valid].cpu().numpy())
    log_probs, true = np.concatenate(found), np.concatenate(labels)
    if not len(true):
        return None
    temperature = fitted_temperature(log_probs, true)
    after = tempered(log_probs, temperature)
    return {
        "temperature": temperature,
        "samples": len(true),
        "ece": calibration_error_of(log_probs, true),
        "ece_calibrated": calibration_error_of(after, true),
        "nll": negative_log_likelihood(log_probs, true),
        "nll_calibrated": negative_log_likelihood(after, true),
    }
