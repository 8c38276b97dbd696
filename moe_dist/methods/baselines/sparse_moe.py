"""The sparse mixture of experts of the literature: tokens of a feature map, each sent to its first 1 or 2 experts.

The gate is that of Shazeer et al. 2017 without noise, one for all tokens; capacity and balancing loss are those of
GShard and the Switch Transformer. Under a DeepSpeed engine it is DeepSpeed's own MoE layer, which counts capacity and
balancing loss over the tokens of one micro-batch on one rank. The number of ranks therefore changes the training, as it
does in no other method, unless parallel.micro_batches is a multiple of it. Padding of a last batch has weight 0 in the
cross-entropy; in capacity and balancing loss its tokens count like all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.data.batch import Batch
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import Progress, Stage, StepResult
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.models.sparse import Routing, gate_logits, route
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.schema import Count, NonNegative, Positive
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig


class SparseMoeConfig(MethodConfig):
    """The trunk, the sparse layer and their training."""

    name: Literal["sparse_moe"] = "sparse_moe"
    trunk: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 128)
    """Filters of the trunk's convolutions, each followed by pooling; the last number is a token's features."""
    experts: Annotated[int, Field(ge=2)] = 8
    hidden: Count = 256
    """Hidden neurons of an expert."""
    top_k: Literal[1, 2] = 2
    """The number of experts a token is sent to."""
    capacity_factor: Positive | None = 1.25
    """In training an expert takes at most so many times an equal share of a rank's tokens; null: no limit."""
    balance: NonNegative = 0.01
    """Weight of the balancing loss."""
    optimiser: OptimiserConfig = OptimiserConfig(kind="adam", learning_rate=1e-3)
    gate_optimiser: OptimiserConfig = OptimiserConfig(kind="adam", learning_rate=1e-3)
    epochs: Count = 100
    batch_size: Count = 32
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine")
    augment: AugmentConfig = AugmentConfig()
    sampling: Sampling = "instance"
    clip_norm: Positive | None = 1.0


class SparseNetwork(nn.Module):
    """A convolutional trunk, a sparse layer on its map with a residual connection, pooling and a classifier.

    Letters in shapes: B samples of a batch, T tokens of an image, D features of a token, C classes, E experts.
    """

    def __init__(self, trunk: nn.Module, experts: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.trunk, self.experts, self.classifier = trunk, experts, classifier

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens [B, T, D] of images [B, 3, S, S]: the positions of the trunk's map."""
        return self.trunk(images).flatten(2).transpose(1, 2)

    def classify(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and the balancing loss [] of tokens [B, T, D]."""
        mixed, balance = self.experts(tokens.flatten(0, 1))
        return self.classifier((tokens + mixed.view_as(tokens)).mean(1)), balance

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and the balancing loss [] of images [B, 3, S, S]."""
        return self.classify(self.tokens(images))

    def image_gate(self, tokens: Tensor, top_k: int) -> Tensor:
        """Each expert's share [B, E] of the gate weights of an image's tokens [B, T, D]."""
        logits = gate_logits(cast(nn.Linear, self.experts.gate), tokens.flatten(0, 1))
        weights = route(logits, top_k).by_expert(logits.shape[1])
        image = weights.unflatten(0, tokens.shape[:2]).sum(1)
        return image / image.sum(1, keepdim=True)


class SparseMoe(Method):
    """A sparse layer on a convolutional trunk, trained by cross-entropy and the gate's balancing loss."""

    Config = SparseMoeConfig
    config: SparseMoeConfig
    looks_at_shares = True  # capacity and balancing loss are counted over the tokens of a rank's micro-batch

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The network, freshly initialised. Raises UserError where the images are too small for the trunk."""
        config, width, poolings = self.config, self.config.trunk[-1], len(self.config.trunk)
        if self.info.image_size >> poolings < 1:
            raise UserError(
                f"data.image_size = {self.info.image_size}: the {poolings} poolings of method.trunk leave no pixel; "
                f"use {1 << poolings} or more, or a shorter trunk"
            )
        return SparseNetwork(
            seeded(seed, lambda: _trunk(config.trunk)),
            make.sparse(
                lambda: nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, width)),
                Routing(width, config.experts, config.top_k, config.capacity_factor),
                seed,
            ),
            seeded(seed + 1, lambda: nn.Linear(width, self.info.classes)),
        )

    def phases(self) -> Sequence[Stage]:
        """One stage, end to end; the gate has an optimiser of its own."""
        config = self.config
        return (
            Stage(
                name="sparse",
                batch_size=config.batch_size,
                optimisers={"": config.optimiser, "experts.gate.": config.gate_optimiser},
                epochs=config.epochs,
                schedule=config.schedule,
                augment=config.augment,
                clip_norm=config.clip_norm,
                sampling=config.sampling,
            ),
        )

    def search_space(self) -> Mapping[str, Any]:
        """The rates of trunk and gate, the balancing loss's weight, k and the batch size."""
        return {
            "optimiser.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "gate_optimiser.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "balance": {"low": 1e-3, "high": 0.1, "log": True},
            "top_k": [1, 2],
            "batch_size": [16, 32, 64],
        }

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy and alpha times the balancing loss (Switch Transformer, Eq 4).

        The balancing loss of a rank or micro-batch is weighted like its images, so that the parts of a batch add up.
        """
        logits, balance = network(batch.images)
        losses = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        return {
            "cross_entropy": batch.mean(losses),
            "balance": self.config.balance * batch.mean(balance.expand_as(losses)),
        }

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The softmax of the logits, and each expert's share of an image's tokens; `top_k` is ignored."""
        assert isinstance(network, SparseNetwork)
        tokens = network.tokens(images)
        log_probs = functional.log_softmax(network.classify(tokens)[0].float(), dim=1)
        return Prediction(log_probs, {"": network.image_gate(tokens, self.config.top_k)})


def _trunk(filters: Sequence[int]) -> nn.Module:
    """3x3 convolutions, each followed by group normalisation (of one image, whatever its batch), ReLU and pooling."""
    layers: list[nn.Module] = []
    for channels, count in pairwise((3, *filters)):
        convolution = nn.Conv2d(channels, count, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(1, count), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)
