"""methods/dfcp/siamese_stages.py: the Siamese networks' stages on images that are easy to tell apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from moe_dist.data.batch import TrainingSet
from moe_dist.data.image.crops import RandomCrop
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.config import PseudoLabelsConfig
from moe_dist.methods.dfcp.siamese_stages import FOR_LABELS, FOR_THRESHOLD, balanced_epoch, siamese_phases
from moe_dist.methods.phases import Progress, SideBySide, Stage, StepResult
from moe_dist.models.siamese import SiameseConfig, embed
from moe_dist.settings.data import DataConfig

SIAMESE = SiameseConfig(dimensions=8, channels=(4, 8, 8), epochs=6, images_per_class=6)
DATA = DataConfig(image_size=32)


class Striped:
    """Noisy 32-pixel images of three classes: vertical, horizontal and no stripes; `count` of each."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        stripes = np.tile([40, 40, 200, 200], 8)
        patterns = [np.tile(stripes, (32, 1)), np.tile(stripes, (32, 1)).T, np.full((32, 32), 120)]
        images = np.stack([pattern for pattern in patterns for _ in range(count)])[:, None].repeat(3, axis=1)
        self.pixels = torch.from_numpy((images + random.normal(0, 30, images.shape)).clip(0, 255).astype(np.uint8))
        self.labels = np.repeat(np.arange(3), count)

    def __len__(self) -> int:
        return len(self.pixels)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> torch.Tensor:
        return self.pixels[samples]

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples), bool)


def stages(config: SiameseConfig = SIAMESE) -> tuple[Stage, Stage]:
    """The network for the threshold and the one for the labels."""
    _, both, _ = siamese_phases(PseudoLabelsConfig(siamese=config), classes=3)
    assert isinstance(both, SideBySide)
    threshold, labels = both.stages
    return threshold, labels


def trained(stage: Stage, images: Striped, seed: int) -> tuple[nn.Module, list[float]]:
    """The stage's network after plain training on all images at a constant rate, and each epoch's mean loss."""
    assert stage.build is not None and stage.loss is not None and stage.epochs is not None
    network = stage.build(IN_ONE_PROCESS, {}, unknown, seed).train()
    training_set = TrainingSet(np.arange(len(images)), images.labels)
    stream = Stream(
        images, training_set, DATA, seed=seed, global_batch=stage.batch_size, rank=0, ranks=1, order=stage.order
    )
    optimiser = torch.optim.Adam(network.parameters(), SIAMESE.learning_rate)
    curve = []
    for epoch in range(stage.epochs):
        losses = []
        for batch in stream.epoch():
            loss = stage.loss(network, batch, Progress(stage.name, epoch, stage.epochs, 1))["pairs"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            stream.advance()
            losses.append(loss.item())
        curve.append(float(np.mean(losses)))
    return network, curve


def unknown(stage: str) -> nn.Module:
    raise AssertionError("the Siamese network is built anew")


def test_training_separates_images_it_has_not_seen() -> None:
    """After training, every unseen image is nearer to all unseen ones of its class than to any other."""
    network, curve = trained(stages()[1], Striped(12, seed=0), seed=0)
    assert len(curve) == 6 and curve[-1] < curve[0]
    unseen = Striped(5, seed=1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (DATA.mean, DATA.std))
    embeddings = embed(network, [(part / 255 - mean) / std for part in unseen.pixels.split(4)])
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    same = unseen.labels[:, None] == unseen.labels[None]
    assert distances[same].max() < distances[~same].min()


def test_training_is_fixed_by_its_seed_and_leaves_the_generator_alone() -> None:
    images, stage = Striped(4, seed=0), stages(SIAMESE.model_copy(update={"epochs": 2}))[1]
    before = torch.random.get_rng_state()
    (first, _), (again, _) = (trained(stage, images, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other, _ = trained(stage, images, seed=4)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]], ids=["one class", "no class twice"])
def test_trusted_images_without_both_kinds_of_pairs_are_refused(labels: list[int]) -> None:
    training_set = stages()[1].training_set
    assert training_set is not None
    results = {"split": StepResult({}, {"trusted": np.arange(3)})}
    with pytest.raises(UserError, match="trusted: pairs need two trusted classes and two images of one"):
        training_set(results, np.array(labels), np.arange(3))


def test_one_network_is_trained_without_the_held_out_images_and_the_other_on_all() -> None:
    threshold, labels = stages()
    assert (threshold.name, labels.name) == (FOR_THRESHOLD, FOR_LABELS)
    results = {
        "split": StepResult({}, {"trusted": np.array([1, 2, 4, 5, 7])}),
        "held_out": StepResult({}, {"training": np.array([1, 2, 5])}),
    }
    classes = np.array([9, 0, 0, 9, 1, 1, 9, 1])
    for stage, samples, seen in ((threshold, [1, 2, 5], [0, 0, 1]), (labels, [1, 2, 4, 5, 7], [0, 0, 1, 1, 1])):
        assert stage.training_set is not None
        found = stage.training_set(results, classes, np.arange(8))
        assert found.samples.tolist() == samples and found.labels.tolist() == seen


def test_an_epoch_of_balanced_batches_draws_as_many_images_as_there_are() -> None:
    """18 images in batches of 2 of 3 classes x 2 images: 5 steps; a class of one image leaves a place empty."""
    config = SiameseConfig(classes_per_batch=2, images_per_class=2)
    labels = np.repeat([0, 1, 2], [10, 7, 1])
    epoch = balanced_epoch(config, labels, seed=0, epoch=0, batch_size=4)
    assert epoch.shape == (5, 4)
    for row in epoch:
        drawn = row[row >= 0]
        classes, counts = np.unique(labels[drawn], return_counts=True)
        assert len(classes) == 2 and len(set(drawn.tolist())) == len(drawn)
        assert counts.tolist() == [min(2, (labels == label).sum()) for label in classes]
    assert np.array_equal(epoch, balanced_epoch(config, labels, seed=0, epoch=0, batch_size=4))
    assert not np.array_equal(epoch, balanced_epoch(config, labels, seed=0, epoch=1, batch_size=4))
