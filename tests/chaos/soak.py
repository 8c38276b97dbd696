"""Causes faults to a training that runs on a local cluster, and says what each of them cost."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import local
import psutil
from fault_server import FaultServer

from moe_dist.train.log import last_metrics

ROOT = Path(__file__).parents[2]
KILLED, NO_RAYLET, STOPPED, SILENT, NO_DATA, NO_ROOM = KINDS = (
    "kill -9 of a worker",
    "kill -9 of a raylet",
    "SIGTERM to moe-dist",
    "SIGSTOP of a worker",
    "data server down for 10 s",
    "disk full at a checkpoint",
)
DRAINED = "notice of preemption"
SURVIVED_BY_RAY = (KILLED, NO_RAYLET, SILENT, NO_DATA, DRAINED)
"""After the others the command has ended, and is given again with --resume."""
SERVER_DOWN_SECONDS = 10.0
HEALTH_CHECK_SECONDS = 10.0
"""After which a stopped worker counts as dead; the default is a minute."""
DISK = "size=24m"
FORK = multiprocessing.get_context("fork")


def plan(seed: int, count: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """`count` kinds of fault in a drawn order, each about as often as any other."""
    draw = random.Random(seed)
    whole = [kind for _ in range(count // len(kinds)) for kind in kinds]
    drawn = whole + draw.sample(kinds, count - len(whole))
    draw.shuffle(drawn)
    return drawn


@dataclass(frozen=True)
class Caused:
    """A fault: its kind, the last step before it, and the seconds until that step was done again."""

    kind: str
    step: int
    seconds: float

    def line(self) -> str:
        """For the figures of docs/reliability.md."""
        return f"soak: {asdict(self)}"


def serve(root: Path, port: int) -> None:
    """Serve a folder, in a process of its own."""
    FaultServer(root, port).serve_forever()


class Soak:
    """A training under faults: the cluster, the server of its shards, its disk and the command that drives it."""

    def __init__(self, folder: Path, cluster_folder: Path, shards: Path, port: int, job: str, seed: int) -> None:
        self.folder, self.run = folder, folder / "disk" / "run"
        self._cluster_folder, self._shards, self._port = cluster_folder, shards, port
        self._draw = random.Random(seed)
        self._job = folder / "job.yaml"
        self._job.write_text(job)
        self._server = self._serve()
        self._command: psutil.Popen | None = None
        self._times = 0
        self._drained: local.Node | None = None
        self._mending: threading.Thread | None = None

    @property
    def cluster(self) -> local.Cluster:
        found = local.load(self._cluster_folder)
        assert found is not None
        return found

    def _serve(self) -> multiprocessing.process.BaseProcess:
        server = FORK.Process(target=serve, args=(self._shards, self._port), daemon=True)
        server.start()
        return server

    def begin(self) -> None:
        """Start the training, or go on with it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= local.client_environment(self.cluster)
        environment |= {
            "RAY_ADDRESS": self.cluster.head,
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{HEALTH_CHECK_SECONDS:g}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),  # with the made-up methods
            "MOE_DIST_CACHE": str(self.folder / "cache"),
        }
        words = ["run", str(self._job), "--launcher", "ray", "--out", str(self.run)]
        words += ["--resume"] if self._times else []
        self._times += 1
        with self.log.open("a") as log:
            self._command = psutil.Popen(
                [sys.executable, "-m", "moe_dist.cli", *words], env=environment, stdout=log, stderr=log
            )

    @property
    def log(self) -> Path:
        """What the command says."""
        return self.folder / "log.txt"

    def step(self) -> int:
        """The last step in the log of the training."""
        found = next(self.run.glob("*/trainings/*/metrics.jsonl"), None)
        return (last_metrics(found) or {"step": 0})["step"] if found else 0

    def attempts(self) -> int:
        """How often the training has begun."""
        return sum(path.read_text().count('"from_step"') for path in self.run.glob("*/trainings/*/attempts.jsonl"))

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until something holds; the command must be running until then."""
        assert self._command is not None
        while not until():
            assert self._command.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def ended(self) -> int:
        """Wait for the command's end: its exit code."""
        assert self._command is not None
        return self._command.wait()

    def cause(self, kind: str, at_step: int) -> Caused:
        """Cause a fault once `at_step` is done, and wait until its step is done again."""
        self.wait(lambda: self.step() >= at_step)
        attempts, began = self.attempts(), time.monotonic()
        {
            KILLED: self._kill_worker,
            NO_RAYLET: self._kill_raylet,
            STOPPED: self._terminate,
            SILENT: self._stop_worker,
            NO_DATA: self._stop_server,
            NO_ROOM: self._fill_disk,
            DRAINED: self._drain,
        }[kind]()
        step = self.step()
        self.wait(lambda: self.attempts() > attempts and self.step() >= step)
        caused = Caused(kind, step, time.monotonic() - began)
        if kind in (NO_RAYLET, DRAINED):  # meanwhile the training goes on, on the nodes that are left
            self._mending = threading.Thread(target=self._mend)
            self._mending.start()
        return caused

    def _workers(self) -> list[psutil.Process]:
        """The training's workers, by their node's address."""
        found = []
        for node in self.cluster.nodes:
            found += [each for each in _descendants(node.process.pid) if "RayTrainWorker" in _name(each)]
        return found

    def _kill_worker(self) -> None:
        self._draw.choice(self._workers()).kill()

    def _stop_worker(self) -> None:
        self._draw.choice(self._workers()).send_signal(signal.SIGSTOP)

    def _node(self) -> local.Node:
        """One with a worker, but not the head, without which there is no cluster."""
        self._mended()
        nodes = [
            node
            for node in self.cluster.nodes[1:]
            if any("RayTrainWorker" in _name(each) for each in _descendants(node.process.pid))
        ]
        return self._draw.choice(nodes)

    def _kill_raylet(self) -> None:
        _raylet(self._node()).kill()

    def _drain(self) -> None:
        """As the autoscaler does before it takes a node away."""
        node = self._node()
        (number,) = [each["node_id"] for each in local.alive_nodes(self.cluster) if each["node_ip"] == node.address]
        words = [f"--address={self.cluster.head}", f"--node-id={number}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message=taken", "--deadline-remaining-seconds=60"]
        environment = os.environ | local.client_environment(self.cluster)
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        self._drained = node

    def _terminate(self) -> None:
        assert self._command is not None
        self._command.terminate()
        assert self.ended() == 143, self.log.read_text()[-3000:]
        self.begin()

    def _stop_server(self) -> None:
        """And kill a worker, with nothing left in the cache: its successor has to fetch the shards."""
        self._server.kill()
        self._server.join()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        before = {worker.pid for worker in self._workers()}
        self._kill_worker()
        self.wait(lambda: bool({worker.pid for worker in self._workers()} - before))
        time.sleep(SERVER_DOWN_SECONDS)
        self._server = self._serve()

    def _fill_disk(self) -> None:
        assert self._command is not None
        filler = self.folder / "disk" / "filler"
        with filler.open("wb", buffering=0) as file:
            while self._command.poll() is None:
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.01)
        assert self.ended() == 2 and "the disk is full" in self.log.read_text(), self.log.read_text()[-3000:]
        filler.unlink()
        self.begin()

    def _mended(self) -> None:
        """Wait until all nodes are there again."""
        if self._mending is not None:
            self._mending.join()
            self._mending = None

    def _mend(self) -> None:
        """Start a node again whose raylet is gone: it is needed for the next fault."""
        if self._drained is not None:
            with suppress(StopIteration, psutil.NoSuchProcess):  # it ends by itself once nothing runs on it
                raylet = _raylet(self._drained)
                raylet.kill()
                raylet.wait()
            self._drained = None
        for number, node in enumerate(self.cluster.nodes):
            if not any(_name(each).endswith("/raylet") for each in _descendants(node.process.pid)):
                left = replace(
                    self.cluster, nodes=tuple(each for each in self.cluster.nodes if each.address != node.address)
                )
                local.end([node.process], local.STOP_SECONDS)
                again = local._start_node(self._cluster_folder, left, number, cpus=2)
                nodes = tuple(sorted(again.nodes, key=lambda each: each.address))
                local.save(self._cluster_folder, replace(again, nodes=nodes))
                while len(local.alive_nodes(self.cluster)) < len(nodes):
                    time.sleep(0.3)

    def stop(self) -> None:
        """End the command, if it is running, and the server; the next test finds all nodes again."""
        if self._command is not None and self._command.poll() is None:
            self._command.terminate()
            self._command.wait()
        self._server.kill()
        self._mended()


def mounted(disk: Path) -> bool:
    """Whether a small tmpfs could be mounted there."""
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(disk)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def unmount(disk: Path) -> None:
    """Unmount it again."""
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _descendants(process: int) -> Iterator[psutil.Process]:
    try:
        yield from psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return


def _raylet(node: local.Node) -> psutil.Process:
    return next(each for each in _descendants(node.process.pid) if _name(each).endswith("/raylet"))


def _name(process: psutil.Process) -> str:
    """The first words of its command line, which is where Ray names its workers."""
    try:
        return " ".join(process.cmdline()[:1]).split(" ")[0]
    except psutil.Error:
        return ""
