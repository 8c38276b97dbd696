"""models/cifar_resnet.py: parameters counted by hand, shapes, He's initialisation, a block against its formula."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.models.cifar_resnet import BasicBlock, Trunk, alignment, stage, stem


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_by_hand() -> None:
    """A KxK convolution of I into O channels has O I K^2 weights, a normalisation 2 O."""
    assert count(stem(16)) == 16 * 3 * 9 + 32 == 464
    assert count(stage(16, 16, 1)) == 10 * (16 * 16 * 9 + 32) == 23_360
    shortcut = 32 * 16 + 64
    assert count(stage(16, 32, 2)) == 32 * 16 * 9 + 9 * 32 * 32 * 9 + 10 * 64 + shortcut == 88_768
    shortcut = 64 * 32 + 128
    assert count(stage(32, 64, 2)) == 64 * 32 * 9 + 9 * 64 * 64 * 9 + 10 * 128 + shortcut == 353_664
    assert count(alignment(16, 2)) == 32 * 16 * 9 + 64 + 64 * 32 * 9 + 128 == 23_232
    assert count(alignment(32, 1)) == 64 * 32 * 9 + 128 == 18_560


def test_resnet32_has_32_weighted_layers() -> None:
    """31 convolutions beside the shortcuts', and the classifier."""
    parts = [stem(16), stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)]
    weights = [module for part in parts for module in part.modules() if isinstance(module, nn.Conv2d)]
    assert sum(weight.kernel_size == (3, 3) for weight in weights) == 31
    assert sum(weight.kernel_size == (1, 1) for weight in weights) == 2


@pytest.mark.parametrize(("side", "sides"), [(32, (32, 16, 8)), (30, (30, 15, 8)), (9, (9, 5, 3))])
def test_maps_and_alignments_of_any_side(side: int, sides: tuple[int, int, int]) -> None:
    trunk = Trunk(stem(4), [stage(4, 4, 1), stage(4, 8, 2)])
    first, second = trunk(torch.randn(2, 3, side, side))
    deep = stage(8, 16, 2)(second)
    assert first.shape == (2, 4, sides[0], sides[0])
    assert second.shape == (2, 8, sides[1], sides[1])
    assert deep.shape == (2, 16, sides[2], sides[2])
    assert alignment(4, 2)(first).shape == alignment(8, 1)(second).shape == deep.shape


def test_alignment_of_stage_one_may_be_negative_and_of_stage_two_not() -> None:
    maps = torch.randn(4, 8, 8, 8)
    assert alignment(8, 1)(maps).min() == 0
    assert alignment(8, 2)(maps).min() < 0


def test_convolutions_are_hes() -> None:
    """Standard deviation sqrt(2 / fan-in); of 36,864 weights the sample's is within 2 % of it."""
    weight = stage(32, 64, 2).get_parameter("1.conv2.weight")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)


def normalised(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation by its formula, with the batch's own mean and (biased) variance."""
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = (maps - mean).square().mean((0, 2, 3), keepdim=True)
    weight, bias = (part.view(1, -1, 1, 1) for part in (norm.weight, norm.bias))
    return (maps - mean) / (variance + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 3, 1), (3, 6, 2), (3, 5, 1)])
def test_block_is_its_formula(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    block = BasicBlock(inputs, outputs, stride).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    maps = torch.randn(4, inputs, 6, 6, dtype=torch.float64)
    inner = normalised(functional.conv2d(maps, block.conv1.weight, stride=stride, padding=1), block.norm1).clamp(min=0)
    outer = normalised(functional.conv2d(inner, block.conv2.weight, padding=1), block.norm2)
    shortcut = maps
    if outputs != inputs or stride != 1:
        norm = cast(nn.BatchNorm2d, block.get_submodule("shortcut.1"))
        shortcut = functional.conv2d(maps, block.get_parameter("shortcut.0.weight"), stride=stride)
        shortcut = normalised(shortcut, norm)
    torch.testing.assert_close(block(maps), (outer + shortcut).clamp(min=0), atol=1e-10, rtol=1e-10)


def test_gradients_of_a_block() -> None:
    torch.manual_seed(1)
    block = BasicBlock(2, 3, stride=2).double()
    maps = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*block.named_parameters())

    def outputs(maps: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values)), (maps,))

    assert torch.autograd.gradcheck(outputs, (maps, *values))


@pytest.mark.parametrize("channels", range(1, 9))
def test_shortcut_is_the_strided_convolution(channels: int) -> None:
    """Values and gradients in single precision, channels-last as in training; the strided form beside it is not."""
    torch.manual_seed(channels)
    block = BasicBlock(channels, 2 * channels, stride=2)
    weight = block.get_parameter("shortcut.0.weight")
    maps = torch.randn(16, channels, 8, 8, requires_grad=True)
    strided = functional.conv2d(maps, weight, stride=2)
    norm = cast(nn.BatchNorm2d, block.get_submodule("shortcut.1"))
    inner = block.conv2(functional.relu(block.norm1(block.conv1(maps))))
    expected = functional.relu(block.norm2(inner) + norm(strided))
    got = block(maps.contiguous(memory_format=torch.channels_last))
    slopes = torch.randn_like(expected)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad((expected * slopes).sum(), [maps, weight])
    torch.testing.assert_close(torch.autograd.grad((got * slopes).sum(), [maps, weight]), wanted, atol=1e-4, rtol=1e-4)


TRAINED_BLOCKS = """
import torch
from moe_dist.models.cifar_resnet import BasicBlock

torch.set_num_threads(1)
for channels in range(1, 9):
    block = BasicBlock(channels, 2 * channels, stride=2)
    for _ in range(20):
        maps = torch.randn(16, channels, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
        block(maps).square().sum().backward()
"""


def test_backward_pass_survives_without_avx512() -> None:
    """oneDNN reads the variable when it is loaded: a process of its own. A corrupted heap ends that by a signal."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", TRAINED_BLOCKS]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)


def test_alignments_may_start_as_torch_draws_convolutions() -> None:
    """Uniform in +-1 / sqrt(fan-in), whose deviation is 1 / sqrt(3 fan-in); He's is sqrt(6) times as wide."""
    fan_in = 32 * 9
    drawn = alignment(32, 1, "torch").get_submodule("0").get_parameter("weight")
    assert drawn.abs().max() <= 1 / math.sqrt(fan_in)
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)
    assert alignment(32, 1).get_submodule("0").get_parameter("weight").std() > 2 * drawn.std()
