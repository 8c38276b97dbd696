"""Several Ray nodes on this machine, with a token: `python cluster/local.py start --nodes 3`, `status`, `stop`.

It is for trying `moe-dist submit` and trainings over several nodes before there is a cluster. It runs Ray's own
`ray start`, once per node, on Linux. Five things make several nodes on one machine work, as on several machines:

1. Each node has a loopback address of its own (127.0.0.2, .3, ...), so their fixed ports do not collide and Ray Train
   counts its ranks per node, which it does by address. 127.0.0.1 cannot be one of them: Ray replaces it by the
   machine's outward address.
2. A node is started when the one before it is alive: two raylets started at the same moment crash each other.
3. Each node has a folder of its own for what Ray unpacks. In a shared one, a node deletes the working directory of a
   job that runs on another.
4. So has it for what moe-dist keeps on a node (MOE_DIST_NODE_CACHE): a run at a URL then has no shared disk.
5. `ray stop` would end every Ray on the machine. Here `ray start --block` stays as the parent of its node, its process
   id is written to <folder>/state.json, and only these and their descendants are ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from processes import Process, end, is_alive, process_of

from moe_dist.errors import UserError
from moe_dist.files import write_json
from moe_dist.places import NODE_CACHE

FOLDER = Path("runs/cluster")
STATE = "state.json"
"""The file of a cluster's folder that records it."""
OBJECT_STORE_BYTES = 200 * 2**20
NODE_START_SECONDS = 120.0
STOP_SECONDS = 10.0
"""How long the processes may take to end. A head that has run a training does not end when asked, and nothing in it is
worth waiting for."""


@dataclass(frozen=True)
class Node:
    """One Ray node: its loopback address, and the `ray start` process that is its parent."""

    address: str
    process: Process


@dataclass(frozen=True)
class Cluster:
    """A running local cluster, as state.json records it.

    dashboard: where jobs are submitted; head: the address of Ray itself; temporary: Ray's sessions, logs and sockets.
    """

    dashboard: str
    head: str
    token_path: str
    temporary: str
    nodes: tuple[Node, ...]


def start(folder: Path, nodes: int, cpus_per_node: int, port: int) -> Cluster:
    """Start `nodes` Ray nodes one after another and return when all are alive.

    port: where the dashboard and job server listen on 127.0.0.1; 0: any that is free. Raises UserError if a cluster of
    this folder is running, the port is taken or a node does not come up; what was started is stopped again.
    """
    if sys.platform != "linux":
        raise UserError("cluster/local.py needs Linux, where every 127.x.x.x is a loopback address")
    if load(folder) is not None:
        raise UserError(f"{folder}: a local cluster is already recorded here; stop it first")
    with _held_port("127.0.0.1", port) as dashboard, _held_port("127.0.0.2") as head:
        folder.mkdir(parents=True, exist_ok=True)
        cluster = Cluster(
            dashboard=f"http://127.0.0.1:{dashboard}",
            head=f"127.0.0.2:{head}",
            token_path=str(write_token(folder / "token")),
            temporary=tempfile.mkdtemp(prefix="moe-ray-", dir="/tmp"),  # Ray's sockets: paths under 108 characters
            nodes=(),
        )
        save(folder, cluster)
        try:
            for number in range(nodes):
                cluster = _start_node(folder, cluster, number, cpus_per_node)
                save(folder, cluster)
                _wait_until_alive(folder, cluster)
        except BaseException:
            stop(folder)
            raise
    return cluster


def stop(folder: Path) -> None:
    """End the folder's cluster, and no other process. Raises UserError if none is recorded."""
    cluster = load(folder)
    if cluster is None:
        raise UserError(f"{folder}: no local cluster is recorded here")
    # the head goes last, or the others would spend their time looking for it
    end([node.process for node in reversed(cluster.nodes)], STOP_SECONDS)
    shutil.rmtree(cluster.temporary, ignore_errors=True)
    Path(cluster.token_path).unlink(missing_ok=True)
    (folder / STATE).unlink()


def alive_nodes(cluster: Cluster) -> list[dict]:
    """The nodes that are alive, as Ray's state API describes them; none while it does not answer."""
    request = urllib.request.Request(f"{cluster.dashboard}/api/v0/nodes?detail=1")
    request.add_header("Authorization", f"Bearer {Path(cluster.token_path).read_text()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (urllib.error.URLError, OSError, ValueError):
        return []
    return [node for node in nodes if node["state"] == "ALIVE"]


def load(folder: Path) -> Cluster | None:
    """The cluster recorded in `folder`, or None."""
    path = folder / STATE
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    nodes = tuple(Node(node["address"], Process(**node["process"])) for node in content.pop("nodes"))
    return Cluster(**content, nodes=nodes)


def client_environment(cluster: Cluster) -> dict[str, str]:
    """The two environment variables that a client of the cluster needs."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster.token_path}


def _start_node(folder: Path, cluster: Cluster, number: int, cpus: int) -> Cluster:
    """Run `ray start --block` for the next node in a session of its own; its output goes to node-<number>.log."""
    address = f"127.0.0.{number + 2}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--temp-dir={cluster.temporary}/{number}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    if number == 0:
        command += ["--head", f"--port={cluster.head.rpartition(':')[2]}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={cluster.dashboard.rpartition(':')[2]}"]
        # Any that is free: its usual port may be another Ray's, and without this agent the head takes no job.
        command += ["--dashboard-agent-listen-port=0"]
    else:
        command += [f"--address={cluster.head}"]
    with (folder / f"node-{number}.log").open("w") as log:
        child = subprocess.Popen(
            command,
            env=node_environment(cluster) | {NODE_CACHE: str((folder / f"node-{number}").absolute())},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    process = process_of(child.pid)
    if process is None:
        raise UserError(f"{address}: Ray did not start; see {folder / f'node-{number}.log'}")
    return replace(cluster, nodes=(*cluster.nodes, Node(address, process)))


def node_environment(cluster: Cluster) -> dict[str, str]:
    """The environment of a node and, through it, of every job: the token, and this Python first on the PATH.

    A job's command starts with `python`, which is whatever the head's PATH says.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return environment | client_environment(cluster) | {"PATH": path}


def _wait_until_alive(folder: Path, cluster: Cluster) -> None:
    """Wait until Ray counts all nodes started so far. Raises UserError if the last one has ended or is too slow."""
    node = cluster.nodes[-1]
    log = folder / f"node-{len(cluster.nodes) - 1}.log"
    deadline = time.monotonic() + NODE_START_SECONDS
    while len(alive_nodes(cluster)) < len(cluster.nodes):
        if not is_alive(node.process):
            last = next((line.strip() for line in reversed(log.read_text().splitlines()) if line.strip()), "no output")
            raise UserError(f"{node.address}: Ray ended while starting: {last} (all of it: {log})")
        if time.monotonic() > deadline:
            raise UserError(f"{node.address}: not alive after {NODE_START_SECONDS:g} s; see {log}")
        time.sleep(0.3)


def write_token(path: Path) -> Path:
    """Write a new token to a file that only its owner may read, and return the file's absolute path."""
    path.unlink(missing_ok=True)  # a file that is there would keep its mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path.resolve()


@contextlib.contextmanager
def _held_port(address: str, port: int = 0) -> Iterator[int]:
    """Give the block a port of `address`, this one or any (0), which Linux gives to nobody who asks for any meanwhile.

    A node may listen there, because Ray sets SO_REUSEADDR as well. Raises UserError if another process has it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((address, port))
        except OSError:
            raise UserError(f"port {port} of {address} is taken (another Ray?): choose one with --port") from None
        yield holder.getsockname()[1]


def save(folder: Path, cluster: Cluster) -> None:
    """Record the cluster in `folder`."""
    write_json(folder / STATE, asdict(cluster))


def _print_usage(cluster: Cluster) -> None:
    print(f"jobs go to {cluster.dashboard}; the token is in {cluster.token_path}")
    print("before `moe-dist submit`, in your shell:")
    for name, value in client_environment(cluster).items():
        print(f"  export {name}={value}")


def _print_status(folder: Path) -> None:
    cluster = load(folder)
    if cluster is None:
        raise UserError(f"{folder}: no local cluster is recorded here; `python cluster/local.py start` makes one")
    alive = {node["node_ip"]: node["resources_total"] for node in alive_nodes(cluster)}
    for node in cluster.nodes:
        state = f"alive, {alive[node.address].get('CPU', 0):g} CPUs" if node.address in alive else "not alive"
        print(f"{node.address}  pid {node.process.pid}  {state}")
    print(f"Ray's own logs are in {cluster.temporary}")
    _print_usage(cluster)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Several Ray nodes on this machine, with token authentication.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--nodes", type=int, default=3, choices=[2, 3, 4])
    parser.add_argument("--cpus-per-node", type=int, default=2)
    parser.add_argument("--port", type=int, default=8265, help="of dashboard and job server on 127.0.0.1; 0: any free")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the token, the logs and the process ids")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.action == "start":
            cluster = start(chosen.folder, chosen.nodes, chosen.cpus_per_node, chosen.port)
            print(f"{len(cluster.nodes)} nodes are alive")
            _print_usage(cluster)
        elif chosen.action == "stop":
            stop(chosen.folder)
            print("stopped")
        else:
            _print_status(chosen.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
