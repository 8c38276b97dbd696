"""The methods by name. Adding a method is adding its module and one line here."""

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
}


def method_class(name: str) -> "type[Method]":
    """The class of the method called `name`; its module is imported only now."""
    if name not in METHODS:
        raise UserError(f"method.name: no method is called {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return import_module(METHODS[name]).METHOD
