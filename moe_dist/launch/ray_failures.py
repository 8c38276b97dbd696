"""When Ray Train starts a training again. Its controller imports this file, which therefore imports little."""

from __future__ import annotations

from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from moe_dist.errors import UserError


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's, but a worker's UserError ends the training at the first time."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Raise or retry."""
        if sentence(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def sentence(error: TrainingFailedError) -> UserError | None:
    """The UserError that a rank failed with, if one did; others may have failed because that one had."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((failure for failure in failures if isinstance(failure, UserError)), None)
