"""With how many workers an elastic training is started, and when it is told of room for more. Ray is not started."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.config import ScalingConfig

from moe_dist.launch import ray_elastic, ray_worker
from moe_dist.launch.ray_elastic import LOOK_SECONDS, ElasticPolicy
from moe_dist.launch.ray_worker import RankOfRay, tell_of_room
from moe_dist.train.ends import MoreRoom, NodeTaken


class Cluster:
    """What Ray says of a cluster, and the workers of a training on it, as the policy sees them."""

    def __init__(self) -> None:
        self.free: dict[str, dict[str, float]] = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}
        self.leaving: dict[str, int] = {}
        self.places: list[str] = []
        self.now = 1000.0
        self.told: list[tuple[Callable[[int], None], int]] = []
        self.policy = ElasticPolicy(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1}), (1, 2, 4))

    def started(self) -> int:
        """Decide on a number of workers, which then take their places."""
        decision = self.policy.make_decision_for_non_running_worker_group()
        assert isinstance(decision, ResizeDecision)
        return decision.num_workers

    def running(self, workers: int) -> None:
        """Let the policy see so many running workers."""
        first = SimpleNamespace(execute_async=lambda *what: self.told.append(what))
        handle = SimpleNamespace(placement_group="group")
        group = SimpleNamespace(
            start_time=1000.0, num_workers=workers, workers=[first] * workers, placement_group_handle=handle
        )
        decision = self.policy.make_decision_for_running_worker_group(group, None)
        assert isinstance(decision, NoopDecision), "workers are not ended from here"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    state = SimpleNamespace(
        available_resources_per_node=lambda: cluster.free,
        state=SimpleNamespace(get_draining_nodes=lambda: cluster.leaving),
    )
    monkeypatch.setattr(ray_elastic, "state", state)
    monkeypatch.setattr(
        ray_elastic.ray.util,
        "placement_group_table",
        lambda group: {"bundles_to_node_id": dict(enumerate(cluster.places))},
    )
    monkeypatch.setattr(ray_elastic, "time_monotonic", lambda: cluster.now)
    monkeypatch.setenv(ray_elastic.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, "60")  # undone, whatever the policy sets
    monkeypatch.setattr(ElasticPolicy, "_maybe_send_resource_request", lambda self: None)
    return cluster


@pytest.mark.parametrize(
    ("free", "workers"),
    [
        ({"a": 2, "b": 2}, 4),
        ({"a": 8}, 4),
        ({"a": 2, "b": 1}, 2),
        ({"a": 1.5, "b": 0.5}, 1),
        ({"a": 0}, 1),
    ],
    ids=["all", "more than all", "three are not possible", "a place is on one node", "waits for the fewest"],
)
def test_as_many_are_started_as_have_room(cluster: Cluster, free: dict[str, float], workers: int) -> None:
    cluster.free = {node: {"CPU": float(cpus)} for node, cpus in free.items()}
    assert cluster.started() == workers


def test_the_places_that_the_lost_workers_hold_count_as_room_but_not_those_of_a_node_that_goes(
    cluster: Cluster,
) -> None:
    cluster.free, cluster.places = {"a": {"CPU": 0.0}, "b": {"CPU": 0.0}}, ["a", "a", "b", "b"]
    cluster.running(4)
    assert cluster.started() == 4, "a worker was lost, and no node"
    cluster.running(4)
    cluster.leaving = {"b": 0}
    assert cluster.started() == 2
    cluster.leaving, cluster.free, cluster.places = {}, {"a": {"CPU": 1.0}}, ["a"]
    cluster.running(2)
    assert cluster.started() == 2, "b has died, and its place with it"


def test_a_training_goes_on_where_ray_does_not_answer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> dict[str, int]:
        raise ray_elastic.ray.exceptions.RpcError("no answer")

    monkeypatch.setattr(ray_elastic.state.state, "get_draining_nodes", away)
    assert cluster.started() == 4, "as many as it may have"
    cluster.now += LOOK_SECONDS
    cluster.running(2)
    assert cluster.told == []


def test_where_the_room_is_gone_fewer_are_tried_and_then_as_many_again(cluster: Cluster) -> None:
    assert [cluster.started() for _ in range(4)] == [4, 2, 1, 4]
    cluster.running(4)
    assert cluster.started() == 4, "they have run"


def test_the_first_rank_is_told_of_room_for_more_and_not_at_every_look(cluster: Cluster) -> None:
    cluster.places, cluster.free = ["a", "a"], {"a": {"CPU": 0.0}}
    cluster.now += LOOK_SECONDS
    cluster.running(2)
    assert cluster.told == []
    cluster.free["b"] = {"CPU": 2.0}
    cluster.running(2)
    assert cluster.told == [], "it looked just now"
    cluster.now += LOOK_SECONDS
    cluster.running(2)
    assert cluster.told == [(tell_of_room, 4)]
    cluster.now, cluster.leaving = cluster.now + LOOK_SECONDS, {"b": 0}
    cluster.running(2)
    assert len(cluster.told) == 1, "b goes again"


def test_room_that_should_be_there_is_not_waited_for_as_long_as_room_that_is_not(cluster: Cluster) -> None:
    """A place that is free is taken in a second; the rest of the time is for a node whose death is not known yet."""
    name = ray_elastic.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    cluster.started()
    assert os.environ[name] == ray_elastic.SOON
    cluster.free = {}
    cluster.started()
    assert os.environ[name] == ray_elastic.PATIENT


def test_ranks_end_for_room_for_more_than_they_are_and_rather_for_a_node_that_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = SimpleNamespace(preemption_info=None)
    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=told))
    monkeypatch.setattr(ray_worker, "_room_for", 0)
    rank = RankOfRay.__new__(RankOfRay)  # which would ask Ray Train for its place
    rank.rank, rank.ranks, rank.device = 0, 1, torch.device("cpu")
    assert rank.leaving() is None
    tell_of_room(1)
    assert rank.leaving() is None
    tell_of_room(4)
    leaving = rank.leaving()
    assert isinstance(leaving, MoreRoom) and leaving.workers == 4
    told.preemption_info = "a node goes"
    assert isinstance(rank.leaving(), NodeTaken)


def test_an_autoscaler_is_asked_for_all(cluster: Cluster) -> None:
    request: Any = cluster.policy._get_num_workers_for_resource_request
    assert request() == 4
