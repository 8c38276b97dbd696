"""Tells that a run waits for room on a cluster that other jobs use too: Ray waits without a message."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moe_dist.terminal import Show, duration

LOOK_SECONDS = 5.0
AGAIN_SECONDS = 60.0
"""Time until a wait that goes on is told again."""
UNPLACED = ("PENDING", "RESCHEDULING")
"""The states of a placement group whose workers have no place."""
MOST_LISTED = 10_000


@contextlib.contextmanager
def telling_of_waits(show: Show) -> Iterator[None]:
    """Tell the user, while the block runs, when all that this process has asked Ray for waits for room."""
    wait = Wait()

    def look() -> None:
        free = _free_by_node()
        if sentence := wait.seen(_asked_in_vain(free), _total(free), time.monotonic()):
            show.notice(sentence)

    with show.looking(look, LOOK_SECONDS, "whether the run waits for room cannot be told"):
        yield


class Wait:
    """When a run waits for room, in sentences: told once it has waited for two looks, every minute, and at its end."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._tell_at = 0.0
        self._told = False

    def seen(self, asked: Mapping[str, float] | None, free: Mapping[str, float], now: float) -> str | None:
        """The sentence to tell at this look, if any. asked: what has no place; None where nothing waits."""
        if asked is None:
            began, self._began = self._began, None
            if began is None or not self._told:
                return None
            self._told = False
            return f"there is room, after {duration(now - began)}"
        if self._began is None:
            self._began, self._tell_at = now, now + LOOK_SECONDS / 2
            return None
        if now < self._tell_at:
            return None
        self._told, self._tell_at = True, now + AGAIN_SECONDS
        kinds = ", ".join(f"{amount:g} {kind}s (free: {free.get(kind, 0):g})" for kind, amount in asked.items())
        return (
            f"waits for room on the cluster for {duration(now - self._began)}: asks for {kinds}; it goes on once other "
            "jobs end or the cluster grows (`moe-dist jobs list`)"
        )


def asked_in_vain(
    groups: Iterable[Any], tasks: Iterable[Any], free: Sequence[Mapping[str, float]]
) -> Mapping[str, float] | None:
    """What a job asks for that has no place yet, by resource; None if something of it runs, or nothing waits.

    groups, tasks: its placement groups and tasks, as the state API describes those that have not ended. free: what each
    node has. A task that fits somewhere does not wait for room, but for its process to start.
    """
    groups, tasks = list(groups), list(tasks)
    unplaced = [group for group in groups if group.state in UNPLACED]
    if len(unplaced) < len(groups) or any(task.state == "RUNNING" for task in tasks):
        return None
    if unplaced:
        return _total(bundle["unit_resources"] for group in unplaced for bundle in group.bundles or [])
    for task in tasks:
        asked = _total([task.required_resources or {}])
        if not any(all(node.get(kind, 0) >= amount for kind, amount in asked.items()) for node in free):
            return asked
    return None


def _total(parts: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """The sum of CPUs and GPUs; Ray's own entries, such as a node's address, are left out."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update({kind: amount for kind, amount in part.items() if kind in ("CPU", "GPU")})  # type: ignore[arg-type]
    return total


def _asked_in_vain(free: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """See `asked_in_vain`, of this process's job."""
    import ray
    from ray.util.state import list_placement_groups, list_tasks

    job = ray.get_runtime_context().get_job_id()
    more: dict[str, Any] = {"detail": True, "limit": MOST_LISTED, "raise_on_missing_output": False}
    groups = list_placement_groups(filters=[("creator_job_id", "=", job), ("state", "!=", "REMOVED")], **more)
    kind = [("job_id", "=", job), ("type", "=", "NORMAL_TASK")]
    waiting = list_tasks(filters=[*kind, ("state", "=", "PENDING_NODE_ASSIGNMENT")], **more)
    running = list_tasks(filters=[*kind, ("state", "=", "RUNNING")], **more)
    return asked_in_vain(groups, [*waiting, *running], free)


def _free_by_node() -> list[Mapping[str, float]]:
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())
