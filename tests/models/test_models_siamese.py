"""models/siamese.py: the losses against Eq 11 pair by pair, the network, balanced batches and embeddings."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moe_dist.errors import UserError
from moe_dist.models.siamese import (
    Siamese,
    SiameseConfig,
    balanced_batch,
    contrastive_loss,
    embed,
    pair_loss,
    siamese_network,
)
from moe_dist.vision import timm
from tests.reference import dfcp as reference


def test_contrastive_loss_by_hand():
    """Margin 1: a similar pair 0.6 apart costs 0.18; dissimilar ones cost 0.4^2 / 2 = 0.08 at 0.6 and 0 beyond 1."""
    distance, dissimilar = torch.tensor([0.6, 0.6, 1.5]), torch.tensor([False, True, True])
    torch.testing.assert_close(contrastive_loss(distance, dissimilar, 1.0), torch.tensor([0.18, 0.08, 0.0]))


@pytest.mark.parametrize("balance", [False, True])
def test_pair_loss_follows_eq_11_over_all_pairs(balance):
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(7, 3)), np.array([0, 0, 1, 2, 1, 0, 3])
    losses = {True: [], False: []}
    for p in range(7):
        for q in range(p + 1, 7):
            dissimilar = bool(labels[p] != labels[q])
            distance = math.dist(embeddings[p], embeddings[q])
            losses[dissimilar].append(reference.contrastive_loss(distance, dissimilar, margin=2.0))
    if balance:
        within_margin = [loss for loss in losses[True] if loss > 0]
        assert 0 < len(within_margin) < len(losses[True])
        expected = np.mean(within_margin) + np.mean(losses[False])
    else:
        expected = np.mean(losses[True] + losses[False])
    ours = pair_loss(torch.from_numpy(embeddings), torch.from_numpy(labels), margin=2.0, balance=balance)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_of_one_class_has_no_push():
    """A single class leaves only the pull: one similar pair 2 apart costs 2."""
    embeddings = torch.tensor([[0.0], [2.0]])
    assert pair_loss(embeddings, torch.tensor([4, 4]), margin=1.0, balance=True).item() == pytest.approx(2)


def test_coinciding_images_leave_finite_gradients():
    embeddings = torch.zeros(3, 2, requires_grad=True)
    pair_loss(embeddings, torch.tensor([0, 0, 1]), margin=1.0, balance=True).backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("side", [32, 48, 64])
def test_embeddings_lie_on_the_unit_sphere(side):
    network = Siamese(dimensions=12, channels=(4, 8, 8)).eval()
    embeddings = network(torch.randn(3, 3, side, side))
    assert embeddings.shape == (3, 12)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_lighting_does_not_move_an_embedding():
    """Brightness and contrast are a shift and a factor of the whole image; the variance's epsilon alone remains."""
    network = Siamese(dimensions=12, channels=(4, 8, 8)).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images), network(0.5 * images + 0.3), rtol=0, atol=1e-4)


def test_balanced_batch_takes_as_many_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [20, 10, 2, 1])
    for seed in range(20):
        batch = balanced_batch(labels, classes_per_batch=3, images_per_class=4, random=np.random.default_rng(seed))
        classes, counts = np.unique(labels[batch], return_counts=True)
        assert len(classes) == 3 and len(set(batch.tolist())) == len(batch)
        assert counts.tolist() == [min(4, (labels == label).sum()) for label in classes]
        assert counts.max() > 1


def test_embed_flattens_maps_in_eval_mode():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Dropout(0.5))
    batches = list(torch.randn(5, 3, 4, 4).split(2))
    embeddings = embed(network, batches)
    assert embeddings.shape == (5, 2 * 4 * 4) and embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, embed(network, batches))


def test_a_pretrained_trunk_starts_from_its_weights_and_gives_unit_embeddings(tmp_path):
    published = timm().create_model("test_resnet")
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    config = SiameseConfig(
        backbone="timm/test_resnet", weights=str(tmp_path / "weights.safetensors"), image_size=64, dimensions=5
    )
    network = siamese_network(config).eval()
    for name, value in published.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(network.state_dict()[f"trunk.{name}"], value), name
    with torch.inference_mode():
        embeddings = network(torch.rand(3, 3, 24, 24))
    assert embeddings.shape == (3, 5)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_a_trunk_that_cannot_be_had_is_told():
    with pytest.raises(UserError, match="'timm/test_resnt' is no network of timm's; try timm/test_resnet"):
        siamese_network(SiameseConfig(backbone="timm/test_resnt", weights=None))
