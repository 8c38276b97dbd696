"""The methods by name. To add a method, add its module and one line here."""

from importlib import import_module
from typing import TYPE_CHECKING

from moe_dist.errors import UserError

if TYPE_CHECKING:
    from moe_dist.methods.base import Method

METHODS = {
    "dfcp": "moe_dist.methods.dfcp",
    "traditional_moe": "moe_dist.methods.baselines.traditional_moe",
    "dense": "moe_dist.methods.baselines.dense",
    "sparse_moe": "moe_dist.methods.baselines.sparse_moe",
    "icl": "moe_dist.methods.icl",
    "cross_entropy": "moe_dist.methods.longtail.cross_entropy",
    "focal": "moe_dist.methods.longtail.focal",
    "balanced_softmax": "moe_dist.methods.longtail.balanced_softmax",
    "ldam_drw": "moe_dist.methods.longtail.ldam_drw",
    "ride": "moe_dist.methods.longtail.ride",
    "shike": "moe_dist.methods.longtail.shike",
    "balpoe": "moe_dist.methods.longtail.balpoe",
}


def method_class(name: str) -> "type[Method]":
    """The class of the method `name`, whose module is imported now. Raises UserError where there is none."""
    if name not in METHODS:
        raise UserError(f"method.name: no method is called {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return import_module(METHODS[name]).METHOD
