"""Tells MLflow of a run, if MLFLOW_TRACKING_URI names a server or a database: a log beside TensorBoard's.

The driver reads what the run leaves in its folder, and a thread sends it. So workers need neither MLflow nor a way to
the server, and a server that is away holds no training up: what it has not got is sent later, with --resume at last.

the run           a run of the experiment <job>, which keeps the report
each training     a run below it: its settings, its log as <kind>/<name>, and its model's figures as result/<name>

<run>/mlflow.json remembers which runs these are and what they have got, so that a resumed run goes on in them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_dist.data.storage.transfer import without_secrets
from moe_dist.files import read_json, write_json
from moe_dist.job import Job
from moe_dist.places import MLFLOW, ModelFolder
from moe_dist.record.differences import flat
from moe_dist.record.sharing import TRAINING_DONE
from moe_dist.run.mlflow_server import FAILED, FINISHED, KILLED, RUNNING, MlflowServer, Number
from moe_dist.terminal import Show
from moe_dist.train.log import METRICS, read_log

REMEMBERED = "mlflow.json"
FILES = ("report.html", "results.md", "metrics.json")
"""Files of a run directory that are sent when it ends."""
OF_NO_TRAINING = {"name", "kind", "title", "methods", "grid", "tune", "paper_table"}
"""Fields of a job that are no settings of a training; the method's are its model's."""
OF_EVERY_LINE = {"time", "kind", "stage", "epoch", "step", "of_steps"}
"""What a line of a log holds beside its numbers."""
LOOK_EVERY_SECONDS = 5.0
LINES_AT_ONCE = 100
REASON_CHARACTERS = 200


@contextmanager
def telling_mlflow(job: Job, run: Path, show: Show) -> Iterator[None]:
    """Tell MLflow of the run in the folder `run` while the block runs it, if MLFLOW_TRACKING_URI is set.

    What fails is told to the user, and changes nothing for the block.
    """
    uri = os.environ.get(MLFLOW)
    if uri and importlib.util.find_spec("mlflow") is None:
        show.notice(f"{MLFLOW} is set and mlflow is not installed: nothing is told; pip install 'moe-dist[mlflow]'")
    if not uri or importlib.util.find_spec("mlflow") is None:
        yield
        return
    telling, status = Telling(lambda: MlflowServer(uri), without_secrets(uri), job, run, show), FAILED
    try:
        with show.looking(telling.look, LOOK_EVERY_SECONDS, "MLflow is not told"):
            yield
        status = FINISHED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        telling.end(status)


class Telling:
    """What a server has been told of a run, and tells the rest.

    connect: opens the server, which may take seconds or fail; place: its address for messages. The run is called as its
    folder, and its experiment as its job, or as its grid.
    """

    def __init__(self, connect: Callable[[], MlflowServer], place: str, job: Job, run: Path, show: Show) -> None:
        self._connect, self._place, self._job, self._run, self._show = connect, place, job, run, show
        self._experiment, self._title = job.name.removesuffix(f".{run.name}"), run.name
        self._server: MlflowServer | None = None
        self._failed = False
        told = read_json(run / REMEMBERED)
        if told is None or told["server"] != place:
            told = {"server": place, "run": None, "trainings": {}}
        self._told: dict[str, Any] = told

    def look(self) -> None:
        """Tell what is new. The first failure is told to the user."""
        try:
            self._send()
            self._failed = False
        except Exception as error:  # of MLflow, its client's libraries, or files that are being removed
            if not self._failed:
                self._show.notice(f"{self._why(error)}; the work goes on, and it is tried again")
            self._failed = True

    def end(self, status: str) -> None:
        """Tell the rest and how the run ended."""
        try:
            self._send_result(self._send(), status)
        except Exception as error:
            self._show.notice(f"{self._why(error)}; --resume sends what is missing there")
            return
        self._show.ended(f"told MLflow at {self._place}", f"{self._experiment}, {self._title}")

    def _why(self, error: Exception) -> str:
        reason = without_secrets(" ".join(str(error).split()))[:REASON_CHARACTERS] or type(error).__name__
        return f"MLflow at {self._place} is not told: {reason}"

    def _send(self) -> MlflowServer:
        """Send what is new in the logs of the trainings, the oldest first."""
        server = self._server or self._opened()
        logs = self._run.glob(f"*/trainings/*/{METRICS}")
        for log in sorted(logs, key=lambda path: path.stat().st_mtime):
            self._send_log(server, log.parent)
        return server

    def _opened(self) -> MlflowServer:
        """The server, which has a run for this one and takes it for running."""
        server = self._connect()
        if self._told["run"] is None:
            self._told["run"] = server.begin(self._experiment, self._title, None)
            self._remember()
        else:
            server.status(self._told["run"], RUNNING)
        self._server = server
        return server

    def _send_log(self, server: MlflowServer, training: Path) -> None:
        """Send the lines of a training's log that come after those that were sent."""
        told = self._told["trainings"].setdefault(training.relative_to(self._run).as_posix(), {"run": None, "sent": {}})
        new = [line for line in read_log(training) if line["step"] > told["sent"].get(line["kind"], -1)]
        model = training.parents[1].name
        if new and told["run"] is None:
            told["run"] = server.begin(self._experiment, f"{self._title} {model} {new[0]['stage']}", self._told["run"])
            self._remember()
        if new and not told["sent"]:
            server.settings(told["run"], settings_of_model(self._job, model))
        for first in range(0, len(new), LINES_AT_ONCE):
            lines = new[first : first + LINES_AT_ONCE]
            server.numbers(told["run"], [number for line in lines for number in numbers_of(line)])
            told["sent"] |= {line["kind"]: line["step"] for line in lines}
            self._remember()

    def _send_result(self, server: MlflowServer, status: str) -> None:
        """Send the figures of the run's models and its report, and how it and its trainings ended."""
        for name, told in self._told["trainings"].items():
            whole = (self._run / name / TRAINING_DONE).exists()
            server.status(told["run"], FINISHED if whole else status)
        if status == FINISHED:
            for model in self._job.models:
                training = ModelFolder(self._run / model).current().training
                told = self._told["trainings"].get(training.relative_to(self._run).as_posix()) if training else None
                if told:
                    server.numbers(told["run"], self._figures(model))
            for path in map(self._run.joinpath, FILES):
                server.file(self._told["run"], path)
        server.status(self._told["run"], status)

    def _figures(self, model: str) -> list[Number]:
        """The figures of a model as the report has them, as result/<name>."""
        figures = read_json(self._run / "metrics.json") or {}
        now = int(1000 * time.time())
        of_model = {name.removeprefix(f"{model}/"): value for name, value in figures.items() if "/" in name}
        return [(f"result/{name}", value, now, 0) for name, value in of_model.items() if f"{model}/{name}" in figures]

    def _remember(self) -> None:
        write_json(self._run / REMEMBERED, self._told, lasting=False)


def settings_of_model(job: Job, model: str) -> dict[str, str]:
    """The resolved settings of a model's training, by field; empty ones are left out, and so are secrets in URLs."""
    fields = job.model_dump(mode="json", exclude=OF_NO_TRAINING)
    fields["method"] = job.models[model].model_dump(mode="json")
    texts = {field: value if isinstance(value, str) else json.dumps(value) for field, value in flat(fields).items()}
    return {field: without_secrets(text) for field, text in texts.items() if text not in ("null", "[]", "{}", "")}


def numbers_of(line: Mapping[str, Any]) -> list[Number]:
    """The numbers in a line of a log, as <kind>/<name>."""
    when, step = int(1000 * line["time"]), line["step"]
    numbers = {name: value for name, value in line.items() if name not in OF_EVERY_LINE and not isinstance(value, str)}
    return [(f"{line['kind']}/{name}", float(value), when, step) for name, value in numbers.items()]
