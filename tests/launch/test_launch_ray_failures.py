"""Failures that end a training by Ray Train at once, and failures that it retries. Ray is not started."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from small_jobs import traditional

from moe_dist.errors import DiskError, UserError
from moe_dist.launch import ray_trainer
from moe_dist.launch.ray_failures import FailurePolicy

DIVERGED = UserError("the loss diverged")
LOST = RuntimeError("connection closed by peer")


def group(**failures: Exception) -> WorkerGroupError:
    """The failure that the controller gets from ranks, by the last letter of their names."""
    return WorkerGroupError("as Ray says it", {int(name[-1]): error for name, error in failures.items()})


@pytest.mark.parametrize(
    ("error", "decisions"),
    [
        (group(rank_1=DIVERGED), [FailureDecision.RAISE]),
        (group(rank_0=LOST, rank_1=DIVERGED), [FailureDecision.RAISE]),
        (group(rank_0=LOST, rank_1=DiskError("the disk is full")), [FailureDecision.RAISE]),
        (group(rank_0=LOST), [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]),
        (ControllerError(LOST), [FailureDecision.RAISE]),
    ],
    ids=["sentence", "sentence and its consequence", "disk", "lost worker", "controller"],
)
def test_a_sentence_is_not_tried_again(error: TrainingFailedError, decisions: list[FailureDecision]) -> None:
    policy = pickle.loads(pickle.dumps(FailurePolicy(FailureConfig(max_failures=2))))  # it goes to the controller
    assert [policy.make_decision(error) for _ in decisions] == decisions


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (group(rank_0=LOST, rank_1=DIVERGED), UserError, "^the loss diverged$"),
        (
            ControllerError(OSError(errno.ENOSPC, "No space left on device")),
            DiskError,
            "^{folder}: the disk is full, so",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "^{folder}: the disk is full, so a checkpoint"),
        (group(rank_0=LOST), WorkerGroupError, "as Ray says it"),
        (ControllerError(LOST), ControllerError, "connection closed"),
    ],
    ids=["rank", "controller's disk", "driver's disk", "other rank's", "other controller's"],
)
def test_fit_raises_what_the_user_can_mend_as_that(
    raised: Exception, expected: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise pickle.loads(pickle.dumps(raised))  # as from another process

    monkeypatch.setattr(ray_trainer.Trainer, "fit", fail)
    task = SimpleNamespace(job=traditional(), folder=tmp_path, checkpoints=tmp_path / "checkpoints", pack=dict)
    with pytest.raises(expected, match=said.format(folder=tmp_path)) as ended:
        ray_trainer.fit(task, lambda packed: None)  # type: ignore[arg-type]
    assert type(ended.value) is expected
