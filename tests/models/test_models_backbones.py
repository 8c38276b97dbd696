"""models/backbones.py: maps and heads against torchvision's own forward pass; weights from files."""

import copy
import pickle
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moe_dist.errors import UserError
from moe_dist.models.backbones import backbone, classifier, feature_map
from moe_dist.vision import torchvision

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def state():
    """The state of a small network, every tensor unlike what a fresh one starts with."""
    network = torchvision().models.get_model(SMALL, weights=None)
    return {name: value + 7 for name, value in network.state_dict().items()}


def test_efficientnet_b1_map_is_neither_pooled_nor_classified():
    with torch.inference_mode():
        assert feature_map("efficientnet_b1").eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "mobilenet_v3_small"])
def test_feature_map_is_what_the_network_pools(name, tmp_path):
    """The map must be what torchvision's forward pass averages before its classifier: average it, classify, compare."""
    network = torchvision().models.get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        pooled = feature_map(name, tmp_path / "weights.pth").eval()(images).mean(dim=(2, 3))
        head = network.fc if hasattr(network, "fc") else network.classifier
        torch.testing.assert_close(head(pooled), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights_are_loaded_whole(suffix, state, tmp_path):
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    for given in (path, str(path)):
        for name, value in backbone(SMALL, given).state_dict().items():
            assert torch.equal(value, state[name]), name


def test_a_state_that_does_not_fit_is_told_by_name(state, tmp_path):
    changed = copy.copy(state)
    changed["fc.scale"] = changed.pop("fc.bias")
    changed["fc.weight"] = torch.zeros(10, 1024)
    torch.save(changed, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"fc\.bias missing; fc\.scale unexpected; fc\.weight of another shape"):
        backbone(SMALL, tmp_path / "weights.pth")


def test_many_misfits_are_counted(state, tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"and {len(state) - 3} more missing"):
        backbone(SMALL, tmp_path / "weights.pth")


class Payload:
    """Something only unpickling could bring back."""


def test_a_pickled_file_is_not_opened(tmp_path):
    torch.save({"fc.bias": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not plain tensors") as told:
        backbone(SMALL, tmp_path / "weights.pth")
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_broken_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(UserError, match="not plain tensors"):
        backbone(SMALL, tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
        (b'{"message": "Not Found"}', "JSON"),
        (b"PK\x03\x04 half a zip", "or damaged"),
        (b"\x80\x02}q\x00", "or damaged"),
        (b"(i__main__\nPayload\n.", "or damaged"),
    ],
    ids=range(7),
)
def test_a_file_that_is_no_weights_is_told_for_what_it_is(suffix, content, said, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        backbone(SMALL, path)
    assert str(path) in str(told.value) and "not plain tensors" in str(told.value)
    assert "weights_only" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        (torch.zeros(2), "holds a Tensor, not tensors by name"),
        ({0: torch.zeros(2)}, "a tensor is named 0, which is no word"),
        ({"epoch": 3, "fc.bias": torch.zeros(2)}, "'epoch' is a int, not a tensor"),
        ({"model": {"fc.bias": torch.zeros(2)}}, "holds tensors under 'model', not at its top"),
    ],
)
def test_tensors_that_are_no_state_are_told(content, said, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"weights\.pth: .*{said}.*save the network's state_dict"):
        backbone(SMALL, tmp_path / "weights.pth")


def test_half_a_file_of_weights_is_refused(state, tmp_path):
    for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
        path = tmp_path / f"weights{suffix}"
        save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="or damaged") as told:
            backbone(SMALL, path)
        assert "weights_only" not in str(told.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        backbone(SMALL, tmp_path / "absent.pth")


ADVICE = pickle.UnpicklingError("Weights only load failed. ... re-running with `weights_only` set to `False`")


@pytest.mark.parametrize(
    "failure",
    [URLError("no route to host"), TimeoutError("timed out"), RuntimeError("invalid hash value"), ADVICE],
)
def test_weights_that_cannot_be_fetched_say_what_to_do(failure, monkeypatch):
    def fail(url, **options):
        raise failure

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        UserError, match=r"DEFAULT weights of resnet18 could not be fetched .*local \.safetensors"
    ) as told:
        backbone("resnet18", "DEFAULT")
    assert "weights_only" not in str(told.value)


def test_fetched_weights_are_checked_and_never_unpickled(state, monkeypatch):
    asked = {}

    def fetch(url, **options):
        asked.update(options)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    network = backbone(SMALL, "IMAGENET1K_V1")
    assert asked["weights_only"] is True and asked["check_hash"] is True
    assert torch.equal(network.fc.bias, state["fc.bias"])


def test_unknown_weights_name_the_choices():
    with pytest.raises(UserError, match="resnet50 has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        backbone("resnet50", "IMAGENET21K")


def test_unknown_networks_name_the_nearest():
    with pytest.raises(UserError, match=r"'efficientnet-b1' is not one .*efficientnet_b1"):
        backbone("efficientnet-b1")


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "googlenet", "densenet121"])
def test_networks_without_a_usable_map_are_refused(name):
    with pytest.raises(UserError, match=f"backbone '{name}' is not one torchvision offers for this"):
        feature_map(name)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_classifier_ends_with_dropout_and_a_fresh_layer(name):
    network = classifier(name, None, classes=43, dropout=0.6).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 43)
    *_, dropout, last = (layer for layer in network.modules() if isinstance(layer, nn.Dropout | nn.Linear))
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.6
    assert isinstance(last, nn.Linear) and last.out_features == 43


def test_a_head_that_is_not_linear_is_refused():
    with pytest.raises(UserError, match="'squeezenet1_1': its last layer is not linear"):
        classifier("squeezenet1_1", None, classes=43, dropout=0.6)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet", "timm/densenet121"])
def test_a_map_of_timm_is_what_the_network_pools(name, tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model(name.removeprefix("timm/")).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = feature_map(name, tmp_path / "weights.safetensors").eval()(images)
        assert maps.dim() == 4 and maps.shape[2:] == (2, 2)
        torch.testing.assert_close(network.forward_head(maps), network(images), rtol=1e-4, atol=1e-4)


def test_a_classifier_of_timm_has_dropout_and_a_fresh_layer():
    pytest.importorskip("timm")
    network = classifier("timm/test_resnet", None, classes=43, dropout=0.6)
    assert network.drop_rate == 0.6
    with torch.inference_mode():
        assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 43)


def test_networks_of_timm_that_are_refused(tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"'timm/tf_efficientnet_lit0' is no network .*timm/tf_efficientnet_lite0"):
        feature_map("timm/tf_efficientnet_lit0")
    for name in ("timm/test_vit", "timm/swin_tiny_patch4_window7_224"):
        with pytest.raises(UserError, match=f"'{name}' has no convolutional map at its end; try timm/resnet18"):
            feature_map(name)
    save_file({"fc.bias": torch.zeros(1000)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors for timm/test_resnet: .* missing"):
        feature_map("timm/test_resnet", tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="weights 'IMAGENET1K_V1': timm/test_resnet has DEFAULT, or a"):
        classifier("timm/test_resnet", "IMAGENET1K_V1", 43, 0.1)
