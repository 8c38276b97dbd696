"""A deep clusterer in the place of k-means: EDCWRN, IDEC or DEC on the vectors that DFCP's features are.

Letters: U clustered samples, D numbers of a feature, d of a code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.methods.edcwrn.config import EdcwrnConfig
from moe_dist.methods.edcwrn.method import Edcwrn
from moe_dist.methods.edcwrn.network import AutoEncoder, ClusteringNetwork
from moe_dist.methods.edcwrn.update import NEIGHBOURS
from moe_dist.methods.phases import Results, Stage, Workspace
from moe_dist.models.makers import Makers


class FeatureClusterer(Edcwrn):
    """Edcwrn whose samples are the clustered images' features; its stages come after the step `features`.

    The features lie beside the network's weights, as buffers that no checkpoint holds.
    """

    stage_names = ("clusterer_pretraining", "clusterer")

    def __init__(self, config: EdcwrnConfig, clusters: int) -> None:
        self.config, self.clusters = config, clusters

    def phases(self) -> Sequence[Stage]:
        """Pretraining, trials of several starts where they are asked for, and clustering."""
        pretrain, *trials, cluster = self.stages()
        of_features = partial(replace, training_set=_clustered, companions=None, validated=False)
        return (
            replace(pretrain, training_set=_clustered, title="pretraining of the clusterer"),
            *(of_features(trial) for trial in trials),
            of_features(cluster, loss=self.loss, title="deep clustering"),
        )

    def stages(self) -> Sequence[Stage]:
        """The stages of Edcwrn, which are of images."""
        return [stage for stage in super().phases() if isinstance(stage, Stage)]

    def label_all(self, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
        """The codes [U, d] and clusters [U] of all features."""
        network = workspace.trained(self.stage_names[1])
        assert isinstance(network, ClusteringNetwork)
        with torch.inference_mode():
            codes, log_q = self.assign_all(network, network.inputs(network.get_buffer("features")))
        return codes.numpy(), log_q.argmax(1).numpy()

    def _build_autoencoder(
        self, make: Makers, results: Results, trained: Callable[[str], nn.Module] | None, seed: int
    ) -> nn.Module:
        return _with_features(super()._build_autoencoder(make, results, trained, seed), results)

    def _build_from_pretrained(
        self, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int
    ) -> nn.Module:
        return _with_features(super()._build_from_pretrained(make, results, trained, seed), results)

    def _build_trial(
        self, number: int, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int
    ) -> nn.Module:
        return _with_features(super()._build_trial(number, make, results, trained, seed), results)

    def _input_size(self, results: Results) -> int:
        return results["features"].arrays["features"].shape[1]

    def _count(self, results: Results) -> int:
        return len(results["features"].arrays["features"])

    def _inputs(self, network: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(network, AutoEncoder | ClusteringNetwork)
        rows = network.get_buffer("row_of")[batch.samples]
        return network.inputs(network.get_buffer("features")[rows])

    def _companions(self, network: ClusteringNetwork, batch: Batch) -> Tensor:
        return network.inputs(network.get_buffer("features")[batch.columns[NEIGHBOURS].flatten()])


def _clustered(results: Results, labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
    """The clustered samples in the order of their features; none has a label."""
    clustered = results["split"].arrays["clustered"]
    return TrainingSet(clustered, labels[clustered])


def _with_features(network: nn.Module, results: Results) -> nn.Module:
    """The network with buffers features [U, D], and row_of: by a sample's number, its row among them."""
    clustered, features = results["split"].arrays["clustered"], results["features"].arrays["features"]
    row_of = torch.zeros(int(clustered.max()) + 1, dtype=torch.int64)
    row_of[torch.from_numpy(clustered)] = torch.arange(len(clustered))
    network.register_buffer("features", torch.from_numpy(np.asarray(features, np.float32)), persistent=False)
    network.register_buffer("row_of", row_of, persistent=False)
    return network
