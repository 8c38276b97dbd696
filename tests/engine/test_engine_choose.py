"""The makers of a network with and without DeepSpeed, which is imported only if it is needed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from moe_dist.engine.choose import makers
from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.models.sparse import Routing, SparseExperts

ROUTING = Routing(width=3, experts=4, top_k=1, capacity_factor=None)


def linear() -> nn.Module:
    return nn.Linear(3, 3)


def test_one_process_has_all_experts() -> None:
    make = makers(ep_size=1, deepspeed=False)
    experts, sparse = make.experts([linear] * 4, [1.0] * 4, 5), make.sparse(linear, ROUTING, 5)
    assert isinstance(experts, Experts) and isinstance(sparse, SparseExperts)
    weights = sparse.state_dict()
    for name, tensor in experts.state_dict().items():  # both seed an expert by its number
        assert torch.equal(weights[name], tensor)


class _Absent:
    """An importer that does not find deepspeed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "deepspeed":
            raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")


def test_says_that_deepspeed_is_missing_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("deepspeed", "moe_dist.parallel."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    assert isinstance(makers(ep_size=1, deepspeed=True).experts([linear], [1.0], 0), Experts)
    with pytest.raises(UserError, match="DeepSpeed, which is not installed"):
        makers(ep_size=1, deepspeed=True).sparse(linear, ROUTING, 0)
    with pytest.raises(UserError, match="DeepSpeed, which is not installed"):
        makers(ep_size=2, deepspeed=True).experts([linear] * 2, [1.0] * 2, 0)
