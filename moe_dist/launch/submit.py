"""`moe-dist submit`: ship the working tree to a Ray cluster, run `moe-dist run` on its head, follow the log.

The job server answers to a token, which Ray itself reads (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or
RAY_AUTH_TOKEN). It is never an argument here, so that it is never in a command line, a log or a job's description.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
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
from moe_dist.places import RUNS
from moe_dist.signals import GO_ON, exit_code

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

YOUNG_CLUSTER_SECONDS = 180
"""How long a cluster that has just come up is given to take its first job."""

MOST_NODES = 10_000
"""As many as Ray lists at most; its default, 100, may all be dead ones of a cluster that grows and shrinks."""

SHIPPED_JOB = "submitted_job.yaml"
"""The job as resolved here, in the shipped tree: relative paths and recipes are looked up where the user is."""


@dataclass(frozen=True)
class ClusterNode:
    """A living node: its address, and how much it has of each resource (CPU, GPU, ...)."""

    address: str
    resources: Mapping[str, float]


def submit(
    job_path: Path, overrides: list[str], address: str, *, follow: bool, out: Path | None = None, resume: bool = False
) -> int:
    """Run a job on the cluster whose job server is at `address`; the job's exit code, or 0 where it is not followed.

    The current directory is shipped, and paths in the job are taken from it, as `moe-dist run` would. out: the run
    directory, on storage that every node reaches; it may be left out for a cluster on this machine. resume: go on with
    the run that is there.
    Raises UserError where the job, the address or the token is wrong, or the tree is too large.
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


def run_directory(job: Job, nodes: Sequence[ClusterNode], out: Path | None) -> Path:
    """Where the job's results go, absolute: every node writes there. Raises UserError where only the user can know.

    The address submitted to does not tell: 127.0.0.1 may be a port forwarded from afar. The nodes' own do.
    """
    if out is not None:
        return out.absolute()
    if all(node.address.startswith("127.") for node in nodes):
        return (RUNS / job.name).absolute() / time.strftime("%Y%m%d-%H%M%S")
    raise UserError(
        "--out is missing: all nodes of the cluster write to the run directory, so name one on storage that every node "
        f"reaches, for example --out /shared/runs/{job.name}"
    )


def job_environment(run: Path, out: Path | None) -> dict[str, str]:
    """What a job's processes are told: above all where shards that every node reaches are kept.

    That is this shell's MOE_DIST_CACHE, or a folder beside the run. On the cluster the shipped tree is the current
    directory, each node has its own copy, and all go when the job ends.
    """
    beside = run.parent if out is not None else RUNS.absolute()
    cache = os.environ.get("MOE_DIST_CACHE", str(beside / "cache"))
    return {"MOE_DIST_CACHE": str(Path(cache).absolute()), "PYTHONUNBUFFERED": "1"}


def lacking(job: Job, nodes: Sequence[ClusterNode]) -> list[str]:
    """What `nodes` cannot hold of the job, in sentences. Ray would wait without a word.

    Not a refusal: an autoscaled cluster has few nodes until a job asks for them.
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
    """How many of `need` one node holds at once; a worker never spans two nodes."""
    return int(min(have.get(kind, 0.0) / amount for kind, amount in need.items() if amount))


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at `address`. Raises UserError where there is none or it refuses."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("submit needs Ray, which is not installed: pip install 'ray[default]'") from None
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"--address {address}: give the job server's address with its scheme, as in http://127.0.0.1:8265"
        )
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray would go there instead of to the address it is given
    with _raising_user_errors(address):
        return JobSubmissionClient(address)


def living_nodes(address: str) -> list[ClusterNode]:
    """The nodes that are alive, as the cluster's state API tells. Raises UserError where it does not."""
    from ray.util.state import list_nodes

    with _raising_user_errors(address):  # not filtered by Ray, which then calls the dead ones missing and raises
        nodes = list_nodes(address=address, detail=True, limit=MOST_NODES)
    return [ClusterNode(node.node_ip, node.resources_total or {}) for node in nodes if node.state == "ALIVE"]


def start_job(client: JobSubmissionClient, **job: Any) -> None:
    """Submit, and again while the cluster is so young that no agent has registered; its job server says so by a 500."""
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
    """Ship the tree below `root`, run `command` in it on the cluster; its exit code, or 0 where it is not followed.

    files: text files to ship besides, by name; environment: variables of the command and of all workers it starts.
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
    """Print a job's log until it ends; its exit code, or 1 where it ended without one (stopped, or never started)."""

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
    """Turn what Ray raises when a job server cannot be used into a sentence.

    Ray raises AuthenticationError for a missing or wrong token, ConnectionError (an OSError, as are those of requests)
    where nothing answers, and RuntimeError, with the server's words, for every other refusal; its state API raises
    exceptions of its own.
    """
    from ray.exceptions import AuthenticationError, RayError
    from ray.util.state.exception import DataSourceUnavailable, RayStateApiException

    try:
        yield
    except AuthenticationError as error:
        raise UserError(_refusal(address, str(error))) from None
    except ConnectionError:
        raise UserError(
            f"no job server answers at {address}: is the cluster up, and is its port forwarded (`ray dashboard "
            f"ray_cluster.yaml`)?"
        ) from None
    except (RayStateApiException, DataSourceUnavailable) as error:
        raise UserError(
            f"{address} does not tell which nodes the cluster has; look there whether it is whole, and submit again. "
            f"It said: {' '.join(str(error).split())}"
        ) from None
    except (OSError, RuntimeError, RayError) as error:
        raise UserError(f"{address}: {' '.join(str(error).split())}") from None


def _refusal(address: str, reason: str) -> str:
    """Why the job server said 401 or 403, or why Ray had no token to send."""
    variables = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    if reason.startswith("Authentication failed"):
        return f"{address} refuses the token (403): it is not this cluster's; set {variables}"
    if reason.startswith("Authentication required"):
        return f"{address} asks for a token (401) and none was sent: set {variables}"
    return f"no token to send to {address}: set {variables}, which must not be empty"
