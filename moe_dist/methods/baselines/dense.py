"""The dense rival of Table 3: one published network for all classes, EfficientNet-B1 in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.data.batch import Batch
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.config import MethodConfig, unlike_pretraining
from moe_dist.methods.phases import Progress, Stage, StepResult
from moe_dist.models.backbones import classifier
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.models.resized import resized
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Count, Positive
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig, Weights


class DenseConfig(MethodConfig):
    """Table 2's dense model."""

    name: Literal["dense"] = "dense"
    backbone: str = "efficientnet_b1"
    """A network of torchvision's, or `timm/NAME`."""
    weights: Weights | None = "DEFAULT"
    """A name of pretrained weights, a .safetensors or .pth file of the whole network, or null for random ones."""
    image_size: Annotated[int, Field(ge=32)] | None = None
    """Side to which images are resized for the backbone; null keeps data.image_size."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.6
    optimiser: OptimiserConfig = OptimiserConfig(kind="adam", learning_rate=1e-3, weight_decay=1e-4)
    epochs: Count = 100
    batch_size: Count = 32
    schedule: ScheduleConfig = ScheduleConfig(kind="step", factor=0.1, step_epochs=30)
    augment: AugmentConfig = AugmentConfig()
    sampling: Sampling = "instance"
    clip_norm: Positive | None = None

    def notices_of(self, data: DataConfig) -> Sequence[str]:
        """A notice where images are not normalised as the pretrained weights expect."""
        return unlike_pretraining(self.backbone, self.weights, data)


class Dense(Method):
    """A published classifier under cross-entropy."""

    Config = DenseConfig
    mixes_labels = True
    config: DenseConfig

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The network with a new head for the dataset's classes."""
        config = self.config
        return seeded(
            seed,
            lambda: Resized(
                classifier(config.backbone, config.weights, self.info.classes, config.dropout), config.image_size
            ),
        )

    def phases(self) -> Sequence[Stage]:
        """One stage, all parameters."""
        config = self.config
        return (
            Stage(
                name="dense",
                batch_size=config.batch_size,
                optimisers={"": config.optimiser},
                epochs=config.epochs,
                schedule=config.schedule,
                augment=config.augment,
                clip_norm=config.clip_norm,
                sampling=config.sampling,
            ),
        )

    def search_space(self) -> Mapping[str, Any]:
        """Table 2's hyper-parameters."""
        return {
            "optimiser.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "optimiser.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
            "dropout": {"low": 0.0, "high": 0.7},
            "batch_size": [16, 32, 64],
        }

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Cross-entropy."""
        logits = network(batch.images).float()
        return {
            "cross_entropy": batch.mean_over_labels(
                lambda labels: functional.cross_entropy(logits, labels, reduction="none")
            )
        }

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The softmax of the network's logits."""
        return Prediction(functional.log_softmax(network(images).float(), dim=1))


class Resized(nn.Module):
    """A network behind a bilinear resize of its images to `side`."""

    def __init__(self, network: nn.Module, side: int | None) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S]."""
        return self.network(resized(images, self.side))
