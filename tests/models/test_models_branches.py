"""models/branches.py: the network against a plain one with its weights, sets of classifiers, 224-pixel networks."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.models.branches import BranchNetwork, NetworkConfig, branch_costs, build_branches
from moe_dist.models.classifiers import ClassifierKind
from moe_dist.vision import torchvision

SMALL = NetworkConfig(width=4)
State = dict[str, Tensor]


def build(config: NetworkConfig = SMALL, experts: int = 3, classes: int = 5, side: int = 16) -> BranchNetwork:
    return build_branches(config, classes, side, experts, IN_ONE_PROCESS, seed=3)


def normalise(state: State, name: str, maps: Tensor) -> Tensor:
    """Batch normalisation by the batch's own statistics."""
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    weight, bias = (state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return (maps - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


def block(state: State, name: str, maps: Tensor, stride: int) -> Tensor:
    inner = functional.conv2d(maps, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    inner = functional.conv2d(normalise(state, f"{name}.norm1", inner).relu(), state[f"{name}.conv2.weight"], padding=1)
    if f"{name}.shortcut.0.weight" in state:
        maps = functional.conv2d(maps, state[f"{name}.shortcut.0.weight"], stride=stride)
        maps = normalise(state, f"{name}.shortcut.1", maps)
    return (normalise(state, f"{name}.norm2", inner) + maps).relu()


def stage(state: State, name: str, maps: Tensor, stride: int) -> Tensor:
    for number in range(5):
        maps = block(state, f"{name}.{number}", maps, stride if number == 0 else 1)
    return maps


def plain_forward(state: State, images: Tensor, experts: int, aligned: bool, kind: str) -> tuple[Tensor, Tensor]:
    """The paper's network written down anew: features [B, E, D] and the first set's logits [B, E, C]."""
    stem = functional.conv2d(images, state["trunk.stem.0.weight"], padding=1)
    first = stage(state, "trunk.stages.0", normalise(state, "trunk.stem.1", stem).relu(), 1)
    second = stage(state, "trunk.stages.1", first, 2)
    features, logits = [], []
    for expert in range(experts):
        own = f"experts.members.{expert}"
        deep = stage(state, f"{own}.stage", second, 2)
        if aligned and expert % 2 == 0:
            shallow = functional.conv2d(first, state[f"{own}.align.0.weight"], stride=2, padding=1)
            shallow = normalise(state, f"{own}.align.1", shallow).relu()
            shallow = functional.conv2d(shallow, state[f"{own}.align.3.weight"], stride=2, padding=1)
            deep = deep * normalise(state, f"{own}.align.4", shallow)
        elif aligned:
            shallow = functional.conv2d(second, state[f"{own}.align.0.weight"], stride=2, padding=1)
            deep = deep * normalise(state, f"{own}.align.1", shallow).relu()
        h = deep.flatten(2).sum(2) / deep[0, 0].numel()
        weight = state[f"{own}.classifiers.0.weight"]
        if kind == "cosine":
            logits.append(30 * (h @ weight.T) / (h.norm(dim=1, keepdim=True) * weight.norm(dim=1)))
        else:
            logits.append(h @ weight.T + state[f"{own}.classifiers.0.bias"])
        features.append(h)
    return torch.stack(features, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("experts", [1, 2, 3, 5])
@pytest.mark.parametrize(("aligned", "kind"), [(True, "cosine"), (False, "linear")])
def test_network_is_the_plain_one(experts: int, aligned: bool, kind: ClassifierKind) -> None:
    network = build(NetworkConfig(width=3, aligned=aligned, classifier=kind), experts).double()
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    features, logits = network(images)
    assert features.shape == (6, experts, 12) and logits.shape == (6, experts, 5)
    expected = plain_forward(network.state_dict(), images, experts, aligned, kind)
    torch.testing.assert_close((features, logits), expected, atol=1e-9, rtol=1e-9)


def test_gradients_are_the_plain_ones() -> None:
    network = build(NetworkConfig(width=2), experts=2).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    trained = dict(network.named_parameters())
    _, expected = plain_forward(network.state_dict(keep_vars=True), images, 2, True, "cosine")
    used = [name for name in trained if ".classifiers.1." not in name]
    wanted = torch.autograd.grad(expected.logsumexp(2).sum(), [trained[name] for name in used])
    got = torch.autograd.grad(network(images).logits.logsumexp(2).sum(), [trained[name] for name in used])
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-6)


def test_parameters_of_the_papers_network_by_hand() -> None:
    """ResNet-32 (464 + 23,360 + 88,768 shared; 353,664 an expert) with alignments and two classifiers of 64 x 100.

    Experts 0 and 2 align stage 1 (23,232), expert 1 stage 2 (18,560).
    """
    sizes = {name: parameter.numel() for name, parameter in build(NetworkConfig(), 3, 100, 32).named_parameters()}
    shared = sum(size for name, size in sizes.items() if name.startswith("trunk."))
    assert shared == 464 + 23_360 + 88_768
    assert sum(sizes.values()) == shared + 3 * (353_664 + 2 * 6_400) + 2 * 23_232 + 18_560


def test_costs_by_hand() -> None:
    """Multiply-adds of one 32-pixel image: outputs times inputs times kernel, for every pixel of the output's map.

    Stage 3 on 8 x 8: its first convolution 64 * 32 * 9 * 64 = 1,179,648, nine of 64 * 64 * 9 * 64 = 2,359,296, and the
    shortcut 64 * 32 * 64 = 131,072. Alignment of stage 1: 32 * 16 * 9 * 256 + 64 * 32 * 9 * 64 = 2,359,296; of stage
    2: 1,179,648. Two classifiers of 64 * 100.
    """
    deep = 1_179_648 + 9 * 2_359_296 + 131_072 + 2 * 6_400
    costs = branch_costs(NetworkConfig(), classes=100, image_size=32, experts=3)
    assert costs == [deep + 2_359_296, deep + 1_179_648, deep + 2_359_296]
    assert branch_costs(NetworkConfig(aligned=False), 100, 32, 2) == [deep, deep]


def test_an_expert_is_drawn_from_seed_and_id_alone() -> None:
    few, many = build(experts=2).state_dict(), build(experts=4).state_dict()
    assert all(torch.equal(value, many[name]) for name, value in few.items())
    assert not torch.equal(
        many["experts.members.0.stage.0.conv1.weight"], many["experts.members.2.stage.0.conv1.weight"]
    )


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(experts=2)
    assert torch.equal(torch.rand(3), expected)


def test_stage_two_uses_the_fresh_classifiers_on_frozen_statistics() -> None:
    network = build().train()
    images = torch.randn(8, 3, 16, 16)
    network(images)
    network.train_classifiers_only()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    features, logits = network.train()(images)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    weight = after["experts.members.1.classifiers.1.weight"]
    torch.testing.assert_close(logits[:, 1], 30 * functional.normalize(features[:, 1]) @ functional.normalize(weight).T)
    assert network.get_submodule("experts.members.1.classifiers.1").training


def test_the_classifiers_in_use_alone_have_a_gradient() -> None:
    network = build(experts=2)
    images = torch.randn(4, 3, 16, 16)
    for used, unused in ((0, 1), (1, 0)):
        if used:
            network.train_classifiers_only()
        network.zero_grad()
        network(images).logits.square().sum().backward()
        gradients = [
            network.get_parameter(f"experts.members.1.classifiers.{number}.weight").grad for number in (used, unused)
        ]
        assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True, False]


def test_a_loaded_network_goes_on_in_stage_two() -> None:
    trained = build().train()
    trained.train_classifiers_only()
    loaded = build().eval()
    loaded.load_state_dict(trained.state_dict())
    loaded.train()
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(loaded(images).logits, trained(images).logits)
    assert not loaded.trunk.training


def test_bfloat16_autocast_gives_float32_near_the_exact() -> None:
    network = build(NetworkConfig(width=8)).eval()
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        exact = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(images)
    assert rounded.features.dtype == rounded.logits.dtype == torch.float32
    torch.testing.assert_close(rounded.logits, exact.logits, atol=1.0, rtol=0)  # of logits in [-30, 30]


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "resnet18"},
        {"width": 0},
        {"scale": 0},
        {"classifier": "arc"},
        {"depth": 3},
        {"weights": "DEFAULT"},
        {"kind": "resnet50", "width": 8},
    ],
)
def test_bad_configuration_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkConfig.model_validate(bad)


def test_resnet50_cut_in_parts_is_torchvisions(tmp_path: Path) -> None:
    """Pretrained and not aligned, every expert's features are what torchvision's own network pools."""
    torch.manual_seed(0)
    whole = torchvision().models.resnet50(weights=None).eval()
    save_file(whole.state_dict(), tmp_path / "resnet50.safetensors")
    config = NetworkConfig(kind="resnet50", aligned=False, weights=str(tmp_path / "resnet50.safetensors"))
    network = build(config, experts=2, classes=3, side=64).eval()
    pooled: list[Tensor] = []
    whole.avgpool.register_forward_hook(lambda *call: pooled.append(call[2].flatten(1)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        features, logits = network(images)
    assert logits.shape == (2, 2, 3)
    torch.testing.assert_close(features, torch.stack([pooled[0], pooled[0]], 1), atol=1e-4, rtol=1e-4)


def test_costs_of_resnet50_by_hand() -> None:
    """layer4 at 224 pixels, in multiply-adds: 1x1 1024 -> 512 on 14 x 14, 3x3 512 to 7 x 7, 1x1 512 -> 2048, shortcut
    1x1 1024 -> 2048; then twice 1x1 2048 -> 512, 3x3 512, 1x1 512 -> 2048, all on 7 x 7."""
    narrow, wide = 512 * 512 * 9 * 49, 512 * 2048 * 49
    layer4 = 1024 * 512 * 196 + narrow + wide + 1024 * 2048 * 49 + 2 * (wide + narrow + wide)
    config = NetworkConfig(kind="resnet50", aligned=False)
    assert branch_costs(config, classes=1000, image_size=224, experts=1) == [layer4 + 2 * 2048 * 1000]


def test_resnext50_has_grouped_convolutions_and_its_own_alignments() -> None:
    """32 groups: a 3x3 of 1024 channels has 1024 * 32 * 9 weights. Expert e aligns stage 1 + e mod 3."""
    config = NetworkConfig(kind="resnext50")
    with torch.device("meta"):
        network = build(config, experts=4, classes=3)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes["experts.members.0.stage.1.conv2.weight"] == (1024, 32, 3, 3)
    aligned = [
        [shape[0] for name, shape in shapes.items() if f".{e}.align." in name and len(shape) == 4] for e in range(4)
    ]
    assert aligned == [[512, 1024, 2048], [1024, 2048], [2048], [512, 1024, 2048]]
    assert shapes["experts.members.0.classifiers.0.weight"] == (3, config.features) == (3, 2048)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="missing"):
        build(NetworkConfig(kind="resnet50", weights=str(tmp_path / "part.safetensors")), experts=1)
