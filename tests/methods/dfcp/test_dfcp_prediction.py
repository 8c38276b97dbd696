"""methods/dfcp/prediction.py: what is computed of experts, for the mixture and its traditional rival."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.base import Method
from moe_dist.methods.baselines.traditional_moe import TraditionalMoe, TraditionalMoeConfig
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.losses import gate_log_weights
from moe_dist.methods.dfcp.method import Dfcp

EXPERTS, SIDE = 5, 16
NARROW = {"experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8}, "gate": {"filters": [4], "hidden": [8]}}


@pytest.fixture(params=["dfcp", "traditional"])
def method(request: pytest.FixtureRequest) -> Method:
    info = DatasetInfo(EXPERTS, tuple("abcde"), SIDE, 40)
    if request.param == "dfcp":
        return Dfcp(DfcpConfig.model_validate(NARROW), info)
    return TraditionalMoe(TraditionalMoeConfig.model_validate(NARROW), info)


@pytest.fixture
def network(method: Method) -> nn.Module:
    network = method.build(IN_ONE_PROCESS, {}, 0).eval()
    with torch.no_grad():  # a fresh gate prefers the same experts for all images
        network.gate.classifier[-1].weight.mul_(100)  # type: ignore[index, union-attr]
    return network


def count_images(network: nn.Module) -> Counter[str]:
    """The images that each expert computes from now on, all together as `all`."""
    counted: Counter[str] = Counter()
    for name, member in network.experts.members.items():  # type: ignore[union-attr, operator]
        member.register_forward_pre_hook(
            lambda module, arguments, name=name: counted.update({name: len(arguments[0]), "all": len(arguments[0])})
        )
    return counted


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_every_expert_is_computed_once_whatever_the_number_of_top_k(method: Method, network: nn.Module) -> None:
    with torch.inference_mode():
        expected = {k: method.predict(network, images(9), k) for k in (None, 1, 3)}
        counted = count_images(network)
        found = method.predict_by(network, images(9), (1, 3))
    assert counted["all"] == 9 * EXPERTS and found.keys() == expected.keys()
    outputs = (9, EXPERTS) if isinstance(method, Dfcp) else (9, EXPERTS, EXPERTS)  # binary experts predict no classes
    assert found[None].experts is not None and found[None].experts.shape == outputs and found[1].experts is None
    for k, prediction in found.items():
        torch.testing.assert_close(prediction.log_probs, expected[k].log_probs)
        torch.testing.assert_close(prediction.gates[""], expected[k].gates[""])


@pytest.mark.parametrize("top_k", [1, 3])
def test_only_k_experts_an_image_are_computed_also_for_batches(method: Method, network: nn.Module, top_k: int) -> None:
    counted = count_images(network)
    with torch.inference_mode():
        prediction = method.predict(network, images(9), top_k)
        one_by_one = [method.predict(network, image[None], top_k).log_probs for image in images(9)]
        weights = gate_log_weights(network.gate(images(9)), top_k).exp()  # type: ignore[operator]
    assert counted["all"] == 2 * 9 * top_k, "once in a batch, and once image by image"
    assert (
        torch.equal(prediction.gates[""] > 0, weights > 0) and len({tuple(row) for row in (weights > 0).tolist()}) > 1
    )
    torch.testing.assert_close(prediction.gates[""], weights)
    torch.testing.assert_close(prediction.log_probs, torch.cat(one_by_one))


def test_initial_layers_computed_together_give_the_same_for_one_image(method: Method, network: nn.Module) -> None:
    image = images(2)[1:]
    apart = network(image)
    with torch.no_grad():
        together = network(image)
    for ours, expected in zip(together, apart):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        method.predict(network, image).log_probs, method.predict(network, images(2)).log_probs[1:]
    )
