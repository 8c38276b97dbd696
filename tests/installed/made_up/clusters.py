"""A method that clusters: a pretrained autoencoder, whose codes are then pulled to centres and to neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from made_up.dying import here
from moe_dist.data.batch import Batch
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import (
    Losses,
    Phase,
    Progress,
    Refresh,
    Refreshed,
    Results,
    Stage,
    StageSamples,
    Step,
    StepResult,
    Workspace,
)
from moe_dist.metrics.clustering import clustering_metrics
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.settings.schema import Count, settings_of
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig

CODE = 4


class ClustersConfig(MethodConfig):
    """How long both stages train, and when the labels stand still."""

    name: Literal["made_up_clusters"] = "made_up_clusters"
    clusters: Count = 10
    pretrain_epochs: Count = 2
    steps: Count = 30
    refresh_every: Count = 7
    tolerance: float = 0.0
    """The share of labels that may change from one refresh to the next before the stage ends."""


class AutoEncoder(nn.Module):
    """Images [B, 3, S, S] -> codes [B, 4] -> images; centres [K, 4] of the codes."""

    def __init__(self, side: int, clusters: int) -> None:
        super().__init__()
        pixels = 3 * side**2
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.Tanh(), nn.Linear(16, CODE))
        self.decoder = nn.Sequential(nn.Linear(CODE, 16), nn.Tanh(), nn.Linear(16, pixels))
        self.centres = nn.Parameter(torch.zeros(clusters, CODE))

    def assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, 4] and soft assignments [B, K]: Student's t of the distance to each centre, normalised."""
        codes = self.encoder(images)
        nearness = 1 / (1 + (codes[:, None] - self.centres[None]).square().sum(2))
        return codes, nearness / nearness.sum(1, keepdim=True)


class Clusters(Method):
    """Pretraining, codes looked at, then clustering with targets and neighbours of all samples, refreshed."""

    Config = ClustersConfig
    config: ClustersConfig
    predicts = "clusters"
    chosen_by = "accuracy"

    def phases(self) -> Sequence[Phase]:
        """Pretraining by itself, a step on its codes, and clustering."""
        config = self.config
        adam = OptimiserConfig(kind="adam", learning_rate=0.01)
        pretrain = Stage(
            "pretrain",
            24,
            {"encoder.": adam, "decoder.": adam},
            epochs=config.pretrain_epochs,
            schedule=ScheduleConfig(kind="cosine"),
            rate_by="step",
            validated=False,
            title="pretraining of the autoencoder",
            build=self._build_anew,
            settings={"pretrain_epochs": config.pretrain_epochs, "clusters": config.clusters},
            loss=self._reconstruct,
        )
        cluster = Stage(
            "cluster",
            24,
            {"": OptimiserConfig(kind="sgd", learning_rate=0.05)},
            steps=config.steps,
            title="clustering",
            build=self._build_from_pretrained,
            prepare=self._centres_by_kmeans,
            refresh=Refresh(config.refresh_every, self._refresh),
            companions="neighbours",
        )
        return pretrain, Step("codes", "spread of the codes", self._look_at_codes, settings_of(config)), cluster

    def build(self, make: Makers, results: Results, seed: int) -> nn.Module:
        """The autoencoder."""
        return seeded(seed, lambda: AutoEncoder(self.info.image_size, self.config.clusters))

    def _build_anew(self, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int) -> nn.Module:
        return self.build(make, results, seed)

    def _build_from_pretrained(
        self, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int
    ) -> nn.Module:
        return trained("pretrain")

    def _look_at_codes(self, workspace: Workspace) -> StepResult:
        network = workspace.trained("pretrain")
        images = workspace.images.uint8(workspace.samples).float() / 255
        with torch.inference_mode():
            codes = network.encoder(images)
        return StepResult({"spread": float(codes.std())}, {"codes": codes.numpy()})

    def _reconstruct(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        here("pretrain")
        error = (network.decoder(network.encoder(batch.images)) - batch.images.flatten(1)).square().mean(1)
        return {"reconstruction": batch.mean(error)}

    def _centres_by_kmeans(self, network: nn.Module, samples: StageSamples) -> None:
        codes = samples.outputs(lambda batch: {"codes": network.encoder(batch.images)})["codes"]
        here("prepare")

        def kmeans() -> dict[str, np.ndarray]:
            found = KMeans(self.config.clusters, n_init=1, random_state=samples.seed).fit(codes)
            return {"centres": found.cluster_centers_}

        centres = samples.on_one_rank(kmeans)["centres"]
        network.centres.copy_(torch.from_numpy(centres).to(network.centres.device))

    def _refresh(
        self, network: nn.Module, samples: StageSamples, arrays: Mapping[str, np.ndarray], progress: Progress
    ) -> Refreshed:
        """Targets p = q^2 / sum(q), normalised, two neighbours of every code; ends where labels stand still."""

        def outputs(batch: Batch) -> dict[str, Tensor]:
            codes, soft = network.assign(batch.images)
            return {"codes": codes, "soft": soft}

        found = samples.outputs(outputs)
        here("refresh")
        weight = found["soft"] ** 2 / found["soft"].sum(0)
        labels = found["soft"].argmax(1)
        distances = NearestNeighbors(n_neighbors=3).fit(found["codes"])
        neighbours = distances.kneighbors(found["codes"], return_distance=False)[:, 1:]
        changed = float((labels != arrays["label"]).mean()) if "label" in arrays else 1.0
        return Refreshed(
            {"target": weight / weight.sum(1, keepdims=True), "label": labels, "neighbours": neighbours},
            {"changed": changed},
            done=changed < self.config.tolerance,
            reason="labels stand still",
        )

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy of the targets, and the distance of a code to its neighbours' codes."""
        here("cluster")
        codes, soft = network.assign(batch.images)
        assert batch.companions is not None
        beside = network.encoder(batch.companions.flatten(0, 1)).unflatten(0, batch.companions.shape[:2])
        apart = (codes[:, None] - beside).square().sum(2).mean(1)
        clustering = -(batch.columns["target"] * soft.log()).sum(1)
        share = 0.1 * progress.stage_step / progress.stage_steps
        terms = {"clustering": batch.mean(clustering), "neighbours": share * batch.mean(apart)}
        return Losses(terms, {"entropy": batch.mean(-(soft * soft.log()).sum(1))})

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The soft assignments."""
        return Prediction(network.assign(images)[1].log())

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The cluster of each sample."""
        return {"cluster": network.assign(batch.images)[1].argmax(1)}

    def score(self, measured: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Accuracy under the best matching of clusters and classes."""
        return {"accuracy": clustering_metrics(measured["cluster"], labels)["accuracy"]}

    def pictures(self, network: nn.Module, batch: Batch) -> Mapping[str, np.ndarray]:
        """The centres."""
        return {"centres": network.centres.detach().cpu().numpy()}

    def search_space(self) -> Mapping[str, object]:
        """How long it clusters."""
        return {"steps": [10, 20, 30]}
