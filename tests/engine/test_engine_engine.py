"""LocalEngine, compared with an explicit training loop, and the errors of make_engine."""

from __future__ import annotations

import sys

import pytest
import torch
from small_engine import CPU, SGD, engine_of, line
from torch import Tensor, nn

from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.errors import UserError
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig


def test_gradients_of_micro_batches_add_up() -> None:
    """w = 1 - 0.5 x (2 + 3 + 4) = -3.5, without an update before the third micro-batch."""
    engine = engine_of(line(1.0), accumulate=3)
    updates = []
    for slope in (2.0, 3.0, 4.0):
        engine.backward(engine.network(torch.tensor([[slope]])).sum())
        updates.append(engine.step())
    assert updates == [False, False, True]
    assert float(weight_of(engine)) == -3.5


def test_clips_the_accumulated_gradient_to_the_norm() -> None:
    """The gradient (1 + 2, 4) has norm 5; clipped to 1 it is (0.6, 0.8), and half of it is subtracted from (1, 1)."""
    engine = engine_of(line(1.0, 1.0), accumulate=2, clip_norm=1.0)
    for slope in ((1.0, 4.0), (2.0, 0.0)):
        engine.backward(engine.network(torch.tensor([slope])).sum())
        engine.step()
    torch.testing.assert_close(weight_of(engine), torch.tensor([[0.7, 0.6]]), atol=1e-6, rtol=0)


def test_a_short_gradient_is_not_stretched() -> None:
    engine = engine_of(line(1.0), clip_norm=10.0)
    engine.backward(engine.network(torch.tensor([[2.0]])).sum())
    engine.step()
    assert float(weight_of(engine)) == 0.0


def test_rates_scale_from_their_initial_value() -> None:
    engine = engine_of(line(1.0))
    for factor, expected in ((0.1, 0.05), (0.1, 0.05), (1.0, 0.5)):
        engine.optimiser.scale_rates(factor)
        assert [group["lr"] for group in engine.optimiser.param_groups] == pytest.approx([expected])


def test_what_the_loss_leaves_out_still_decays() -> None:
    """As with DeepSpeed, its gradient is zero, and AdamW's decay reduces it by rate x decay = 0.5 x 0.2."""
    network = nn.ModuleDict({"used": line(1.0), "unused": line(1.0)})
    engine = engine_of(network, OptimiserConfig(kind="adamw", learning_rate=0.5, weight_decay=0.2))
    engine.backward(network["used"](torch.ones(1, 1)).sum())
    engine.step()
    torch.testing.assert_close(network["unused"].weight.data, torch.tensor([[0.9]]))


def test_frozen_parameters_stay() -> None:
    network = nn.ModuleDict({"gate": line(1.0), "trunk": line(1.0)})
    engine = engine_of(network, prefix="gate.")
    engine.backward(network["gate"](network["trunk"](torch.ones(1, 1))).sum())
    engine.step()
    assert {name: weight.item() for name, weight in network.named_parameters()} == {
        "gate.weight": 0.5,
        "trunk.weight": 1.0,
    }


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast(bf16: bool, dtype: torch.dtype) -> None:
    engine = engine_of(line(1.0), bf16=bf16)
    with engine.autocast():
        assert engine.network(torch.ones(1, 1)).dtype == dtype
    assert weight_of(engine).dtype == torch.float32


def test_several_ranks_say_that_they_need_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("train.deepspeed_engine", "parallel.experts", "parallel.runtime"):
        monkeypatch.delitem(sys.modules, f"moe_dist.{name}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    with pytest.raises(UserError, match="several ranks need DeepSpeed, which is not installed"):
        make_engine(
            line(1.0),
            {"": SGD},
            parallel=ParallelConfig(),
            clip_norm=None,
            device=CPU,
            bf16=False,
            ranks=2,
            deepspeed=True,
        )


class _Absent:
    """An importer that does not find deepspeed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "deepspeed":
            raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")


def weight_of(engine: Engine) -> Tensor:
    return engine.network.get_parameter("weight").detach()
