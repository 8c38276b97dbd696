"""Where Ray puts the workers of a training."""

from __future__ import annotations

import pytest
from small_jobs import traditional

from moe_dist.launch.ray_trainer import placement_strategy


@pytest.mark.parametrize(("workers", "expert", "strategy"), [(4, 2, "PACK"), (4, 4, "PACK"), (4, 1, "SPREAD")])
def test_an_expert_parallel_group_is_packed_into_a_node(workers: int, expert: int, strategy: str) -> None:
    assert placement_strategy(traditional(workers=workers, parallel={"expert": expert})) == strategy
