"""The sparse mixture as a method: its terms, its prediction and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.engine.optimisers import choose_optimisers
from moe_dist.errors import UserError
from moe_dist.methods.baselines.sparse_moe import SparseMoe, SparseMoeConfig, SparseNetwork
from moe_dist.methods.phases import Progress
from moe_dist.settings.training import OptimiserConfig
from tests.reference import sparse_moe as reference

CLASSES, SIDE, IMAGES, EXPERTS = 3, 8, 12, 4
PROGRESS = Progress("sparse", 0, 1, 1)


def method(image_size: int = SIDE, **changes: Any) -> SparseMoe:
    """Four experts on a 2x2 map."""
    config = SparseMoeConfig.model_validate({"trunk": [4, 6], "experts": EXPERTS, "hidden": 5} | changes)
    return SparseMoe(config, DatasetInfo(CLASSES, ("a", "b", "c"), image_size, IMAGES))


def network_of(sparse: SparseMoe) -> SparseNetwork:
    network = sparse.build(IN_ONE_PROCESS, {}, 7)
    assert isinstance(network, SparseNetwork)
    return network


def batch(valid: int = IMAGES) -> Batch:
    """Random images, the ones after the first `valid` padding."""
    images = torch.rand(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    weight = (torch.arange(IMAGES) < valid) / valid
    return Batch(images, torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES), weight)


def test_terms_are_the_mean_cross_entropy_of_valid_images_and_the_weighted_balance() -> None:
    sparse = method(balance=0.5)
    network = network_of(sparse)
    whole = batch(valid=9)
    terms = sparse.loss(network, whole, PROGRESS)
    logits, balance = network(whole.images)
    assert terms.keys() == {"cross_entropy", "balance"}
    torch.testing.assert_close(terms["cross_entropy"], functional.cross_entropy(logits[:9], whole.labels[:9]))
    torch.testing.assert_close(terms["balance"], 0.5 * balance)


def test_a_micro_batch_weighs_as_much_as_its_valid_images() -> None:
    """10 of 12 images are valid; of every third one from the first on 4 are, of the two other parts 3."""
    sparse = method(balance=1.0)
    network = network_of(sparse)
    for part, share in zip(batch(valid=10).micro_batches(3), (0.4, 0.3, 0.3), strict=True):
        _, balance = network(part.images)
        torch.testing.assert_close(sparse.loss(network, part, PROGRESS)["balance"], share * balance)


@pytest.mark.parametrize("top_k", [1, 2])
def test_prediction_tells_where_the_tokens_of_an_image_went(top_k: int) -> None:
    sparse = method(top_k=top_k)
    network = network_of(sparse).eval()
    with torch.no_grad():
        prediction = sparse.predict(network, batch().images)
        tokens = network.tokens(batch().images)
        logits = (tokens @ network.experts.gate.weight.T).numpy()
    torch.testing.assert_close(prediction.log_probs.exp().sum(1), torch.ones(IMAGES))
    assert tokens.shape == (IMAGES, 4, 6) and set(prediction.gates) == {""}
    for image in range(IMAGES):
        chosen = reference.choices(logits[image], top_k)
        weights = reference.weights(reference.probabilities(logits[image]), chosen, np.ones((4, top_k), dtype=bool))
        load = np.zeros(EXPERTS)
        for token in range(4):
            for rank in range(top_k):
                load[chosen[token][rank]] += weights[token, rank] / weights.sum()
        np.testing.assert_allclose(prediction.gates[""][image], load, atol=1e-5)


def test_a_prediction_does_not_depend_on_the_other_images() -> None:
    """Without a capacity no token takes another's place."""
    sparse = method(capacity_factor=0.25)
    network = network_of(sparse).eval()
    with torch.no_grad():
        together = sparse.predict(network, batch().images).log_probs
        alone = [sparse.predict(network, image[None]).log_probs for image in batch().images]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_gate_has_an_optimiser_of_its_own() -> None:
    gate = OptimiserConfig(kind="sgd", learning_rate=0.5)
    sparse = method(gate_optimiser=gate.model_dump())
    names = [name for name, _ in network_of(sparse).named_parameters()]
    chosen = choose_optimisers(names, sparse.stages()[0].optimisers)
    assert chosen.keys() == set(names)
    assert [name for name in names if chosen[name] == gate] == ["experts.gate.weight"]


def test_images_too_small_for_the_trunk_are_refused() -> None:
    with pytest.raises(UserError, match=r"image_size = 8: the 4 poolings .* use 16 or more, or a shorter trunk"):
        method(trunk=[4, 4, 4, 4]).build(IN_ONE_PROCESS, {}, 0)


@pytest.mark.parametrize("wrong", [{"top_k": 3}, {"experts": 1}, {"capacity_factor": 0}, {"trunk": []}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        method(**wrong)
