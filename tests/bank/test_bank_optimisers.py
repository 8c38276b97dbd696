"""Both ways of updating many members, on a CPU, against torch.optim."""

import pytest
import torch
from alone import KINDS

from moe_dist.bank.optimisers import FusedOptimisers, MatrixOptimiser
from moe_dist.optimisers import torch_optimiser
from moe_dist.settings.training import OptimiserConfig

MEMBERS, LENGTH, STEPS = 3, 40, 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("optimisers", [FusedOptimisers, MatrixOptimiser])
def test_updates_are_torchs(optimisers, kind, weight_decay):
    """50 steps at three rates; the last member has only every second step, and the members are then turned round."""
    configs = [OptimiserConfig(kind=kind, learning_rate=rate, weight_decay=weight_decay) for rate in (1e-3, 5e-3, 0.02)]
    generator = torch.Generator().manual_seed(0)
    rows, *gradients = torch.randn(STEPS + 1, MEMBERS, LENGTH, generator=generator, dtype=torch.float64)
    rows = rows.clone()
    alone = [row.clone().requires_grad_() for row in rows]
    judges = [torch_optimiser([row], config) for row, config in zip(alone, configs)]
    found = optimisers(configs, rows)
    order = list(range(MEMBERS))
    for step, gradient in enumerate(gradients):
        active = MEMBERS - step % 2
        found.step(rows[:active], gradient[:active])
        for place in range(active):
            alone[order[place]].grad = gradient[place]
            judges[order[place]].step()
        if step == STEPS // 2:
            turned = [2, 0, 1]
            rows, order = rows[turned], [order[place] for place in turned]
            found.select(turned)
    torch.testing.assert_close(rows, torch.stack([alone[member] for member in order]).detach(), rtol=0, atol=1e-12)


def test_matrix_refuses_two_kinds():
    with pytest.raises(ValueError, match="too many values"):
        MatrixOptimiser([OptimiserConfig(kind="sgd"), OptimiserConfig(kind="adam")], torch.zeros(2, 4))
