"""`moe-dist submit`: ships the working tree to a Ray cluster, runs `moe-dist run` there and follows the log.

Ray itself reads the token of the job server (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN). It is not
an argument here, so that it does not appear in a command line, a log or a job's description.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.job import Job, dump_job, load_job
from moe_dist.launch.shipping import pack_tree
from moe_dist.paths import is_url
from moe_dist.places import RUNS
from moe_dist.record.run_place import RunPlace
from moe_dist.signals import GO_ON, exit_code

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

YOUNG_CLUSTER_SECONDS = 180
"""How long a cluster that has just started may take to accept its first job."""

CONNECTION_SECONDS = 20.0
"""How long the port of a job server may take to accept a connection."""

NO_SERVER = (
    "no job server answers at {}: is the cluster up, and is its port forwarded (`ray dashboard ray_cluster.yaml`)?"
)

MOST_NODES = 10_000
"""The most nodes that Ray lists. Its default is 100, which may all be dead nodes of an autoscaled cluster."""

SHIPPED_JOB = "submitted_job.yaml"
"""The name of the resolved job in the shipped tree. It is resolved here, where its relative paths are valid."""


@dataclass(frozen=True)
class ClusterNode:
    """A living node: its address, and its amount of each resource (CPU, GPU, ...)."""

    address: str
    resources: Mapping[str, float]


def submit(
    job_path: Path,
    overrides: list[str],
    address: str,
    *,
    follow: bool,
    out: RunPlace | None = None,
    resume: bool = False,
) -> int:
    """Run a job on the cluster whose job server is at `address`. Returns the job's exit code, or 0 without `follow`.

    The current directory is shipped, and paths in the job are relative to it, as for `moe-dist run`.

    out: the run directory: a folder that every node can reach, or a URL; it may be None for a cluster on this machine.
    resume: continue the run in `out`.

    Raises UserError if the job, the address or the token is wrong, or the tree is too large.
    """
    job = load_job(job_path, overrides)
    if resume and out is None:
        raise UserError("--resume: say with --out which run to go on with")
    client = connect(address)
    nodes = living_nodes(address)
    run = run_directory(job, nodes, out)
    for notice in lacking(job, nodes):
        print(f"! {notice}")
    print(f"results go to {run}")
    # -m and not the `moe-dist` script: the shipped package then comes before an installed one
    command = ["python", "-m", "moe_dist.cli", "run", SHIPPED_JOB, "--out", str(run)]
    command += ["--resume"] if resume else []
    files = {SHIPPED_JOB: dump_job(job)}
    go_on = ["moe-dist", "submit", str(job_path), "--address", address, "--out", str(run), "--resume"]
    go_on += [word for override in overrides for word in ("--set", override)] + (["--follow"] if follow else [])
    return submit_command(
        client,
        command,
        root=Path.cwd(),
        name=job.name,
        files=files,
        environment=job_environment(run, out) | {GO_ON: shlex.join(go_on)},
        follow=follow,
    )


def run_directory(job: Job, nodes: Sequence[ClusterNode], out: RunPlace | None) -> str:
    """The run directory, to which every node writes: `out`, or one below runs/ for a cluster on this machine.

    Whether the cluster is on this machine follows from the nodes' addresses, because 127.0.0.1 as the server's address
    may be a forwarded port. Raises UserError for another cluster without `out`.
    """
    if out is not None:
        return out.url or str(out.folder.absolute())
    if all(node.address.startswith("127.") for node in nodes):
        return str((RUNS / job.name).absolute() / time.strftime("%Y%m%d-%H%M%S"))
    raise UserError(
        "--out is missing: all nodes of the cluster write to the run directory, so name one on storage that every node "
        f"reaches, for example --out /shared/runs/{job.name} or --out s3://bucket/runs/{job.name}"
    )


def job_environment(run: str, out: RunPlace | None) -> dict[str, str]:
    """The environment variables of a job, of which MOE_DIST_CACHE says where shards are kept.

    It is this shell's MOE_DIST_CACHE, or a place beside the run. The job's current directory would not do: each node
    has a copy of the shipped tree, which is removed after the job. What a node keeps for itself is its own matter.
    """
    beside = run.rpartition("/")[0] if out is not None else str(RUNS.absolute())
    cache = os.environ.get("MOE_DIST_CACHE", f"{beside}/cache")
    return {"MOE_DIST_CACHE": cache if is_url(cache) else str(Path(cache).absolute()), "PYTHONUNBUFFERED": "1"}


def lacking(job: Job, nodes: Sequence[ClusterNode]) -> list[str]:
    """Sentences about workers and tasks of the job for which `nodes` have no room; Ray would wait without a message.

    They are no errors, because an autoscaled cluster only starts nodes for a job.
    """
    asked = job.resources
    needs = [
        ("worker", job.workers, {"CPU": asked.cpus_per_worker, "GPU": asked.gpus_per_worker}),
        ("task", 1, {"CPU": asked.cpus_per_task, "GPU": asked.gpus_per_task}),
    ]
    return [
        f"the cluster's {len(nodes)} nodes hold {room} {kind}s of {need['CPU']:g} CPUs and {need['GPU']:g} GPUs, the "
        f"job needs {count}: it waits until the cluster grows; if it cannot, lower `workers` or `resources`"
        for kind, count, need in needs
        if (room := sum(_fitting(need, node.resources) for node in nodes)) < count
    ]


def _fitting(need: Mapping[str, float], have: Mapping[str, float]) -> int:
    """How many workers that need `need` fit on a node that has `have`."""
    return int(min(have.get(kind, 0.0) / amount for kind, amount in need.items() if amount))


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at `address`. Raises UserError if none answers, or it refuses the client."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("submit needs Ray, which is not installed: pip install 'ray[default]'") from None
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"--address {address}: give the job server's address with its scheme, as in http://127.0.0.1:8265"
        )
    _require_open_port(address)
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray prefers these to the address that it is given
    with _raising_user_errors(address):
        return JobSubmissionClient(address)


def _require_open_port(address: str) -> None:
    """Raise UserError unless the job server's port takes a connection, for which Ray's client would wait on and on."""
    parts = urlsplit(address)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname or "", port), CONNECTION_SECONDS).close()
    except ValueError:
        raise UserError(f"--address {address}: holds no port; write it as http://127.0.0.1:8265") from None
    except OSError:
        raise UserError(NO_SERVER.format(address)) from None


def living_nodes(address: str) -> list[ClusterNode]:
    """The nodes of the cluster that are alive. Raises UserError if its state API does not answer."""
    from ray.util.state import list_nodes

    with _raising_user_errors(address):  # filtered below, because Ray raises if its own filter drops nodes
        nodes = list_nodes(address=address, detail=True, limit=MOST_NODES)
    return [ClusterNode(node.node_ip, node.resources_total or {}) for node in nodes if node.state == "ALIVE"]


def start_job(client: JobSubmissionClient, **job: Any) -> None:
    """Submit a job. Try again while a new cluster has no agent, for which its job server answers 500."""
    last_try = time.monotonic() + YOUNG_CLUSTER_SECONDS
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > last_try:
                raise
            time.sleep(1)


def submit_command(
    client: JobSubmissionClient,
    command: Sequence[str],
    *,
    root: Path,
    name: str,
    files: Mapping[str, str],
    environment: Mapping[str, str],
    follow: bool,
) -> int:
    """Ship the tree below `root` and run `command` in it. Returns its exit code, or 0 without `follow`.

    files: further text files to ship, by name. environment: variables of the command and of the workers that it starts.
    """
    submission = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    address = client.get_address()
    with tempfile.TemporaryDirectory(prefix="moe-dist-") as folder:
        with raising_disk_errors(Path(folder).parent, "the tree to ship", "submit again"):
            tree = pack_tree(root, Path(folder), files)
        runtime = {"working_dir": str(tree), "env_vars": dict(environment)}
        with _raising_user_errors(address):
            start_job(client, entrypoint=shlex.join(command), submission_id=submission, runtime_env=runtime)
    print(f"submitted {submission} to {address}")
    if not follow:
        print(_afterwards(address, submission))
        return 0
    try:
        with _raising_user_errors(address):
            return follow_job(client, submission)
    except UserError as error:
        raise UserError(f"{error}; the job may go on: ray job status --address {address} {submission}") from None
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{_afterwards(address, submission)}")
        return exit_code()


def follow_job(client: JobSubmissionClient, submission: str) -> int:
    """Print a job's log until it ends. Returns its exit code, or 1 if it was stopped or did not start."""

    async def print_log() -> None:
        async for text in client.tail_job_logs(submission):
            print(text, end="", flush=True)

    asyncio.run(print_log())
    details = client.get_job_info(submission)
    print(f"{submission}: {details.status.value.lower()}")
    if details.status.value == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None:
        print(details.message)
    return details.driver_exit_code or 1


def _afterwards(address: str, submission: str) -> str:
    commands = {"follow": f"logs --follow --address {address}", "stop": f"stop --address {address}"}
    return "\n".join(f"  {what} it: ray job {command} {submission}" for what, command in commands.items())


@contextlib.contextmanager
def _raising_user_errors(address: str) -> Iterator[None]:
    """Raise UserError for exceptions of Ray in the block, which uses the job server at `address`.

    Ray raises AuthenticationError if the token is missing or wrong, ConnectionError (an OSError, as those of requests)
    if nothing answers, RuntimeError with the server's words if it refuses otherwise. Its state API has own exceptions.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.util.state.exception import DataSourceUnavailable, RayStateApiException

    try:
        yield
    except AuthenticationError as error:
        raise UserError(_refusal(address, str(error))) from None
    except ConnectionError:
        raise UserError(NO_SERVER.format(address)) from None
    except (RayStateApiException, DataSourceUnavailable) as error:
        raise UserError(
            f"{address} does not tell which nodes the cluster has; check the cluster, and submit again. "
            f"It said: {' '.join(str(error).split())}"
        ) from None
    except (OSError, RuntimeError, RayError) as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}") from None


def _refusal(address: str, reason: str) -> str:
    """A sentence on why the job server answered 401 or 403, or Ray had no token to send."""
    variables = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    if reason.startswith("Authentication failed"):
        return f"{address} refuses the token (403): it is not this cluster's; set {variables}"
    if reason.startswith("Authentication required"):
        return f"{address} asks for a token (401) and none was sent: set {variables}"
    return f"no token to send to {address}: set {variables}, which must not be empty"
