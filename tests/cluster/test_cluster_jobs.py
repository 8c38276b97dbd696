"""`moe-dist jobs` and what follows a submission, against a job server that is asked nothing but what a test says."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.errors import UserError
from moe_dist.launch import job_server
from moe_dist.launch import jobs as following
from moe_dist.launch.jobs import ClusterJob

ADDRESS = "http://head:8265"
GO_ON = "moe-dist submit demo --address http://head:8265 --out /shared/x --resume"
UNKNOWN = RuntimeError("Request failed with status code 404: Job demo-1 does not exist.")


def details(status: str, exit_code: int | None = None, **further: Any) -> SimpleNamespace:
    """A job as the job server describes it."""
    about = {
        "submission_id": "demo-1",
        "entrypoint": "python -m moe_dist.cli run submitted_job.yaml",
        "message": "why it\nended",
        "start_time": 1_700_000_000_000,
        "end_time": 1_700_000_090_000 if status in following.ENDED else None,
        "metadata": {"run": "/shared/x", "resume": GO_ON},
    }
    return SimpleNamespace(**about | {"status": SimpleNamespace(value=status), "driver_exit_code": exit_code} | further)


class StubClient:
    """A job server whose answers about a job come in order, the last one again and again.

    An answer is the job's details, or an exception. logs: what the log gives each time it is followed; all but the last
    break off.
    """

    def __init__(self, answers: list[Any], logs: list[list[str]] | None = None) -> None:
        self.answers, self.logs = answers, logs or [["first\nlast\n"]]
        self.stopped: list[str] = []

    def get_address(self) -> str:
        return ADDRESS

    def get_job_info(self, submission: str) -> SimpleNamespace:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.answers

    def get_job_logs(self, submission: str) -> str:
        return "".join(self.logs[-1])

    def stop_job(self, submission: str) -> bool:
        self.stopped.append(submission)
        return True

    async def tail_job_logs(self, submission: str) -> AsyncIterator[str]:
        breaks_off = len(self.logs) > 1
        for text in self.logs.pop(0) if breaks_off else self.logs[0]:
            yield text
        if breaks_off:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.fixture(autouse=True)
def a_clock_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only while the code sleeps."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(following, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0], time=time.time))


def follow(client: StubClient) -> int:
    return ClusterJob(client, "demo-1").follow()  # type: ignore[arg-type]


def test_a_log_that_breaks_off_is_gone_on_with_and_nothing_is_printed_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    running, lost = details("RUNNING"), ConnectionError("Failed to connect")
    logs = [["one\ntwo\n"], ["one\n", "two\nth"], ["one\ntwo\n", "three\n"]]
    assert follow(StubClient([running, lost, lost, running, running, details("SUCCEEDED", 0)], logs)) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\ndemo-1: succeeded\n"


def test_a_head_that_is_gone_is_a_sentence_with_the_command_that_goes_on() -> None:
    lost = ConnectionError("Failed to connect to Ray at address: http://head:8265.")
    with pytest.raises(UserError) as told:
        follow(StubClient([details("RUNNING"), lost], [["one\n"], ["one\ntwo\n"]]))
    assert str(told.value) == (
        "http://head:8265 does not answer any more, so it is not known how demo-1 stands: if the cluster's head has "
        "died, the job has ended, and if only the way there is broken, it goes on; what it has written stays in "
        f"/shared/x, and on a cluster that is up this goes on: {GO_ON}"
    )


def test_a_cluster_that_was_started_anew_has_ended_the_job() -> None:
    with pytest.raises(UserError, match="demo-1 has ended: the cluster was started anew") as told:
        follow(StubClient([details("RUNNING"), ConnectionError("gone"), UNKNOWN], [["one\n"], ["one\ntwo\n"]]))
    assert str(told.value).endswith(f"this goes on: {GO_ON}")


def test_a_job_that_is_not_started_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    pending = details("PENDING", message="waits for resources:\n1 CPU")
    client = StubClient([*[pending] * 40, details("SUCCEEDED", 0)])
    assert ClusterJob(client, "demo-1").wait() == 0  # type: ignore[arg-type]
    told = "demo-1 waits for the cluster to start it: waits for resources: 1 CPU\n"
    assert capsys.readouterr().out == told + "demo-1: succeeded\n"


def jobs(monkeypatch: pytest.MonkeyPatch, client: StubClient, *words: str) -> Any:
    """The outcome of a command `moe-dist jobs` at that job server."""
    monkeypatch.setattr(job_server, "connect", lambda address: client)
    return CliRunner().invoke(app, ["jobs", *words, "--address", ADDRESS])


def test_the_list_has_the_newest_first_and_no_foreign_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = details("RUNNING", submission_id="other-2", start_time=1_700_000_500_000, metadata=None)
    client = StubClient([details("FAILED", 3), details("RUNNING", submission_id=None), newer])
    outcome = jobs(monkeypatch, client, "list")
    assert outcome.exit_code == 0
    lines = [line for line in outcome.stdout.splitlines() if "-1" in line or "-2" in line]
    assert "other-2" in lines[0] and "running" in lines[0]
    assert "demo-1" in lines[1] and "failed" in lines[1] and "90.0 s" in lines[1] and "/shared/x" in lines[1]


def test_no_jobs_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no job was submitted since" in jobs(monkeypatch, StubClient([]), "list").stdout


@pytest.mark.parametrize(
    ("now", "code"), [(details("RUNNING"), 0), (details("SUCCEEDED", 0), 0), (details("FAILED", 3), 3)]
)
def test_the_exit_code_of_status_is_the_jobs_once_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, now: SimpleNamespace, code: int
) -> None:
    outcome = jobs(monkeypatch, StubClient([now]), "status", "demo-1")
    assert outcome.exit_code == code
    assert ("last line" in outcome.stdout) == (now.status.value == "RUNNING")
    assert (GO_ON in outcome.stdout) == (code != 0)
    assert "/shared/x" in outcome.stdout


def test_status_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient([details("RUNNING"), details("RUNNING"), details("RUNNING"), details("FAILED", 2)])
    assert jobs(monkeypatch, client, "status", "--wait", "demo-1").exit_code == 2


def test_logs_are_printed_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = jobs(monkeypatch, StubClient([details("FAILED", 3)]), "logs", "demo-1")
    assert (outcome.stdout, outcome.exit_code) == ("first\nlast\n", 0)
    outcome = jobs(monkeypatch, StubClient([details("FAILED", 3)]), "logs", "--follow", "demo-1")
    assert (outcome.stdout, outcome.exit_code) == ("first\nlast\ndemo-1: failed\n", 3)


def test_stopping_waits_for_the_end_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient([*[details("RUNNING")] * 4, details("STOPPED")])
    outcome = jobs(monkeypatch, client, "stop", "demo-1")
    assert client.stopped == ["demo-1"]
    assert outcome.stdout == f"demo-1: stopped\n  go on with it: {GO_ON}\n"
    client = StubClient([details("SUCCEEDED", 0)])
    assert "had ended before: succeeded" in jobs(monkeypatch, client, "stop", "demo-1").stdout
    assert client.stopped == []


def test_a_job_that_does_not_end_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = jobs(monkeypatch, StubClient([details("RUNNING")]), "stop", "demo-1")
    assert isinstance(outcome.exception, UserError)
    assert "has not ended 30 s after it was asked to" in str(outcome.exception)


@pytest.mark.parametrize("action", ["logs", "status", "stop"])
def test_a_job_that_is_not_known_is_a_sentence(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    outcome = jobs(monkeypatch, StubClient([UNKNOWN]), action, "demo-1")
    assert isinstance(outcome.exception, UserError)
    assert str(outcome.exception).startswith(f"{ADDRESS} knows no job demo-1: `moe-dist jobs list --address {ADDRESS}`")
