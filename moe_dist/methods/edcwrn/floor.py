"""The floor of a deep clustering: k-means on the samples as they are, on their principal components and on codes."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from moe_dist.data.augment.augment import normalise
from moe_dist.methods.edcwrn.network import AutoEncoder
from moe_dist.methods.phases import StepResult, Workspace
from moe_dist.metrics.clustering import clustering_metrics

AT_ONCE = 1024
SPACES = ("pixels", "pca", "codes")


def kmeans_floor(workspace: Workspace, stage: str, clusters: int, restarts: int) -> StepResult:
    """ACC and NMI of k-means on each of SPACES; stage: the one that pretrains. Of vectors, pixels are their numbers."""
    assert workspace.true_labels is not None
    network = cast(AutoEncoder, workspace.trained(stage))
    pixels, codes = [], []
    with torch.inference_mode():
        for samples in np.array_split(workspace.samples, max(1, len(workspace.samples) // AT_ONCE)):
            inputs = network.inputs(_seen(workspace, samples))
            pixels.append(inputs.numpy())
            codes.append(network.encoder(inputs).numpy())
    spaces = {"pixels": np.concatenate(pixels), "codes": np.concatenate(codes)}
    size = min(spaces["codes"].shape[1], *spaces["pixels"].shape)
    spaces["pca"] = PCA(size, random_state=workspace.seed).fit_transform(spaces["pixels"])
    labels, values = workspace.true_labels[workspace.samples], {}
    for space in SPACES:
        found = KMeans(clusters, n_init=restarts, random_state=workspace.seed).fit_predict(spaces[space])
        metrics = clustering_metrics(found, labels)
        values[space] = {"accuracy": metrics["accuracy"], "nmi": metrics["nmi"]}
    return StepResult(values)


def _seen(workspace: Workspace, samples: np.ndarray) -> Tensor:
    """Samples as a network sees them, unchanged."""
    return normalise(workspace.images.uint8(samples), workspace.data.mean, workspace.data.std)
