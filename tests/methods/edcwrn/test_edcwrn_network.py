"""The codes of EDCWRN (Eq 7 to 9) against their slow references, for training samples and new ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from moe_dist.methods.edcwrn.config import DecConfig, EdcwrnConfig, IdecConfig
from moe_dist.methods.edcwrn.network import AutoEncoder, ClusteringNetwork
from moe_dist.methods.edcwrn.update import log_assignments
from tests.reference import edcwrn as slow

NEIGHBOURS = 2


def network_and_samples() -> tuple[ClusteringNetwork, torch.Tensor]:
    """A network in double precision whose two encoders differ, and samples [9, 6]."""
    torch.manual_seed(0)
    network = ClusteringNetwork(AutoEncoder(6, [5, 4], 3, colour=False), clusters=2, samples=9, neighbours=NEIGHBOURS)
    assert network.neighbour_encoder is not None
    with torch.no_grad():
        for parameter in network.neighbour_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double(), torch.randn(9, 6, dtype=torch.float64)


def layers_of(encoder: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linear]


def test_a_code_is_the_samples_own_and_the_largest_of_its_neighbours() -> None:
    network, samples = network_and_samples()
    rows = np.array([[(row + 1) % 9, (row + 4) % 9] for row in range(9)])
    with torch.no_grad():
        own, beside = network.own_codes(samples), network.beside(samples)
        ours = (own + beside[rows].amax(1)).numpy()
    own_layers, beside_layers = layers_of(network.autoencoder.encoder), layers_of(network.neighbour_encoder)
    for row, sample in enumerate(samples.numpy()):
        neighbours = slow.neighbours_code([samples.numpy()[other] for other in rows[row]], beside_layers)
        np.testing.assert_allclose(ours[row], slow.encode(sample, own_layers) + neighbours, rtol=1e-12)


def test_a_new_sample_takes_its_neighbours_among_the_training_codes() -> None:
    """By Euclidean distance of its code, as its own neighbour, to the codes that are kept."""
    network, training = network_and_samples()
    new = torch.randn(4, 6, dtype=torch.float64)
    own_layers, beside_layers = layers_of(network.autoencoder.encoder), layers_of(network.neighbour_encoder)
    known = np.random.default_rng(0).normal(size=(9, 3))
    with torch.no_grad():
        network.known_codes.copy_(torch.from_numpy(known))
        network.known_beside.copy_(network.beside(training))
        ours = network.codes_of_new(new).numpy()
    for row, sample in enumerate(new.numpy()):
        alone = slow.encode(sample, own_layers) + slow.encode(sample, beside_layers)
        nearest = np.argsort([np.linalg.norm(alone - code) for code in known])[:NEIGHBOURS]
        neighbours = slow.neighbours_code([training.numpy()[other] for other in nearest], beside_layers)
        np.testing.assert_allclose(ours[row], slow.encode(sample, own_layers) + neighbours, rtol=1e-12)


def test_a_sample_that_is_its_own_neighbour_is_decoded_as_before() -> None:
    """The decoder's first layer is halved where codes are sums of two."""
    torch.manual_seed(0)
    pretrained, samples = AutoEncoder(6, [5, 4], 3, colour=False), torch.randn(9, 6)
    with torch.no_grad():
        before = pretrained.decoder(pretrained.encoder(samples))
        network = ClusteringNetwork(pretrained, clusters=2, samples=9, neighbours=NEIGHBOURS)
        after = network.reconstruct(network.own_codes(samples) + network.beside(samples))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("neighbours", [0, NEIGHBOURS])
def test_longer_codes_are_decoded_as_before(neighbours: int) -> None:
    torch.manual_seed(0)
    network = ClusteringNetwork(AutoEncoder(6, [5, 4], 3, colour=False), 2, 9, neighbours).double()
    samples = torch.randn(9, 6, dtype=torch.float64)
    with torch.no_grad():
        network.centres.normal_()
        before, centres = sum(network.encoded(samples).values()), network.centres.clone()
        decoded = network.reconstruct(before)
        network.scale_codes(2.5)
        after = sum(network.encoded(samples).values())
        torch.testing.assert_close(after, 2.5 * before)
        torch.testing.assert_close(network.centres.detach(), 2.5 * centres)
        torch.testing.assert_close(network.reconstruct(after), decoded)


@pytest.mark.parametrize("formulation", ["proposed", "idec"])
def test_equal_weights_that_add_up_to_the_codes_size_leave_the_distance_as_it_is(formulation: str) -> None:
    config = {"clusters": 3, "formulation": formulation, "network": {"hidden": [8], "code": 5}}
    codes, centres = torch.randn(7, 5), torch.randn(3, 5)
    logs = {}
    for name, weighting in {
        "unweighted": {"enabled": False, "total": "one"},
        "size": {"total": "size"},
        "one": {"total": "one"},
    }.items():
        weighted = EdcwrnConfig.model_validate(config | {"weighting": weighting})
        logs[name] = log_assignments(weighted, codes, centres, torch.full((3, 5), 1 / 5))
    torch.testing.assert_close(logs["size"], logs["unweighted"])
    assert not torch.allclose(logs["one"], logs["unweighted"], atol=1e-2)


@pytest.mark.parametrize("config", [IdecConfig, DecConfig])
def test_idec_and_dec_stay_without_weights_and_neighbours_whatever_is_said_of_them(config: type[EdcwrnConfig]) -> None:
    found = config.model_validate({"weighting": {"total": "size"}, "neighbours": {"scope": "batch"}})
    assert not found.weighting.enabled and found.neighbours.count == 0
