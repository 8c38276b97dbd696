"""`moe-dist submit`: ships the working tree to a Ray cluster, runs `moe-dist run` there and follows the log."""

from __future__ import annotations

import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_dist.data.storage.transfer import without_secrets
from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.job import Job, dump_job, load_job
from moe_dist.launch.job_server import ClusterNode, connect, living_nodes, raising_user_errors
from moe_dist.launch.jobs import RESUME, RUN, ClusterJob
from moe_dist.launch.shipping import pack_tree
from moe_dist.paths import is_url
from moe_dist.places import MLFLOW, RUNS
from moe_dist.record.run_place import RunPlace
from moe_dist.signals import GO_ON, exit_code

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

YOUNG_CLUSTER_SECONDS = 180
"""How long a cluster that has just started may take to accept its first job."""

SHIPPED_JOB = "submitted_job.yaml"
"""The name of the resolved job in the shipped tree. It is resolved here, where its relative paths are valid."""


def submit(
    job_path: Path,
    overrides: list[str],
    address: str,
    *,
    follow: bool,
    wait: bool = False,
    out: RunPlace | None = None,
    resume: bool = False,
) -> int:
    """Run a job on the cluster whose job server is at `address`.

    Returns the job's exit code, or 0 at once without `follow` (print its log) and `wait` (do not). The current
    directory is shipped, and paths in the job are relative to it, as for `moe-dist run`.

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
    go_on += [word for override in overrides for word in ("--set", override)]
    go_on += (["--follow"] if follow else []) + (["--wait"] if wait else [])
    job_there = ship(
        client,
        command,
        root=Path.cwd(),
        name=job.name,
        files=files,
        environment=job_environment(run, out) | mlflow_environment() | {GO_ON: shlex.join(go_on)},
        about={RUN: str(run), RESUME: shlex.join(go_on)},
    )
    print(f"submitted {job_there.submission} to {client.get_address()}")
    return await_end(job_there, follow=follow, wait=wait)


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


def mlflow_environment() -> dict[str, str]:
    """The address of this shell's MLflow server for the job, which anybody who sees the cluster's jobs may read."""
    uri = os.environ.get(MLFLOW, "")
    if not uri.startswith(("http://", "https://")):  # a database of this machine
        return {}
    if without_secrets(uri) != uri:
        print(f"! {MLFLOW} holds a user, a password or a query and is not given to the job; set it on the cluster")
        return {}
    return {MLFLOW: uri}


def lacking(job: Job, nodes: Sequence[ClusterNode]) -> list[str]:
    """Sentences about workers and tasks of the job for which `nodes` have no room; Ray would wait without a message.

    They are no errors, because an autoscaled cluster only starts nodes for a job.
    """
    asked = job.resources
    needs = [
        ("worker", job.fewest_workers, {"CPU": asked.cpus_per_worker, "GPU": asked.gpus_per_worker}),
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


def await_end(job: ClusterJob, *, follow: bool, wait: bool = False) -> int:
    """Print the job's log with `follow`, or wait for its end without. Returns its exit code; 0 at once without both."""
    if not (follow or wait):
        print(job.commands())
        return 0
    try:
        return job.follow() if follow else job.wait()
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{job.commands()}")
        return exit_code()


def ship(
    client: JobSubmissionClient,
    command: Sequence[str],
    *,
    root: Path,
    name: str,
    files: Mapping[str, str],
    environment: Mapping[str, str],
    about: Mapping[str, str] = {},
) -> ClusterJob:
    """Ship the tree below `root` to the cluster, where `command` is run in it.

    files: further text files to ship, by name. environment: variables of the command and of the workers that it starts.
    about: what the cluster shall know of the job, as `moe_dist.launch.jobs` reads it.
    """
    submission = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="moe-dist-") as folder:
        with raising_disk_errors(Path(folder).parent, "the tree to ship", "submit again"):
            tree = pack_tree(root, Path(folder), files)
        runtime = {"working_dir": str(tree), "env_vars": dict(environment)}
        entrypoint = shlex.join(command)
        with raising_user_errors(client.get_address()):
            start_job(
                client, entrypoint=entrypoint, submission_id=submission, runtime_env=runtime, metadata=dict(about)
            )
    return ClusterJob(client, submission)
