"""The jobs of a cluster: listed, followed, waited for and stopped, by Ray's own client of its job server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from moe_dist.errors import UserError
from moe_dist.launch.job_server import raising_user_errors
from moe_dist.terminal import console, duration, plain_table, say

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient
    from rich.table import Table

RUN, RESUME = "run", "resume"
"""What `submit` lets the cluster know of a job: its run directory, and the command that goes on with it."""
POLL_SECONDS = 1.0
RECONNECT_SECONDS = 30.0
"""How long nothing may answer before it counts as unknown how a job stands."""
TOLD_AFTER_SECONDS = 10.0
"""How long a job may take to be started before the user is told that it waits."""
STOP_SECONDS = 30.0
"""How long a job may take to end after it was asked to; Ray kills it after three."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class ClusterJob:
    """A submitted job by its id, over a connection that may break. Its methods raise UserError."""

    def __init__(self, client: JobSubmissionClient, submission: str) -> None:
        self._client, self.submission = client, submission
        self._address = client.get_address()
        self._known: JobDetails | None = None
        self._printed = 0

    def details(self) -> JobDetails:
        """What the cluster knows of the job."""
        with raising_user_errors(self._address):
            try:
                self._known = self._client.get_job_info(self.submission)
            except RuntimeError as error:
                if not _says_unknown(error):
                    raise
                raise UserError(
                    f"{self._address} knows no job {self.submission}: `moe-dist jobs list --address {self._address}` "
                    "lists those that it knows, none of which is from before it was started"
                ) from None
        return self._known

    def log(self) -> str:
        """The log so far."""
        self.details()
        with raising_user_errors(self._address):
            return self._client.get_job_logs(self.submission)

    def follow(self) -> int:
        """Print the log until the job ends, and how it ended. Returns its exit code, see `exit_code_of`."""
        self._wait_while("PENDING")
        while True:
            with raising_user_errors(self._address), contextlib.suppress(*_broken_connections()):
                asyncio.run(self._print_log())
            details = self._answer()
            if details.status.value in ENDED:
                return self._tell_end(details)
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """Wait until the job ends, and print how it ended. Returns its exit code, see `exit_code_of`."""
        return self._tell_end(self.end())

    def end(self) -> JobDetails:
        """Wait until the job ends. Returns what the cluster knows of it then."""
        self._wait_while("PENDING")
        return self._wait_while("RUNNING")

    def stop(self) -> JobDetails:
        """Ask the job to end, as by SIGTERM, and wait until it has. Returns what the cluster knows of it then."""
        if (details := self.details()).status.value in ENDED:
            return details
        with raising_user_errors(self._address):
            self._client.stop_job(self.submission)
        last_look = time.monotonic() + STOP_SECONDS
        while (details := self.details()).status.value not in ENDED:
            if time.monotonic() > last_look:
                raise UserError(
                    f"{self.submission}: has not ended {STOP_SECONDS:g} s after it was asked to; ask again, or look at "
                    f"its log: moe-dist jobs logs --address {self._address} {self.submission}"
                )
            time.sleep(POLL_SECONDS)
        return details

    def commands(self) -> str:
        """The commands that follow and stop the job, each on a line."""
        commands = {"follow": "logs --follow", "stop": "stop"}
        return "\n".join(
            f"  {what} it: moe-dist jobs {command} --address {self._address} {self.submission}"
            for what, command in commands.items()
        )

    async def _print_log(self) -> None:
        """Print what has not been printed of the log, until it ends; after a break it is sent from its start."""
        seen = 0
        async for text in self._client.tail_job_logs(self.submission):
            new = text[max(0, self._printed - seen) :]
            seen += len(text)
            self._printed = max(self._printed, seen)
            print(new, end="", flush=True)

    def _wait_while(self, state: str) -> JobDetails:
        """Wait while the job is in `state`, and return its details afterwards. A job that is not started is told."""
        tell_at = time.monotonic() + TOLD_AFTER_SECONDS
        while (details := self._answer()).status.value == state:
            if state == "PENDING" and time.monotonic() > tell_at:
                tell_at = math.inf
                say(console, f"{self.submission} waits for the cluster to start it: {_one_line(details.message)}")
            time.sleep(POLL_SECONDS)
        return details

    def _answer(self) -> JobDetails:
        """The job's details, asked for again for RECONNECT_SECONDS while nothing answers."""
        last_try = time.monotonic() + RECONNECT_SECONDS
        with raising_user_errors(self._address):
            while True:
                try:
                    self._known = self._client.get_job_info(self.submission)
                    return self._known
                except (OSError, RuntimeError) as error:
                    if _says_unknown(error):
                        raise UserError(
                            f"{self.submission} has ended: the cluster was started anew and does not know it"
                            f"{self._how_to_go_on()}"
                        ) from None
                    if time.monotonic() > last_try:
                        raise UserError(
                            f"{self._address} does not answer any more, so it is not known how {self.submission} "
                            "stands: if the cluster's head has died, the job has ended, and if only the way there is "
                            f"broken, it goes on{self._how_to_go_on()}"
                        ) from None
                time.sleep(POLL_SECONDS)

    def _how_to_go_on(self) -> str:
        """The end of a sentence on a job that has ended, or may have: where its results lie, and how to resume it."""
        about = (self._known.metadata if self._known else None) or {}
        if RESUME not in about:
            return ""
        return f"; what it has written stays in {about[RUN]}, and on a cluster that is up this goes on: {about[RESUME]}"

    def _tell_end(self, details: JobDetails) -> int:
        """Print how the job ended, and why if its command did not start. Returns its exit code."""
        print(f"{self.submission}: {details.status.value.lower()}")
        if details.status.value != "SUCCEEDED" and details.driver_exit_code is None:
            print(details.message)
        return exit_code_of(details)


def exit_code_of(details: JobDetails) -> int:
    """The exit code of a job: 0 if it succeeded or has not ended; else its command's, or 1 if that has none."""
    if details.status.value not in ENDED or details.status.value == "SUCCEEDED":
        return 0
    return details.driver_exit_code or 1


def jobs_of(client: JobSubmissionClient) -> list[JobDetails]:
    """The jobs that were submitted to the cluster since its start, the newest first. Raises UserError."""
    with raising_user_errors(client.get_address()):
        jobs = client.list_jobs()
    return sorted((job for job in jobs if job.submission_id), key=lambda job: job.start_time or 0, reverse=True)


def jobs_table(jobs: Sequence[JobDetails]) -> Table:
    """A table of the jobs: id, state, when begun, how long they took, and their run directories or commands."""
    rows = [
        (job.submission_id or "", job.status.value.lower(), *_times(job), (job.metadata or {}).get(RUN, job.entrypoint))
        for job in jobs
    ]
    return plain_table(("job", "state", "begun", "took", "run directory, or command"), rows)


def facts_of(job: ClusterJob) -> dict[str, str]:
    """What there is to tell of a job, in words."""
    details = job.details()
    about = details.metadata or {}
    begun, took = _times(details)
    facts = {"state": details.status.value.lower(), "begun": begun, "took": took}
    if details.status.value == "RUNNING" and (last := job.log().rstrip().rpartition("\n")[2]):
        facts["last line"] = last.strip()
    if details.status.value == "PENDING" or (details.status.value in ENDED and details.driver_exit_code is None):
        facts["message"] = _one_line(details.message)
    if details.driver_exit_code is not None:
        facts["exit code"] = str(details.driver_exit_code)
    facts["run directory"] = about.get(RUN, "")
    facts["command"] = details.entrypoint
    facts["resume"] = about.get(RESUME, "") if exit_code_of(details) else ""
    return {name: value for name, value in facts.items() if value}


def _times(details: JobDetails) -> tuple[str, str]:
    """When the job was begun, by this machine's clock, and how long it took or has taken so far."""
    if not details.start_time:
        return "", ""
    began = details.start_time / 1000
    ended = details.end_time / 1000 if details.end_time else time.time()
    return datetime.fromtimestamp(began).strftime("%Y-%m-%d %H:%M:%S"), duration(max(0.0, ended - began))


def _says_unknown(error: Exception) -> bool:
    """Whether the job server answered that there is no such job."""
    return "status code 404" in str(error) and "does not exist" in str(error)


def _broken_connections() -> tuple[type[Exception], ...]:
    """The exceptions of a log that breaks off; Ray makes RuntimeErrors of some."""
    import aiohttp

    return (OSError, RuntimeError, aiohttp.ClientError)


def _one_line(text: str | None) -> str:
    return " ".join((text or "it gives no reason").split())
