"""MLflow's side of tracking.py: what it is told, by its own client. The only file that knows MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's words for how a run is."""
Number = tuple[str, float, int, int]
"""A number of a log: its name, its value, its time in milliseconds since 1970, and its step."""
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # it would wait two minutes for a server that is silent
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # and try for four; tracking.py tries again itself
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would tell its makers of each call
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Read by MLflow when it is imported or asked; what the user has set stays."""
NUMBERS_AT_ONCE, SETTINGS_AT_ONCE = 1000, 100
"""The most that MLflow takes in one request."""


class MlflowServer:
    """A tracking server, or a database, at `uri`; credentials come from where MLflow looks for them.

    Each call raises what MLflow's client raises.
    """

    def __init__(self, uri: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)  # what fails is told once, without addresses
        self._client = MlflowClient(uri)

    def begin(self, experiment: str, name: str, above: str | None) -> str:
        """Begin a run of an experiment, below the run `above` if that is given, and return its id."""
        tags = {"mlflow.parentRunId": above} if above else {}
        return self._client.create_run(self._experiment(experiment), tags=tags, run_name=name).info.run_id

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which another cell of a grid may create at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def settings(self, run: str, settings: Mapping[str, str]) -> None:
        """Give a run its settings."""
        from mlflow.entities import Param

        every = [Param(name, value) for name, value in settings.items()]
        for first in range(0, len(every), SETTINGS_AT_ONCE):
            self._client.log_batch(run, params=every[first : first + SETTINGS_AT_ONCE])

    def numbers(self, run: str, numbers: Sequence[Number]) -> None:
        """Add numbers to a run."""
        from mlflow.entities import Metric

        every = [Metric(name, value, time, step) for name, value, time, step in numbers]
        for first in range(0, len(every), NUMBERS_AT_ONCE):
            self._client.log_batch(run, metrics=every[first : first + NUMBERS_AT_ONCE])

    def file(self, run: str, path: Path) -> None:
        """Keep a file with a run, in place of one of that name."""
        self._client.log_artifact(run, str(path))

    def status(self, run: str, status: str) -> None:
        """Mark a run as RUNNING, or as ended with another status."""
        if status == RUNNING:
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status)
