"""EDCWRN, DEC and IDEC as one method: an autoencoder is pretrained, then its codes are drawn to cluster centres.

Letters: B samples of a batch, N samples of the training set, D numbers of a code, Q clusters, k neighbours.

Readings, where the paper leaves one:
1. The target, the labels and (scope `all`) the weights and neighbours are of unchanged images, every T steps, with
   neighbours among all samples, so that a label does not depend on a batch. `scope: batch` is about the steps between.
2. The first pass makes each sample its own neighbour; its code is then twice what one encoder gives, so the decoder's
   first layer starts at half the pretrained one (network.py).
3. `weighting.enabled: false` is Eq 11 with every w = 1, as the distance of IDEC; with weights on they start at 1/D.
4. The weights are updated before the target, from assignments by the weights before.
Ours, and off unless it is asked for: `starts` and `spread` (config.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.edcwrn import equations
from moe_dist.methods.edcwrn.config import DecConfig, EdcwrnConfig, IdecConfig
from moe_dist.methods.edcwrn.floor import kmeans_floor
from moe_dist.methods.edcwrn.neighbours import nearest_in_batch, nearest_of_all, require_neighbours
from moe_dist.methods.edcwrn.network import AutoEncoder, ClusteringNetwork, TrialNetwork
from moe_dist.methods.edcwrn.starts import kmeans_optima, spread_of
from moe_dist.methods.edcwrn.update import (
    NEIGHBOURS,
    inter_cluster_variance,
    log_assignments,
    scores,
    sum_of_codes,
    update,
)
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
from moe_dist.methods.ranks import gather, own_rows
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.settings.schema import settings_of


class Edcwrn(Method):
    """Pretraining by reconstruction, then clustering with a target that is refreshed every T steps."""

    Config: ClassVar[type[EdcwrnConfig]] = EdcwrnConfig
    config: EdcwrnConfig
    predicts = "clusters"
    chosen_by = "accuracy"
    takes_vectors = True
    stage_names: ClassVar = ("pretrain", "cluster")

    def __init__(self, config: EdcwrnConfig, info: DatasetInfo) -> None:
        super().__init__(config, info)
        self.clusters = config.clusters or info.classes
        if config.clusters is None and info.classes < 2:
            raise UserError("method.clusters: the samples have no classes to count; say how many clusters to look for")
        if self.clusters > info.train_images:
            raise UserError(
                f"method.clusters = {self.clusters}: there are only {info.train_images} samples; ask for fewer clusters"
            )
        require_neighbours(config.neighbours.count, info.train_images)

    @property
    def _of_a_batch(self) -> bool:
        """Whether neighbours or weights are of a step's batch."""
        config = self.config
        neighbours = config.neighbours.count > 0 and config.neighbours.scope == "batch"
        return neighbours or (config.weighting.enabled and config.weighting.scope == "batch")

    def phases(self) -> Sequence[Phase]:
        """Pretraining, which does not depend on how is clustered, and clustering; the floor, where it is asked for.

        Before the clustering there are trials of it, where several starts are asked for.
        """
        config, pretrain = self.config, self.config.pretrain
        shared = {"network": settings_of(config.network), "augment": settings_of(config.augment)}
        floor = Step("floor", "k-means as the floor", self._floor, {"clusters": self.clusters}, sees_true_labels=True)
        return (
            Stage(
                self.stage_names[0],
                config.batch_size,
                {"encoder.": pretrain.optimiser, "decoder.": pretrain.optimiser},
                steps=pretrain.steps,
                schedule=pretrain.schedule,
                augment=config.augment,
                validated=False,
                title="pretraining of the autoencoder",
                build=self._build_autoencoder,
                settings=shared | {"pretrain": settings_of(pretrain), "batch_size": config.batch_size},
                loss=self._reconstruction,
                prepare=self._scale_inputs,
            ),
            *([floor] if config.floor else []),
            *self._trials(),
            self._clustering_stage(self.stage_names[1], "clustering", {}),
        )

    def _clustering_stage(self, name: str, title: str, more: dict[str, Any]) -> Stage:
        """The clustering, from k-means' lowest optimum or the start that the trials chose."""
        config = self.config
        count, scope = config.neighbours.count, config.neighbours.scope
        return Stage(
            name,
            config.batch_size,
            {"": config.optimiser},
            steps=config.steps,
            augment=config.augment,
            whole_batch=self._of_a_batch,
            title=title,
            settings=settings_of(config) | {"name": config.name, "clusters": self.clusters} | more,
            build=self._build_from_pretrained,
            prepare=self._begin_at_the_start,
            refresh=Refresh(config.refresh_every, self._refresh, last=True),
            companions=NEIGHBOURS if count and scope == "all" else None,
        )

    @property
    def _trial_names(self) -> list[str]:
        """Of the stages that try a start each; none where there is one start."""
        count = self.config.starts.count
        return [f"{self.stage_names[1]}_start_{number}" for number in range(count)] if count > 1 else []

    def _trials(self) -> list[Stage]:
        """A short clustering from each start, by IDEC whatever is trained, so that methods begin at the same one."""
        config, names = self.config, self._trial_names
        shared = ("clusters", "network", "pretrain", "augment", "batch_size", "kmeans_restarts", "spread", "optimiser")
        idec = IdecConfig.model_validate({name: getattr(config, name) for name in (*shared, "refresh_every")})
        trial = copy.copy(self)
        trial.config = idec.model_copy(update={"steps": config.starts.steps})
        return [
            replace(
                trial._clustering_stage(
                    name, f"trial of start {number + 1} of {len(names)}", {"start": number, "starts": len(names)}
                ),
                build=partial(self._build_trial, number),
                prepare=partial(trial._begin_a_trial, number, config.starts.count),
                refresh=Refresh(config.refresh_every, trial._refresh_a_trial, last=True),
                loss=trial.loss,
                measure=trial.measure,
            )
            for number, name in enumerate(names)
        ]

    def _floor(self, workspace: Workspace) -> StepResult:
        return kmeans_floor(workspace, self.stage_names[0], self.clusters, self.config.kmeans_restarts)

    def labels_used(self) -> str:
        """None is learnt from; the log scores clusters by them."""
        return "none"

    def build(self, make: Makers, results: Results, seed: int) -> nn.Module:
        """The clustering network of an autoencoder that is not pretrained."""
        return self._clustering(cast(AutoEncoder, self._build_autoencoder(make, results, None, seed)), results)

    def _build_autoencoder(
        self, make: Makers, results: Results, trained: Callable[[str], nn.Module] | None, seed: int
    ) -> nn.Module:
        network = self.config.network
        inputs = self._input_size(results)
        return seeded(seed, lambda: AutoEncoder(inputs, network.hidden, network.code, network.colour))

    def _build_from_pretrained(
        self, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int
    ) -> nn.Module:
        network = self._clustering(cast(AutoEncoder, trained(self.stage_names[0])), results)
        trials = [cast(TrialNetwork, trained(name)) for name in self._trial_names]
        if trials:
            best = min(range(len(trials)), key=lambda number: float(trials[number].within))
            length = 2 if self.config.neighbours.count else 1  # of a code that is the sum of two alike
            network.centres.data.copy_(length * trials[best].optima[best])
        return network

    def _build_trial(
        self, number: int, make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int
    ) -> nn.Module:
        """Of the start `number`; the first one's stage finds the optima for all."""
        pretrained = cast(AutoEncoder, trained(self.stage_names[0]))
        network = TrialNetwork(pretrained, self.clusters, self._count(results), self.config.starts.count)
        if number:
            network.optima.copy_(cast(TrialNetwork, trained(self._trial_names[0])).optima)
        return network

    def _clustering(self, pretrained: AutoEncoder, results: Results) -> ClusteringNetwork:
        return ClusteringNetwork(pretrained, self.clusters, self._count(results), self.config.neighbours.count)

    def _input_size(self, results: Results) -> int:
        """How many numbers a sample has."""
        channels = 3 if self.config.network.colour else 1
        return self.info.vector_size or channels * self.info.image_size**2

    def _count(self, results: Results) -> int:
        """How many samples are clustered."""
        return self.info.train_images

    def _inputs(self, network: nn.Module, batch: Batch) -> Tensor:
        """What the network sees of a batch's samples [B, I]."""
        assert isinstance(network, AutoEncoder | ClusteringNetwork)
        return network.inputs(batch.images)

    def _companions(self, network: ClusteringNetwork, batch: Batch) -> Tensor:
        """What it sees of their neighbours [B * k, I]."""
        assert batch.companions is not None
        return network.inputs(batch.companions.flatten(0, 1))

    def _scale_inputs(self, network: nn.Module, samples: StageSamples) -> None:
        """Set how inputs are scaled, from all samples without changes."""
        if self.config.network.scaling == "none":
            return
        assert isinstance(network, AutoEncoder)
        inputs = samples.outputs(lambda batch: {"inputs": self._inputs(network, batch)})["inputs"]
        network.scale_inputs(self.config.network.scaling, inputs)

    def _reconstruction(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The mean squared error of the changed image, which is also the input."""
        assert isinstance(network, AutoEncoder)
        inputs = self._inputs(network, batch)
        return {"reconstruction": batch.mean(_squared_error(network.decoder(network.encoder(inputs)), inputs))}

    def _begin_at_the_start(self, network: nn.Module, samples: StageSamples) -> None:
        """Put the centres at k-means' lowest optimum, unless the trials have chosen one, and scale the codes."""
        assert isinstance(network, ClusteringNetwork)
        if not self._trial_names:
            codes = sum_of_codes(self._encoded(network, samples), None)
            kmeans = KMeans(self.clusters, n_init=self.config.kmeans_restarts, random_state=samples.seed)
            found = samples.on_one_rank(lambda: {"centres": kmeans.fit(codes).cluster_centers_})
            network.centres.copy_(torch.from_numpy(found["centres"]))
        self._scale_codes(network, samples)

    def _begin_a_trial(self, number: int, most: int, network: nn.Module, samples: StageSamples) -> None:
        """Put the centres at the optimum of this number, where k-means has found so many, and scale the codes."""
        assert isinstance(network, TrialNetwork)
        if number == 0:
            codes = sum_of_codes(self._encoded(network, samples), None)
            wanted = (self.clusters, self.config.kmeans_restarts, samples.seed, most)
            found = torch.from_numpy(samples.on_one_rank(lambda: {"optima": kmeans_optima(codes, *wanted)})["optima"])
            network.optima[: len(found)].copy_(found)
        if network.optima[number].isfinite().all():
            network.centres.copy_(network.optima[number])
            self._scale_codes(network, samples)

    def _scale_codes(self, network: ClusteringNetwork, samples: StageSamples) -> None:
        """Bring the codes' distance from their nearest centre to `spread`, where it is asked for."""
        if self.config.spread is None:
            return
        codes, centres = sum_of_codes(self._encoded(network, samples), None), network.centres.numpy(force=True)
        found = float(samples.on_one_rank(lambda: {"spread": np.array(spread_of(codes, centres))})["spread"])
        if found > 0:
            network.scale_codes(self.config.spread / found)

    def _refresh(
        self, network: nn.Module, samples: StageSamples, arrays: Mapping[str, np.ndarray], progress: Progress
    ) -> Refreshed:
        """Codes of all samples, their neighbours, the weights, the target and the labels; ends where these stand still.

        One rank computes all but the codes, so that processors that round differently do not part.
        """
        assert isinstance(network, ClusteringNetwork)
        encoded = self._encoded(network, samples)
        centres, weights = network.centres.detach().cpu(), network.weights.cpu()
        before = arrays.get(NEIGHBOURS)
        found = samples.on_one_rank(lambda: update(self.config, centres, weights, encoded, before))
        network.weights.copy_(torch.from_numpy(found.pop("weights")))
        codes = found.pop("codes")
        if self.config.neighbours.count:
            network.known_codes.copy_(torch.from_numpy(codes))
            network.known_beside.copy_(torch.from_numpy(encoded["beside"]))
        labels = found["label"]
        changed = float((labels != arrays["label"]).mean()) if "label" in arrays else 1.0
        values = {"changed": changed} | scores(labels, samples.labels) | inter_cluster_variance(codes, labels)
        if np.isfinite(within := float(found.pop("within"))):
            values["within"] = within
        still = "label" in arrays and changed < self.config.tolerance
        return Refreshed(found, values, done=still, reason="the labels stand still")

    def _refresh_a_trial(
        self, network: nn.Module, samples: StageSamples, arrays: Mapping[str, np.ndarray], progress: Progress
    ) -> Refreshed:
        """As _refresh; notes the share of variance within clusters. Ends at once without a start."""
        assert isinstance(network, TrialNetwork)
        if not network.centres.any():
            return Refreshed(done=True, reason="k-means has found no further optimum")
        found = self._refresh(network, samples, arrays, progress)
        network.within.fill_(found.values.get("within", torch.inf))
        return found

    def _encoded(self, network: ClusteringNetwork, samples: StageSamples) -> dict[str, np.ndarray]:
        """What the encoders give for all samples, [N, D]: own, and where codes have neighbours beside."""
        encoded = samples.outputs(lambda batch: network.encoded(self._inputs(network, batch)))
        if not all(np.isfinite(codes).all() for codes in encoded.values()):
            raise UserError("the codes are not finite any more: lower the learning rate, or scale the samples")
        return encoded

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq 12: the reconstruction and lambda L_c."""
        assert isinstance(network, ClusteringNetwork)
        config = self.config
        inputs = self._inputs(network, batch)
        codes = self._codes(network, inputs, batch)
        if config.weighting.enabled and config.weighting.scope == "batch":
            self._update_weights(network, gather(codes.detach()), gather(batch.weight) > 0)
        logs = log_assignments(config, codes, network.centres, network.weights)
        if config.formulation == "idec":
            apart = equations.divergence(batch.columns["target"], logs)
        else:
            apart = equations.cross_entropy(batch.columns["target"], logs, config.normalise_q_in_loss)
        error = _squared_error(network.reconstruct(codes), inputs) if config.reconstruct else None
        terms = {"clustering": config.clustering_weight * batch.mean(apart)}
        return Losses(terms if error is None else {"reconstruction": batch.mean(error)} | terms)

    def _codes(self, network: ClusteringNetwork, inputs: Tensor, batch: Batch) -> Tensor:
        """f [B, D], Eq 9, of a step's samples."""
        own, neighbours = network.own_codes(inputs), self.config.neighbours
        if not neighbours.count:
            return own
        if neighbours.scope == "all":
            beside = network.beside(self._companions(network, batch))
            return own + beside.unflatten(0, (len(own), neighbours.count)).amax(1)
        # Every rank encodes the whole batch, so that gradients reach neighbours on other ranks.
        beside = network.beside(gather(inputs))
        codes = gather(own.detach()) + beside.detach()
        rows = own_rows(nearest_in_batch(codes, gather(batch.weight) > 0, neighbours.count))
        return own + beside[rows].amax(1)

    @torch.no_grad()
    def _update_weights(self, network: ClusteringNetwork, codes: Tensor, valid: Tensor) -> None:
        """Eq 15 over the global batch: codes [R * B, D] and which of them count."""
        assignments = log_assignments(self.config, codes[valid], network.centres, network.weights).exp()
        spreads = equations.spreads(assignments, codes[valid], network.centres, self.config.weighting.alpha)
        network.weights.copy_(equations.feature_weights(spreads))

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """q of new samples, normalised; the largest is their cluster (Eq 14)."""
        return Prediction(self.assign_new(network, images)[1].log_softmax(1))

    def assign_new(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, D] and log q [B, Q] of new samples, whose neighbours are among the training samples."""
        assert isinstance(network, ClusteringNetwork)
        codes = network.codes_of_new(network.inputs(images))
        return codes, log_assignments(self.config, codes, network.centres, network.weights)

    def assign_all(self, network: ClusteringNetwork, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [N, D] and log q [N, Q] of the training samples, by the neighbours that they have among each other."""
        encoded = {name: output.cpu().numpy() for name, output in network.encoded(inputs).items()}
        count = self.config.neighbours.count
        neighbours = nearest_of_all(network.known_codes.cpu().numpy(), count) if count else None
        codes = torch.from_numpy(sum_of_codes(encoded, neighbours)).to(inputs.device)
        return codes, log_assignments(self.config, codes, network.centres, network.weights)

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The cluster of each sample."""
        return {"cluster": self.assign_new(network, batch.images)[1].argmax(1)}

    def score(self, measured: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Accuracy under the best matching of clusters and classes, and normalised mutual information."""
        return scores(measured["cluster"], labels)

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """The codes."""
        return self.assign_new(network, images)[0]

    def pictures(self, network: nn.Module, batch: Batch) -> Mapping[str, np.ndarray]:
        """The weights [Q, D] and the centres [Q, D]."""
        assert isinstance(network, ClusteringNetwork)
        return {"weights": network.weights.cpu().numpy(), "centres": network.centres.detach().cpu().numpy()}

    def search_space(self) -> Mapping[str, Any]:
        """What the paper fixes without a study: T, lambda and k."""
        return {
            "refresh_every": [35, 70, 140, 280, 560],
            "clustering_weight": {"low": 0.01, "high": 1.0, "log": True},
            "neighbours.count": [1, 2, 3, 5, 10],
        }


class Idec(Edcwrn):
    """Improved deep embedded clustering."""

    Config = IdecConfig


class Dec(Edcwrn):
    """Deep embedded clustering."""

    Config = DecConfig


def _squared_error(reconstructed: Tensor, inputs: Tensor) -> Tensor:
    """Of each sample [B], the mean over its inputs."""
    return (reconstructed - inputs).square().mean(1)
