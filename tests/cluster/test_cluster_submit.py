"""What submit says and returns, against stub clients and job servers that refuse."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_dist.errors import UserError
from moe_dist.job import Job, load_job
from moe_dist.launch import submit as submitting
from moe_dist.launch.submit import ClusterNode
from moe_dist.record.run_place import RunPlace

TOKEN = "5f0c1d-this-is-the-token"


class RefusingServer(ThreadingHTTPServer):
    """A job server that answers everything with one status, and remembers what it was asked."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.status, self.body = status, body
        self.asked: list[str] = []
        self.tokens: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Refusal(BaseHTTPRequestHandler):
    server: RefusingServer

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    do_POST = do_PUT = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the test's console."""


@pytest.fixture
def serve() -> Iterator[Callable[[int, str], RefusingServer]]:
    servers: list[RefusingServer] = []

    def start(status: int, body: str) -> RefusingServer:
        server = RefusingServer(status, body)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_ray_variables(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("RAY_", "MOE_DIST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(repository)


@pytest.fixture
def job(repository: Path) -> Job:
    return load_job(repository / "jobs/demo.yaml")


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (
            401,
            "Unauthorized: Missing authentication token",
            "asks for a token .401. and none was sent: set RAY_AUTH_MODE",
        ),
        (403, "Forbidden: Invalid authentication token", "refuses the token .403.: it is not this cluster's"),
        (500, "out of order", "500"),
        (200, "<html>a web page</html>", "http://127.0.0.1"),
    ],
)
def test_a_server_that_refuses_is_a_sentence(
    serve: Callable[[int, str], RefusingServer], status: int, body: str, sentence: str
) -> None:
    server = serve(status, body)
    with pytest.raises(UserError, match=sentence) as refused:
        submitting.submit(Path("jobs/demo.yaml"), [], server.address, follow=True)
    assert "\n" not in str(refused.value)
    assert server.asked == ["GET /api/version"], "nothing was uploaded and nothing submitted"


def node(address: str, state: str) -> dict[str, Any]:
    """A node as the state API of a cluster tells it."""
    resources = {"CPU": 2.0} if state == "ALIVE" else {}
    about = {"node_id": address, "node_ip": address, "state": state, "resources_total": resources}
    return about | {"is_head_node": False, "state_message": None, "node_name": address, "labels": {}}


def test_dead_nodes_are_left_out_here_because_the_state_api_cannot(
    serve: Callable[[int, str], RefusingServer],
) -> None:
    """Asked for the living alone, it calls the dead ones missing output, and Ray's client raises."""
    nodes = [node("10.0.0.1", "ALIVE"), node("10.0.0.2", "DEAD"), node("10.0.0.3", "ALIVE")]
    listed = {
        "total": 3,
        "num_after_truncation": 3,
        "num_filtered": 3,
        "result": nodes,
        "partial_failure_warning": None,
    }
    server = serve(200, json.dumps({"result": True, "msg": "", "data": {"result": listed}}))
    living = [ClusterNode("10.0.0.1", {"CPU": 2.0}), ClusterNode("10.0.0.3", {"CPU": 2.0})]
    assert submitting.living_nodes(server.address) == living
    assert "ALIVE" not in server.asked[-1]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, {"result": False, "msg": "the source of nodes\nis out of order", "data": {}}),
        (200, {"total": 3, "num_after_truncation": 1, "result": [], "partial_failure_warning": None}),
        (200, {"total": 0, "num_after_truncation": 0, "result": [], "partial_failure_warning": "GCS did not answer"}),
    ],
)
def test_a_cluster_that_does_not_tell_its_nodes_is_a_sentence(
    serve: Callable[[int, str], RefusingServer], status: int, answer: dict[str, Any]
) -> None:
    body = answer if status == 500 else {"result": True, "msg": "", "data": {"result": answer}}
    server = serve(status, json.dumps(body))
    with pytest.raises(UserError, match=f"{server.address} does not tell which nodes .*submit again. It said") as told:
        submitting.living_nodes(server.address)
    assert "\n" not in str(told.value)


def test_no_server_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"no job server answers at http://127\.0\.0\.1:9: is the cluster up"):
        submitting.connect("http://127.0.0.1:9")


def test_a_host_that_never_answers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(place: tuple[str, int], timeout: float) -> None:
        assert place == ("10.255.255.1", 8265) and timeout <= 30
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", silent)
    with pytest.raises(UserError, match=r"no job server answers at http://10\.255\.255\.1:8265"):
        submitting.connect("http://10.255.255.1:8265")


def test_an_address_without_a_port_that_is_one_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"--address http://head:port: holds no port"):
        submitting.connect("http://head:port")


def test_the_address_given_wins_over_the_environment(
    serve: Callable[[int, str], RefusingServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(401, "Unauthorized")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="401"):
        submitting.connect(server.address)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "auto"])
def test_an_address_without_http_is_a_sentence(address: str) -> None:
    with pytest.raises(UserError, match="give the job server's address with its scheme"):
        submitting.connect(address)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RAY_AUTH_TOKEN": TOKEN}, "refuses the token (403)"),
        pytest.param({"RAY_AUTH_TOKEN_PATH": "/nonexistent"}, "no token to send", marks=pytest.mark.slow),
    ],
)
def test_the_token_is_sent_and_never_printed(
    serve: Callable[[int, str], RefusingServer], repository: Path, variables: dict[str, str], sentence: str
) -> None:
    """In a process of its own: Ray reads the token once per process."""
    server = serve(403, "Forbidden: Invalid authentication token")
    program = f"from moe_dist.launch.submit import connect; connect({server.address!r})"
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"RAY_AUTH_MODE": "token"} | variables,
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode != 0
    assert sentence in outcome.stderr
    assert TOKEN not in outcome.stdout + outcome.stderr
    assert server.tokens == ([f"Bearer {TOKEN}"] if "RAY_AUTH_TOKEN" in variables else [])


def test_the_job_is_shipped_as_resolved_here(monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path) -> None:
    """Paths, overrides and all: the tree on the head is neither this directory nor where the data is."""
    client = StubClient("SUCCEEDED", 0)
    monkeypatch.setattr(submitting, "connect", lambda address: client)
    monkeypatch.setattr(submitting, "living_nodes", lambda address: [ClusterNode("10.0.0.7", {"CPU": 8})])
    overrides = ["workers=2", "data.source=digits folder"]
    job_path = tmp_path / "elsewhere.yaml"
    job_path.write_text((repository / "jobs/demo.yaml").read_text())
    run = Path("/shared/runs/x")
    assert submitting.submit(job_path, overrides, "http://head:8265", follow=True, out=RunPlace(run), resume=True) == 0
    command = "python -m moe_dist.cli run submitted_job.yaml --out /shared/runs/x --resume"
    assert client.submitted["entrypoint"] == command
    again = ["moe-dist", "submit", str(job_path), "--address", "http://head:8265", "--out", str(run), "--resume"]
    again += ["--set", "workers=2", "--set", "data.source=digits folder", "--follow"]
    assert shlex.split(client.submitted["runtime_env"]["env_vars"]["MOE_DIST_GO_ON"]) == again
    assert client.submitted["metadata"] == {"run": str(run), "resume": shlex.join(again)}
    (tmp_path / "arrived.yaml").write_bytes(client.shipped["submitted_job.yaml"])
    assert load_job(tmp_path / "arrived.yaml") == load_job(job_path, overrides)
    assert load_job(tmp_path / "arrived.yaml").data.source == repository / "digits folder"
    assert "moe_dist/data/order.py" in client.shipped


def test_results_stay_here_only_where_all_nodes_are(job: Job, repository: Path) -> None:
    here, afar = ClusterNode("127.0.0.2", {}), ClusterNode("10.0.0.7", {})
    assert Path(submitting.run_directory(job, [here], None)).parent == repository / "runs" / "demo"
    assert submitting.run_directory(job, [here, afar], RunPlace(Path("/shared/x"))) == "/shared/x"
    assert submitting.run_directory(job, [here, afar], RunPlace(Path("/node/x"), "s3://b/x")) == "s3://b/x"
    with pytest.raises(UserError, match="--out is missing"):
        submitting.run_directory(job, [here, afar], None)


def test_shards_are_kept_where_every_node_reaches_them(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    def cache(run: str, out: str | None) -> str:
        return submitting.job_environment(run, RunPlace(Path(out)) if out else None)["MOE_DIST_CACHE"]

    assert cache("s3://bucket/runs/x", "/node/x") == "s3://bucket/runs/cache"
    assert cache("/shared/runs/x", "/shared/runs/x") == "/shared/runs/cache"
    assert cache(f"{repository}/runs/demo/now", None) == f"{repository}/runs/cache"
    monkeypatch.setenv("MOE_DIST_CACHE", "/fast/cache")
    assert cache("/shared/runs/x", "/shared/runs/x") == "/fast/cache"


def test_what_a_cluster_lacks_is_counted_per_node(repository: Path) -> None:
    settings = [
        "workers=4",
        "resources.cpus_per_worker=3",
        "resources.gpus_per_worker=1",
        "resources.gpus_per_task=0.5",
    ]
    job = load_job(repository / "jobs/demo.yaml", settings)
    # 8 CPUs and 1 GPU hold min(8 // 3, 1) = 1 worker; 5 CPUs and 4 GPUs hold min(5 // 3, 4) = 1; no GPU holds none
    nodes = [{"CPU": 8, "GPU": 1}, {"CPU": 5, "GPU": 4}, {"CPU": 64}]
    (notice,) = submitting.lacking(job, [ClusterNode("10.0.0.1", node) for node in nodes])
    assert notice.startswith("the cluster's 3 nodes hold 2 workers of 3 CPUs and 1 GPUs, the job needs 4: it waits")
    # 12 CPUs and 4 GPUs hold 4 workers, and a task
    assert submitting.lacking(job, [ClusterNode("10.0.0.1", {"CPU": 12, "GPU": 4})]) == []


class StubClient:
    """A job server that takes every job; the log is one line and the job ends as told."""

    def __init__(self, status: str, exit_code: int | None, interrupt: bool = False) -> None:
        self.details = SimpleNamespace(
            status=SimpleNamespace(value=status), driver_exit_code=exit_code, message="why it ended", metadata=None
        )
        self.interrupt = interrupt
        self.submitted: dict[str, Any] = {}
        self.shipped: dict[str, bytes] = {}

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, **request: Any) -> None:
        with zipfile.ZipFile(request["runtime_env"]["working_dir"]) as archive:
            self.shipped = {name: archive.read(name) for name in archive.namelist()}
        self.submitted = request

    async def tail_job_logs(self, submission: str) -> AsyncIterator[str]:
        yield "a line of the log [1/2]\n"
        if self.interrupt:
            raise KeyboardInterrupt

    def get_job_info(self, submission: str) -> SimpleNamespace:
        return self.details


def run_stub(client: StubClient, root: Path, follow: bool = True, wait: bool = False) -> int:
    job = submitting.ship(
        client,  # type: ignore[arg-type]
        ["python", "a b.py"],
        root=root,
        name="demo",
        files={},
        environment={"A": "1"},
    )
    return submitting.await_end(job, follow=follow, wait=wait)


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", None, 1), ("FAILED", 0, 1)],
)
def test_the_exit_code_is_the_jobs(
    status: str, exit_code: int | None, expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = StubClient(status, exit_code)
    assert run_stub(client, tmp_path) == expected
    printed = capsys.readouterr().out
    assert "a line of the log [1/2]\n" in printed
    assert ("why it ended" in printed) == (exit_code is None)
    assert client.submitted["entrypoint"] == "python 'a b.py'"
    assert client.submitted["submission_id"].startswith("demo-")
    assert client.submitted["runtime_env"]["env_vars"] == {"A": "1"}


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = StubClient("RUNNING", None, interrupt=True)
    assert run_stub(client, tmp_path) == 130
    printed = capsys.readouterr().out
    submission = client.submitted["submission_id"]
    assert "the job goes on" in printed
    assert f"  follow it: moe-dist jobs logs --follow --address http://head:8265 {submission}\n" in printed
    assert f"  stop it: moe-dist jobs stop --address http://head:8265 {submission}\n" in printed


def test_without_follow_it_returns_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stub(StubClient("RUNNING", None), tmp_path, follow=False) == 0
    printed = capsys.readouterr().out
    assert "moe-dist jobs logs --follow" in printed
    assert "a line of the log" not in printed


def test_waiting_gives_the_exit_code_without_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stub(StubClient("FAILED", 3), tmp_path, follow=False, wait=True) == 3
    printed = capsys.readouterr().out
    assert printed.endswith(": failed\n")
    assert "a line of the log" not in printed


class YoungClient:
    """A job server that has no agent for the first two submissions."""

    def __init__(self, says: str) -> None:
        self.says, self.asked = says, 0

    def submit_job(self, **job: str) -> str:
        self.asked += 1
        if self.asked <= 2:
            raise RuntimeError(f"Request failed with status code 500: {self.says}.")
        return job["submission_id"]


def test_a_cluster_without_an_agent_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting.time, "sleep", lambda seconds: None)
    young = YoungClient("No available agent to submit job, please try again later")
    submitting.start_job(young, submission_id="first")  # type: ignore[arg-type]
    assert young.asked == 3


def test_another_refusal_is_not_tried_again() -> None:
    broken = YoungClient("disk full")
    with pytest.raises(RuntimeError, match="disk full"):
        submitting.start_job(broken, submission_id="first")  # type: ignore[arg-type]
    assert broken.asked == 1
