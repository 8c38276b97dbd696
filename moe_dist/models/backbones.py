"""Networks of timm and torchvision by name, with weights by name or from a file: as classifiers, or cut to their map.

`timm/NAME` is timm's network (with a tag where it has several weights: timm/densenet121.tv_in1k), NAME torchvision's.
Letters in shapes: B samples of a batch, C classes, K channels of a map, s map side, S image side. Pretrained weights
expect images normalised as those that they were trained on. `weights` is None for random ones, the name of published
ones ("DEFAULT", for timm the only one; "IMAGENET1K_V2"), or a .safetensors or .pth file of the whole network.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models.timm_networks import TIMM, require_timm, require_timm_map, timm_network
from moe_dist.models.weights import SUFFIXES, load_file_into, load_state, why_not_fetched
from moe_dist.vision import torchvision

NOT_OFFERED = (
    "googlenet",  # several outputs while training, as inception
    "inception*",
    "densenet*",  # the published weights carry the names of an older layout
)
NO_CONVOLUTIONAL_MAP = ("vit_*", "swin_*", "maxvit_*")
HEADS = ("avgpool", "classifier", "fc")
"""Names of the parts after the last feature map in torchvision's convolutional networks."""


def backbone(name: str, weights: str | Path | None = None) -> nn.Module:
    """The network `name` as published: images [B, 3, S, S] -> logits [B, 1000].

    Raises UserError for an unknown name or unknown weights, for weights that cannot be fetched, and for a file that
    does not hold this network's state.
    """
    if name.startswith(TIMM):
        return timm_network(name, weights)
    _require_known(name, _offered())
    network = torchvision().models.get_model(name, weights=None)
    if weights is None:
        return network
    if Path(weights).suffix in SUFFIXES:
        load_file_into(network, Path(weights), name)
    else:
        load_state(network, _fetch(name, str(weights)), f"{weights} for {name}")
    return network


def feature_map(name: str, weights: str | Path | None = None) -> nn.Module:
    """The network `name` up to its last feature map, without pooling and classifier (Eq 7-8).

    Images [B, 3, S, S] -> map [B, K, s, s]; for EfficientNet-B1, K = 1280 and s = S / 32.
    Raises UserError as `backbone` does, and for a network whose last map is not convolutional.
    """
    if name.startswith(TIMM):
        require_timm_map(name)
        network = timm_network(name, weights)
        network.reset_classifier(0, "")  # type: ignore[operator]  # timm's name for neither pooling nor classifier
        return network
    require_known(name)
    parts = backbone(name, weights).named_children()
    return nn.Sequential(*(part for _, part in takewhile(lambda child: child[0] not in HEADS, parts)))


def classifier(name: str, weights: str | Path | None, classes: int, dropout: float) -> nn.Module:
    """The network `name` with a fresh last layer: images [B, 3, S, S] -> logits [B, C].

    `dropout` is set on the dropout layers beside the last layer; where there are none, one is added before it.
    EfficientNet-B1 with 0.6 is the dense rival of Table 2. Raises UserError as `backbone` does, and for a network whose
    last layer is not linear. Of timm's networks timm makes the fresh layer.
    """
    if name.startswith(TIMM):
        network = timm_network(name, weights, drop_rate=dropout)
        network.reset_classifier(classes)  # type: ignore[operator]
        return network
    network = backbone(name, weights)
    linear = [(path, module.in_features) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"backbone {name!r}: its last layer is not linear, so it cannot be given {classes} classes")
    path, inputs = linear[-1]
    fresh = nn.Linear(inputs, classes)
    dropouts = [
        part for part in network.get_submodule(path.rpartition(".")[0]).children() if isinstance(part, nn.Dropout)
    ]
    for part in dropouts:
        part.p = dropout
    network.set_submodule(path, fresh if dropouts else nn.Sequential(nn.Dropout(dropout), fresh))
    return network


def _offered(*excluded: str) -> list[str]:
    """The names of torchvision's networks that are offered, without those of the `excluded` patterns."""
    models = torchvision().models
    return models.list_models(module=models, exclude=(*NOT_OFFERED, *excluded))


def _require_known(name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["efficientnet_b1", "resnet18"]
        raise UserError(f"backbone {name!r} is not one torchvision offers for this; try {', '.join(close)}")


def require_known(name: str) -> None:
    """Raise UserError, with near names, where torchvision has no convolutional network `name` that is offered."""
    _require_known(name, _offered(*NO_CONVOLUTIONAL_MAP))


def require_network(name: str) -> None:
    """Raise UserError, with near names, where neither timm nor torchvision has the convolutional network `name`."""
    (require_timm if name.startswith(TIMM) else require_known)(name)


def _fetch(name: str, weights: str) -> Mapping[str, Tensor]:
    """torchvision's published weights, from its cache or the network; never unpickled."""
    published = torchvision().models.get_model_weights(name)
    if weights not in published.__members__ and weights != "DEFAULT":
        choices = ", ".join(published.__members__)
        raise UserError(f"weights {weights!r}: {name} has {choices}, DEFAULT, or a .safetensors or .pth file")
    try:
        return published[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # RuntimeError: not the published file's hash
        raise UserError(
            f"the {weights} weights of {name} could not be fetched ({why_not_fetched(error)}); without a network, give "
            "a local .safetensors or .pth file as weights, or use `weights: null` or the `siamese` features"
        ) from None
