"""models/tapped.py and models/multi_scale.py: taps against hooks on the whole network, fusion by hand, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models.backbones import require_network
from moe_dist.models.experts import Experts
from moe_dist.models.multi_scale import Fusion, MultiScaleNetwork, Tap, build_multi_scale
from moe_dist.models.tapped import tap_shapes, tapped
from moe_dist.models.timm_networks import expected_input
from moe_dist.vision import timm, torchvision

LITE = "timm/tf_efficientnet_lite0"
NETWORKS = [
    ("timm/densenet121", ("features.denseblock2", "features.denseblock3", "features.denseblock4"), (512, 1024, 1024)),
    ("timm/resnet50", ("layer2", "layer3", "layer4"), (512, 1024, 2048)),
    ("timm/efficientnet_b1", ("blocks.2", "blocks.4", "blocks.6"), (40, 112, 320)),
    (LITE, ("blocks.4", "blocks.6"), (112, 320)),
    ("timm/convnext_tiny", ("stages.1", "stages.2", "stages.3"), (192, 384, 768)),
    ("resnet50", ("layer3",), (1024,)),
    ("efficientnet_b1", ("features.3", "features.5"), (40, 112)),
    ("convnext_tiny", ("features.3", "features.5"), (192, 384)),
]


def whole(name: str) -> nn.Module:
    own = name.removeprefix("timm/")
    return timm().create_model(own) if own != name else torchvision().models.get_model(own, weights=None)


@pytest.mark.parametrize(("name", "taps", "channels"), NETWORKS, ids=[name for name, *_ in NETWORKS])
def test_taps_give_what_the_modules_give_inside_the_whole_network(
    name: str, taps: tuple[str, ...], channels: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = whole(name).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images, seen = torch.randn(1, 3, 64, 64), {}
    for tap in taps:
        network.get_submodule(tap).register_forward_hook(lambda _, inputs, output, tap=tap: seen.update({tap: output}))
    cut = tapped(name, taps, tmp_path / "weights.safetensors").eval()
    with torch.inference_mode():
        network(images)
        maps = cut(images)
    for tap, found in zip(taps, maps):
        torch.testing.assert_close(found, seen[tap])
    assert tap_shapes(name, taps, 64) == [(each.shape[1], each.shape[2]) for each in maps]
    assert tuple(each.shape[1] for each in maps) == channels


def test_the_last_tap_of_densenet_is_before_its_final_norm() -> None:
    """timm's own last feature is after it."""
    features = timm().create_model("densenet121", features_only=True).feature_info.module_name()
    assert features[-1] == "features.norm5"
    state = tapped("timm/densenet121", ("features.denseblock4",), None).state_dict()
    assert not any("norm5" in name for name in state)


def test_an_unknown_network_is_told_with_near_names() -> None:
    with pytest.raises(UserError, match=r"no network of timm's; try timm/densenet121"):
        require_network("timm/densnet121")
    with pytest.raises(UserError, match="not one torchvision offers"):
        tap_shapes("resnet5", ("layer1",), 64)


def test_an_unknown_tap_is_told_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"has no such module; there are .*layer4 \(2048 x 2²\).*layer3"):
        tap_shapes("timm/resnet50", ("layer5",), 64)
    with pytest.raises(UserError, match="gives no single map"):
        tap_shapes("timm/resnet50", ("fc",), 64)


def test_images_too_small_for_a_tap_are_refused() -> None:
    assert tap_shapes("timm/densenet121", ("features.denseblock2",), 16) == [(512, 2)]
    with pytest.raises(UserError, match="images of 16 pixels are too small"):
        tap_shapes("timm/densenet121", ("features.denseblock4",), 16)
    assert tap_shapes("timm/densenet121", ("features.denseblock4",), 32) == [(1024, 1)]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(whole("timm/resnet18").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights.safetensors for timm/resnet34: .* missing"):
        tapped("timm/resnet34", ("layer2",), tmp_path / "weights.safetensors")


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*arguments: object, **settings: object) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(UserError, match=r"could not be fetched \(no connection\); without a network, give a local"):
        tapped("timm/resnet18", ("layer2",), "DEFAULT")
    with pytest.raises(UserError, match="has DEFAULT, or"):
        tapped("timm/resnet18", ("layer2",), "IMAGENET1K_V1")


def test_timm_s_input_is_known() -> None:
    assert expected_input(LITE) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)
    assert expected_input("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


@pytest.mark.data
def test_the_real_weights_fit_and_give_features(shared_data: Path) -> None:
    network = tapped(LITE, ("blocks.4", "blocks.6"), shared_data / "tf_efficientnet_lite0.safetensors").eval()
    with torch.inference_mode():
        assert [tuple(each.shape) for each in network(torch.zeros(1, 3, 96, 96))] == [(1, 112, 6, 6), (1, 320, 3, 3)]


def test_fusion_brings_three_scales_to_the_middle_one() -> None:
    """Eq 17, step by step: the large map's mean over 2 x 2 places, the small one's bilinear enlargement."""
    torch.manual_seed(0)
    fusion = Fusion((3, 4, 5), 6).eval()
    nn.init.normal_(fusion.weights)
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2)]
    projected = [weigh(projection(each)) for projection, each, weigh in zip(fusion.projections, maps, by(fusion))]
    large = projected[0].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    small = nn.functional.interpolate(projected[2], scale_factor=2, mode="bilinear")
    expected = fusion.norm(fusion.join(torch.cat([large, projected[1], small], 1))).relu()
    torch.testing.assert_close(fusion(maps), expected)


def by(fusion: Fusion):
    return [lambda each, weight=weight: weight * each for weight in fusion.weights]


@pytest.mark.parametrize(("sides", "side"), [((6,), 6), ((6, 3), 6), ((3, 6), 6), ((7, 4, 2), 4), ((1, 1, 1), 1)])
def test_fusion_of_any_sides(sides: tuple[int, ...], side: int) -> None:
    maps = [torch.randn(2, 3, each, each) for each in sides]
    assert Fusion([3] * len(sides), 4)(maps).shape == (2, 4, side, side)


def build(modules: str, image_size: int = 48, **tap: object) -> MultiScaleNetwork:
    taps = [Tap.model_validate({"at": f"layer{n}", "experts": 3, "dim": 8, "kernel": 1} | tap) for n in (2, 3)]
    names = [each.at for each in taps]
    shapes = tap_shapes("timm/resnet10t", names, image_size)
    backbone = tapped("timm/resnet10t", names, None)
    settings = {"width": 16, "dropout": 0.1, "residual": 0.5, "classes": 5, "make_experts": Experts, "seed": 0}
    return build_multi_scale(backbone, taps, shapes, modules, **settings)


@pytest.mark.parametrize(
    "modules", ["gmm", "softmax", "one_expert", "one_wide_expert", "squeeze_excitation", "none", "linear"]
)
@pytest.mark.parametrize("image_size", [32, 48])
def test_the_network_and_what_it_is_compared_with(modules: str, image_size: int) -> None:
    network = build(modules, image_size)
    outputs = network(torch.randn(2, 3, image_size, image_size))
    assert outputs.logits.shape == (2, 5)
    with_experts = modules in ("gmm", "softmax", "one_expert", "one_wide_expert")
    assert list(outputs.mixed) == (["layer2", "layer3"] if with_experts else [])
    auxiliary = network.auxiliary(outputs)
    assert (auxiliary is not None) == with_experts
    outputs.logits.sum().backward()
    for name, parameter in network.named_parameters():
        unused = name.endswith(("gate.prior", "gate.means", "raw_precisions", "raw_blend")) or ".gate." in name
        assert parameter.grad is not None or (modules.startswith("one") and unused), name


def test_the_auxiliary_losses_of_all_scales_are_added() -> None:
    network = build("gmm")
    outputs = network(torch.randn(2, 3, 48, 48))
    each = [network.mixtures[tap].auxiliary(outputs.mixed[tap]) for tap in ("layer2", "layer3")]
    found = network.auxiliary(outputs)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, each[0] + each[1])


def test_the_wide_expert_has_about_the_parameters_of_all() -> None:
    sizes = {}
    for modules in ("softmax", "one_wide_expert"):
        network = build(modules, experts=10, kernel=3)
        sizes[modules] = sum(parameter.numel() for parameter in network.modules_at.parameters())
    assert sizes["one_wide_expert"] == pytest.approx(sizes["softmax"], rel=0.05)
