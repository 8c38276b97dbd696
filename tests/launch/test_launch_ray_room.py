"""When a run is told to wait for room, from what Ray knows of its placement groups and tasks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from moe_dist.launch.ray_room import Wait, asked_in_vain


def group(state: str, cpus: float = 1.0, count: int = 2) -> SimpleNamespace:
    return SimpleNamespace(state=state, bundles=[{"unit_resources": {"CPU": cpus, "node:10.0.0.1": 0.001}}] * count)


def task(state: str, **required: float) -> SimpleNamespace:
    return SimpleNamespace(state=state, required_resources=required)


@pytest.mark.parametrize(
    ("groups", "tasks", "asked"),
    [
        ([], [], None),
        ([group("PENDING")], [], {"CPU": 2.0}),
        ([group("RESCHEDULING", cpus=3.0)], [], {"CPU": 6.0}),
        ([group("CREATED")], [], None),
        ([group("CREATED"), group("PENDING")], [], None),  # one trial of a search runs, the next one waits for it
        ([group("PENDING")], [task("RUNNING")], None),
        ([], [task("PENDING_NODE_ASSIGNMENT", CPU=1, GPU=0.5)] * 3, {"CPU": 1.0, "GPU": 0.5}),
        ([], [task("PENDING_NODE_ASSIGNMENT", CPU=2)], {"CPU": 2.0}),  # a node has one, and another has one
        ([], [task("PENDING_NODE_ASSIGNMENT", CPU=1)], None),  # its process is being started
        ([], [task("PENDING_NODE_ASSIGNMENT")], None),
        ([], [task("PENDING_NODE_ASSIGNMENT", GPU=1), task("RUNNING")], None),
        ([group("CREATED")], [task("PENDING_NODE_ASSIGNMENT", GPU=1)], None),
    ],
)
def test_a_run_waits_where_nothing_of_it_has_a_place(
    groups: list[SimpleNamespace], tasks: list[SimpleNamespace], asked: dict[str, float] | None
) -> None:
    assert asked_in_vain(groups, tasks, [{"CPU": 1.0}, {"CPU": 1.0, "memory": 1e9}]) == asked


def test_a_wait_is_told_after_two_looks_every_minute_and_at_its_end() -> None:
    wait, asked, free = Wait(), {"CPU": 2.0}, {"CPU": 1.0, "memory": 1e9}
    assert wait.seen(asked, free, 100.0) is None
    first = wait.seen(asked, free, 105.0)
    assert first is not None
    assert first.startswith("waits for room on the cluster for 5.0 s: asks for 2 CPUs (free: 1); it goes on once")
    assert [wait.seen(asked, free, now) for now in (110.0, 164.0)] == [None, None]
    assert "for 65.0 s" in (wait.seen(asked, {}, 165.0) or "")
    assert wait.seen(None, free, 170.0) == "there is room, after 70.0 s"
    assert wait.seen(None, free, 175.0) is None


def test_a_short_wait_is_not_told() -> None:
    """As at every start, when Ray has not placed the workers yet."""
    wait = Wait()
    assert wait.seen({"CPU": 2.0}, {}, 0.0) is None
    assert wait.seen(None, {}, 5.0) is None
