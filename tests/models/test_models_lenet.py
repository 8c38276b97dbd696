"""models/lenet.py: the forward pass against loops, and costs against hand-worked numbers and the layers themselves."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_dist.errors import UserError
from moe_dist.models.lenet import LeNet, LeNetWidths, ManagingNetwork

CLASSIC = LeNetWidths(conv1=6, conv2=16, fc1=120, fc2=84)


def convolve(maps, weight, bias):
    """A valid convolution, ReLU and 2x2 max-pooling of maps [F, S, S], with loops."""
    kernel, side = weight.shape[-1], maps.shape[-1] - weight.shape[-1] + 1
    out = np.zeros((len(weight), side // 2, side // 2))
    for f in range(len(weight)):
        full = np.zeros((side, side))
        for a in range(side):
            for q in range(side):
                full[a, q] = max(0.0, (maps[:, a : a + kernel, q : q + kernel] * weight[f]).sum() + bias[f])
        for a in range(side // 2):
            for q in range(side // 2):
                out[f, a, q] = full[2 * a : 2 * a + 2, 2 * q : 2 * q + 2].max()
    return out


def test_forward_is_eq_6():
    network = LeNet(LeNetWidths(2, 3, 5, 4), outputs=2, image_size=17).double()
    image = torch.rand(1, 3, 17, 17, dtype=torch.float64) - 0.5
    conv1_w, conv1_b, conv2_w, conv2_b, *linear = (parameter.detach().numpy() for parameter in network.parameters())
    hidden = convolve(convolve(image[0].numpy(), conv1_w, conv1_b), conv2_w, conv2_b).reshape(-1)
    hidden = np.maximum(linear[0] @ hidden + linear[1], 0)
    hidden = np.maximum(linear[2] @ hidden + linear[3], 0)
    expected = linear[4] @ hidden + linear[5]
    np.testing.assert_allclose(network(image).detach().numpy()[0], expected, rtol=1e-10)


def test_classic_widths_have_the_parameters_and_cost_of_lenet_5():
    """Parameters: 6*(75+1) + 16*(150+1) + (400+1)*120 + (120+1)*84 + (84+1)*1 = 61,241.

    Multiply-adds: 28*28*75*6 + 10*10*150*16 + 400*120 + 120*84 + 84*1 = 650,964.
    """
    assert sum(parameter.numel() for parameter in LeNet(CLASSIC).parameters()) == 61_241
    assert LeNet.multiply_adds(CLASSIC) == 650_964


def counted_multiply_adds(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of one image, counted on the maps that the layers really produce."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output[0].numel() * layer.weight[0].numel()
        if isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    for layer in network.modules():
        layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, image_size, image_size))
    return total


@pytest.mark.parametrize("image_size", [16, 17, 28, 32, 48])
@pytest.mark.parametrize("outputs", [1, 43])
def test_cost_of_an_expert_is_what_its_layers_do(image_size, outputs):
    widths = LeNetWidths(7, 18, 123, 85)
    counted = counted_multiply_adds(LeNet(widths, outputs, image_size), image_size)
    assert LeNet.multiply_adds(widths, outputs, image_size) == counted


def test_managing_network_follows_table_2():
    network = ManagingNetwork(experts=43)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    dropouts = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256]
    assert [layer.out_features for layer in linear] == [512, 128, 43]
    assert [layer.p for layer in dropouts] == [0.5, 0.5]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 43)


def test_managing_network_starts_xavier_normal():
    """Xavier-normal: standard deviation sqrt(2 / (fan in + fan out)); 4 standard errors of the estimate are allowed."""
    torch.manual_seed(0)
    for layer in ManagingNetwork(43).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            field = layer.weight[0][0].numel()
            expected = math.sqrt(2 / (field * (layer.weight.shape[0] + layer.weight.shape[1])))
            assert layer.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * layer.weight.numel()))
            assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("image_size", [12, 15])
def test_too_small_an_image_for_lenet_is_refused(image_size):
    with pytest.raises(UserError, match=rf"image_size = {image_size}: .* use 16 or more"):
        LeNet(CLASSIC, image_size=image_size)
    with pytest.raises(UserError, match="use 16 or more"):
        LeNet.multiply_adds(CLASSIC, image_size=image_size)


def test_too_small_an_image_for_the_managing_network_is_refused():
    with pytest.raises(UserError, match="4 poolings leave no pixel; use 16 or more"):
        ManagingNetwork(3, image_size=15, filters=(4, 4, 4, 4))
