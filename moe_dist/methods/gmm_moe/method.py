"""Multi-scale GMM-MoE: modules of experts at several taps of a backbone, trained in two stages.

1. frozen: the backbone stands still, its batch statistics too; its maps are kept (kept.py).
2. whole: everything is trained, and w_r grows.

Readings, beside those of models/gmm_moe.py: the plateau and the early stop watch the validation loss (the text says
accuracy, which moves in steps); stage two begins with the last epoch of stage one; the hidden layer of the head has a
ReLU. Letters in shapes: B samples of a batch, C classes, E experts, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.gmm_moe.config import GmmMoeConfig
from moe_dist.methods.gmm_moe.kept import KeptMaps, backbone_digest, in_chunks
from moe_dist.methods.phases import Losses, Phase, Progress, Stage, StageSamples, StepResult
from moe_dist.models.experts import seeded
from moe_dist.models.makers import ExpertMaps, Makers
from moe_dist.models.multi_scale import MultiScaleNetwork, Outputs, build_multi_scale
from moe_dist.models.tapped import Tapped, tap_shapes, tapped
from moe_dist.settings.augment import AugmentConfig

FROZEN, WHOLE = "frozen", "whole"
WITH_EXPERTS = ("gmm", "softmax", "one_expert", "one_wide_expert")
BACKBONE_SEED = 7_919
"""Added to the seed, so that a random backbone's numbers are not the modules'."""
INITIAL_IMAGES = 64
"""Images whose features the gates are initialised from."""


class GmmMoe(Method):
    """Experts at several scales of a backbone, gated by a Gaussian mixture's posterior."""

    Config = GmmMoeConfig
    config: GmmMoeConfig
    heeds_top_k = True
    mixes_labels = True

    def __init__(self, config: GmmMoeConfig, info: DatasetInfo) -> None:
        """Raise UserError where the backbone or a tap does not exist, or a tap has no room for its module."""
        super().__init__(config, info)
        if config.frozen is None and config.whole is None:
            raise UserError("method gmm_moe: neither stage is asked for; leave frozen or whole at its default")
        paths = [tap.at for tap in config.taps]
        if len(set(paths)) < len(paths):
            raise UserError(f"method.taps: a tap is named twice among {', '.join(paths)}; a tap has one module")
        self._shapes = tap_shapes(config.backbone, paths, info.image_size)
        for tap, (channels, side) in zip(config.taps, self._shapes):
            if self.has_experts and tap.dim > channels:
                raise UserError(
                    f"method.taps: dim = {tap.dim} at {tap.at}, whose map has {channels} channels ({side} x {side} "
                    f"places); a projection has at most as many features: set dim to {channels} or less"
                )
        self._stage = ""
        self._kept: dict[str, KeptMaps] = {}

    @property
    def has_experts(self) -> bool:
        """Whether there are modules of experts at the taps."""
        return self.config.modules in WITH_EXPERTS

    def phases(self) -> Sequence[Phase]:
        """One or both stages; the first initialises the gates."""
        config = self.config
        stages: list[Stage] = []
        if config.frozen is not None:
            stages.append(config.frozen.stage(FROZEN, "training on the frozen backbone", ("backbone.",)))
        if config.whole is not None:
            stages.append(config.whole.stage(WHOLE, "training of the whole network"))
        return replace(stages[0], prepare=self._initialise), *stages[1:]

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The network on its pretrained backbone."""
        config, paths = self.config, [tap.at for tap in self.config.taps]
        backbone = seeded(seed + BACKBONE_SEED, lambda: tapped(config.backbone, paths, config.weights))
        return build_multi_scale(
            cast(Tapped, backbone),
            config.taps,
            self._shapes,
            config.modules,
            width=config.width,
            dropout=config.dropout,
            residual=config.residual_start,
            classes=self.info.classes,
            make_experts=make.experts,
            seed=seed,
        )

    def expert_costs(self) -> Sequence[float]:
        """Equal ones: the experts of a tap are alike. Of the tap with the fewest."""
        if not self.has_experts:
            return ()
        one = self.config.modules in ("one_expert", "one_wide_expert")
        return [1.0] * (1 if one else min(tap.experts for tap in self.config.taps))

    def set_training(self, network: nn.Module, stage: str) -> None:
        """In stage one the backbone keeps its batch statistics."""
        network.train()
        if stage == FROZEN:
            cast(MultiScaleNetwork, network).backbone.eval()
        else:
            self._kept.clear()
        self._stage = stage

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy with smoothed labels, and the modules' L_aux (Eq 15c)."""
        assert isinstance(network, MultiScaleNetwork)
        for module in network.mixtures.values():
            module.residual.fill_(self.residual(progress))
        outputs = self._outputs(network, batch, "train")
        logits, smoothing = outputs.logits.float(), self.config.label_smoothing
        terms = {
            "cross_entropy": batch.mean_over_labels(
                lambda labels: functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            )
        }
        auxiliary = network.auxiliary(outputs)
        if auxiliary is not None:
            terms["auxiliary"] = batch.mean(auxiliary)
        return Losses(terms, {name: batch.mean(value) for name, value in diagnostics(network, outputs).items()})

    def residual(self, progress: Progress) -> float:
        """w_r (Eq 14) in the epoch that is trained now."""
        config = self.config
        done = min(1.0, progress.epoch / config.anneal_epochs) if progress.stage == WHOLE else 0.0
        return config.residual_start + done * (config.residual_end - config.residual_start)

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Loss and top-1; in stage one from kept maps."""
        assert isinstance(network, MultiScaleNetwork)
        logits = self._outputs(network, batch, "validation").logits.float()
        loss = functional.cross_entropy(logits, batch.labels, reduction="none")
        return {"loss": loss, "top1": (logits.argmax(1) == batch.labels).float()}

    def _outputs(self, network: MultiScaleNetwork, batch: Batch, split: str) -> Outputs:
        """What the network gives for a batch; in stage one from the maps of its split, kept where they can be."""
        if self._stage != FROZEN or self.config.frozen is None:
            return network(batch.images)
        limit = self.config.keep_maps_gib
        if not limit or (split == "train" and self.config.frozen.augment != AugmentConfig()):
            return network.on_maps(in_chunks(network.backbone, batch.images))
        if split not in self._kept:
            backbone = network.backbone
            digest = backbone_digest(backbone, self.config.backbone, backbone.taps, batch.images.device)
            images = hashlib.sha256(f"{split} {self.info}".encode()).hexdigest()[:12]
            self._kept[split] = KeptMaps(self.cache / "maps" / digest if self.cache else None, limit, images)
        return network.on_maps(self._kept[split].maps(network.backbone, batch.images, batch.samples))

    def _initialise(self, network: nn.Module, samples: StageSamples) -> None:
        """Initialise every gate from its tap's features of real images, on the first rank, for all."""
        assert isinstance(network, MultiScaleNetwork)
        images = samples.first(min(INITIAL_IMAGES, len(samples.samples))).images

        def initialised() -> dict[str, np.ndarray]:
            for tap, maps in zip(network.backbone.taps, in_chunks(network.backbone, images)):
                if tap in network.mixtures:
                    network.mixtures[tap].initialise(maps)
            return {name: gate.detach().cpu().numpy() for name, gate in _gates(network).items()}

        found = samples.on_one_rank(initialised)
        for name, parameter in _gates(network).items():
            parameter.copy_(torch.from_numpy(found[name]))

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The softmax; gates: every module's mean responsibilities. `top_k` experts are computed at each place."""
        assert isinstance(network, MultiScaleNetwork)
        with network.routed(top_k):
            outputs = network(images)
        gates = {tap: mixed.gamma.mean((2, 3)) for tap, mixed in outputs.mixed.items()}
        return Prediction(outputs.logits.float().log_softmax(1), gates)

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """What the head sees."""
        return network(images).features

    def expert_maps(self, network: nn.Module, images: Tensor) -> ExpertMaps | None:
        """The fused map, as of one expert: where the network as a whole looks."""
        outputs: Outputs = network(images)
        return None if outputs.fused is None else ExpertMaps([outputs.fused], outputs.logits[:, None])

    def pictures(self, network: nn.Module, batch: Batch) -> Mapping[str, np.ndarray]:
        """Each place's largest responsibility [B, s, s] and whose it is, by tap (Figure 7)."""
        outputs: Outputs = network(batch.images)
        arrays = {}
        for number, mixed in enumerate(outputs.mixed.values()):
            largest, expert = mixed.gamma.max(1)
            arrays[f"responsibility_{number}"] = largest.cpu().numpy()
            arrays[f"expert_{number}"] = expert.to(torch.int16).cpu().numpy()
        return arrays

    def search_space(self) -> Mapping[str, Any]:
        """Both rates, and the head's dropout."""
        space: dict[str, Any] = {"dropout": {"low": 0.0, "high": 0.7}}
        if self.config.frozen is not None:
            space["frozen.learning_rate"] = {"low": 1e-5, "high": 1e-2, "log": True}
        if self.config.whole is not None:
            space["whole.learning_rate"] = {"low": 1e-6, "high": 1e-3, "log": True}
        return space

    def top_ks(self) -> Sequence[int]:
        """The job's, where there are experts to choose from."""
        return self.config.top_k if self.has_experts else ()


def diagnostics(network: MultiScaleNetwork, outputs: Outputs) -> dict[str, Tensor]:
    """What every module tells of its gate (GMMMoE.diagnostics), by tap, and the scales' weights."""
    told: dict[str, Tensor] = {}
    for tap, module in network.mixtures.items():
        told |= {f"{tap}/{name}": value for name, value in module.diagnostics(outputs.mixed[tap].gamma).items()}
    if network.fusion is not None:
        weights = network.fusion.weights.detach().clone()  # of this step, and not of the next
        told |= {f"{tap}/weight": weight for tap, weight in zip(network.backbone.taps, weights)}
    return told


def _gates(network: MultiScaleNetwork) -> dict[str, nn.Parameter]:
    """The parameters that initialisation sets, by name."""
    found: dict[str, nn.Parameter] = {}
    for tap, module in network.mixtures.items():
        found |= {f"{tap}/{name}": parameter for name, parameter in module.gate.named_parameters()}
    return found
