"""Decides when Ray Train restarts a training. Ray's controller imports this file, so it imports little itself."""

from __future__ import annotations

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from moe_dist.errors import UserError


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's policy, except that a worker's UserError ends the training at once."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """See DefaultFailurePolicy."""
        if sentence(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def sentence(error: TrainingFailedError) -> UserError | None:
    """The UserError of a rank, if one raised it, else None; other ranks may have failed as a consequence."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, UserError)), None)
