"""The Siamese network of the pseudo-labels (Eq 10-11) as stages of training, and the embeddings that come of it.

Two networks at the same time. One does without the held-out trusted images, so that tau* is chosen on images it has not
seen; the other, which gives the labels, learns from all of them (reading: a class may have no more than two or three
trusted tracks, too few to do without one for good).

Letters in shapes: N trusted samples that a network trains on, L trusted samples, U clustered ones, D dimensions of an
embedding, G samples of a global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor, nn

from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.data.order import divide
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.config import PseudoLabelsConfig
from moe_dist.methods.dfcp.views import Views
from moe_dist.methods.phases import (
    Phase,
    Progress,
    Results,
    SideBySide,
    Stage,
    Step,
    StepResult,
    TaskContext,
    Workspace,
)
from moe_dist.models.experts import seeded
from moe_dist.models.makers import Makers
from moe_dist.models.siamese import SiameseConfig, balanced_batch, embed, pair_loss, siamese_network
from moe_dist.settings.schema import settings_of
from moe_dist.settings.training import OptimiserConfig, ScheduleConfig

FOR_THRESHOLD, FOR_LABELS = "siamese_threshold", "siamese_labels"


def siamese_phases(config: PseudoLabelsConfig, classes: int) -> tuple[Phase, ...]:
    """What is held out, both networks, and the embeddings of trusted and clustered images."""
    return (
        Step(
            "held_out",
            "trusted images held out for the threshold",
            partial(_hold_out, config.held_out),
            {"held_out": config.held_out},
        ),
        SideBySide(
            (
                _stage(FOR_THRESHOLD, config, classes, lambda results: results["held_out"].arrays["training"]),
                _stage(FOR_LABELS, config, classes, lambda results: results["split"].arrays["trusted"]),
            )
        ),
        Step("siamese", "embeddings by the Siamese networks", _embeddings, {}),
    )


def _hold_out(fraction: float, workspace: Workspace) -> StepResult:
    """Hold a fraction of the trusted images out ([L] bool); the others' sample numbers are the first network's."""
    split = workspace.results["split"].arrays
    trusted = split["trusted"]
    training, held = divide(workspace.labels[trusted], split["tracks"], fraction, workspace.seed + 2)
    held_out = np.zeros(len(trusted), bool)
    held_out[held] = True
    return StepResult(
        {"trusted": len(trusted), "held_out": len(held)}, {"held_out": held_out, "training": trusted[training]}
    )


def _stage(name: str, config: PseudoLabelsConfig, classes: int, samples_of: Callable[[Results], np.ndarray]) -> Stage:
    """Training on the pairs of class-balanced batches of some of the trusted samples: Adam under a cosine."""
    siamese = config.siamese

    def training_set(results: Results, labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        chosen = samples_of(results)
        _require_pairs(labels[chosen])
        return TrainingSet(chosen, labels[chosen])

    def build(make: Makers, results: Results, trained: Callable[[str], nn.Module], seed: int) -> nn.Module:
        return seeded(seed, lambda: siamese_network(siamese))

    def loss(network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq 11 over all pairs of the batch."""
        valid = batch.weight > 0
        pairs = pair_loss(
            network(batch.images[valid]).float(), batch.labels[valid], siamese.margin, siamese.balance_pairs
        )
        return {"pairs": pairs}

    return Stage(
        name,
        min(siamese.classes_per_batch, classes) * siamese.images_per_class,
        {
            prefix: OptimiserConfig(kind="adam", learning_rate=rate, weight_decay=siamese.weight_decay)
            for prefix, rate in (("", siamese.learning_rate), ("trunk.", siamese.trunk_learning_rate))
        },
        epochs=siamese.epochs,
        schedule=ScheduleConfig(kind="cosine"),
        rate_by="step",
        augment=config.augment,
        order=partial(balanced_epoch, siamese),
        replicated=True,  # a pair may lie across two shares; and batch normalisation then sees one batch on any workers
        validated=False,
        title="Siamese networks on trusted pairs",
        build=build,
        settings={"siamese": settings_of(siamese), "augment": settings_of(config.augment)},
        training_set=training_set,
        loss=loss,
    )


def _require_pairs(labels: np.ndarray) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise UserError(
            "trusted: pairs need two trusted classes and two images of one; raise trusted.fraction, or label more"
        )


def balanced_epoch(config: SiameseConfig, labels: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Class-balanced batches [steps, G], -1 where a batch has fewer images: as many as it takes to draw N images.

    labels [N].
    """
    classes = min(config.classes_per_batch, len(np.unique(labels)))
    steps = math.ceil(len(labels) / (classes * config.images_per_class))
    rows = np.full((steps, batch_size), -1)
    random = np.random.default_rng([seed, epoch])
    for row in rows:
        batch = balanced_batch(labels, config.classes_per_batch, config.images_per_class, random)
        row[: len(batch)] = batch
    return rows


def _embeddings(workspace: Workspace) -> StepResult:
    """Embeddings of trusted [L, D] and clustered [U, D] images, and those [L, D] that tau* is chosen on."""
    parts, held = workspace.results["split"].arrays, workspace.results["held_out"]
    trusted, clustered = parts["trusted"], parts["clustered"]
    views = Views(workspace.images, workspace.data, workspace.seed)
    tasks = [
        (workspace.trained(FOR_THRESHOLD), trusted),
        (workspace.trained(FOR_LABELS), np.concatenate([trusted, clustered])),
    ]
    threshold, embeddings = workspace.run_tasks(_embed, tasks, views)
    arrays = {
        "trusted": embeddings[: len(trusted)],
        "clustered": embeddings[len(trusted) :],
        "threshold": threshold,
        "held_out": held.arrays["held_out"],
    }
    return StepResult(dict(held.values), arrays)


def _embed(views: Views, task: tuple[nn.Module, np.ndarray], context: TaskContext) -> np.ndarray:
    """The embeddings [n, D] of samples by a network."""
    network, samples = task
    return embed(network.to(context.device), views.batches(samples))
