"""Decides with how many workers an elastic training goes on. Ray's controller imports this file.

start    1. with as many as there is room for on nodes that stay: what is free, and what the training itself holds
         2. with fewer, where the room is gone by the time it is asked for (a node's death is known some seconds later)
         3. with the fewest, where there is room for less: Ray waits for it, and an autoscaled cluster grows
running  look now and then; if there is room for more, tell the first rank: all save a checkpoint, and start again
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray._private import state
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.train.v2._internal.util import time_monotonic
from ray.train.v2.api.config import ScalingConfig

from moe_dist.launch.ray_worker import tell_of_room

LOOK_SECONDS = 20.0
"""Time between two looks for room; workers that were just started are left alone for as long."""
SOON, PATIENT = "8", "60"
"""Seconds that Ray waits for room before this policy is asked again: where there should be room, and where not yet."""


class ElasticPolicy(ScalingPolicy):
    """Ray Train's decision on the number of workers, one of `counts`, which ascend.

    Ray's own elastic policy takes any number, counts what other jobs have taken as free and nodes that are about to go
    as there, hears of a node's death up to 20 s late, tries a number for a minute before another one, and ends running
    workers without a checkpoint.
    """

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._counts = tuple(counts)
        self._group: Any = None
        """The workers that ran last, which may hold their places still."""
        self._tried: int | None = None
        """The number that was decided on and has not run since."""
        self._looked = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """See ScalingPolicy."""
        self._maybe_send_resource_request()
        try:
            room = self._room()
        except ray.exceptions.RayError:  # no answer for a moment: starting will show what there is room for
            room = self._counts[-1]
        if self._tried is not None and self._tried > self._counts[0]:
            room = min(room, self._tried - 1)
        self._group, self._tried = None, self._largest(room)
        # Read by whoever starts the workers, which is this process.
        os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = SOON if self._tried <= room else PATIENT
        return ResizeDecision(self._tried, self.scaling_config._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """See ScalingPolicy. Workers are never ended from here: they end themselves, with a checkpoint."""
        self._maybe_send_resource_request()
        self._group, self._tried = worker_group_state, None
        now = time_monotonic()
        if now - max(self._looked, worker_group_state.start_time) >= LOOK_SECONDS:
            self._looked = now
            with suppress(ray.exceptions.RayError):  # the next look may be answered
                count = self._largest(self._room())
                if count > worker_group_state.num_workers:
                    worker_group_state.workers[0].execute_async(tell_of_room, count)
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        """What an autoscaler is asked for."""
        return self._counts[-1]

    def _largest(self, room: int) -> int:
        """The largest number of workers that fits, or else the smallest one."""
        return max((count for count in self._counts if count <= room), default=self._counts[0])

    def _room(self) -> int:
        """The number of workers that have room on nodes that stay, each of the places that the training holds for one.

        Ray places a lost worker anew by itself as long as the training holds its places, which then are elsewhere.
        """
        held: Counter[str] = Counter()
        if self._group is not None:
            places = ray.util.placement_group_table(self._group.placement_group_handle.placement_group)
            held.update(places.get("bundles_to_node_id", {}).values())
        leaving = state.state.get_draining_nodes()
        asked = {kind: amount for kind, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        return sum(
            held[node] + min(int(free.get(kind, 0.0) / amount + 1e-6) for kind, amount in asked.items())
            for node, free in state.available_resources_per_node().items()
            if node not in leaving
        )
