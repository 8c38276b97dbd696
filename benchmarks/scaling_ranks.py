"""Processes that measure together: ranks of one training, or processes that compute the same alone beside each other.

Each waits for commands at a pipe. All of a team meet at a barrier before every repeat, so that its time is that of the
slowest, and the least of the repeats counts: other programs on the machine can only add to it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.scaling_cases import Refreshes, Training, method_of
from benchmarks.step_time import ring_bytes
from benchmarks.traffic import experts_alone

SO_MAX_PACING_RATE = 47
"""Linux's socket option, which Python does not name: bytes a second that TCP hands to the network at most."""
UNLIMITED = 2**32 - 1
PROBES = 4
"""Calls of a collective that are timed together."""


class Member(NamedTuple):
    """A process of a team: its number, how many there are, and whether they train together."""

    number: int
    team: int
    together: bool


def serve(member: Member, pipe: Connection[Any, Any], barrier: Any, folder: str) -> None:
    """Answer commands (name, arguments, repeats) with the seconds of each repeat until None comes."""
    torch.set_num_threads(1)
    name = "ranks" if member.together else f"alone-{member.number}"
    rank, ranks = (member.number, member.team) if member.together else (0, 1)
    dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank, world_size=ranks)
    desk = Desk(rank, ranks, is_first=member.number == 0)
    pipe.send("ready")
    while (command := pipe.recv()) is not None:
        kind, arguments, repeats = command
        run = getattr(desk, kind)(*arguments)
        if not callable(run):
            pipe.send(run)
            continue
        seconds = []
        for _ in range(repeats):
            barrier.wait()
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        pipe.send(seconds)
    dist.destroy_process_group()


class Desk:
    """What a process is asked for. A method returns what is to be timed, or an answer."""

    def __init__(self, rank: int, ranks: int, is_first: bool) -> None:
        self.rank, self.ranks, self._is_first = rank, ranks, is_first
        self._trainings: dict[tuple[str, int], Training] = {}
        self._made: dict[tuple[Any, ...], Any] = {}

    def step(self, name: str, group: int, batch: int) -> Callable[[], None]:
        """A training step of a case."""
        training = self._training(name, group)
        return lambda: training.step(batch)

    def experts(self, name: str, batch: int) -> Callable[[], None]:
        """A case's experts alone."""
        return self._once(("experts", name, batch), lambda: experts_alone(method_of(name), batch))

    def refresh(self, samples: int) -> Callable[[], None]:
        """EDCWRN's refresh."""
        made = self._once(("refresh", samples), lambda: Refreshes(samples, self.rank, self.ranks))
        return made.refresh

    def encode(self, samples: int) -> Callable[[], None]:
        """What all ranks share the work of in a refresh."""
        return self._once(("refresh", samples), lambda: Refreshes(samples, self.rank, self.ranks)).encode

    def on_the_first(self, samples: int) -> Callable[[], None]:
        """What only the first rank computes in a refresh, while the others wait."""
        if not self._is_first:
            return lambda: None
        made = self._once(("refresh", samples), lambda: Refreshes(samples, self.rank, self.ranks))
        return self._once(("first", samples), made.on_the_first)

    def probe(self, kind: str, tensor_bytes: int) -> Callable[[], None]:
        """`PROBES` collectives of one kind."""
        call = collective(kind, tensor_bytes, self.ranks)

        def run() -> None:
            for _ in range(PROBES):
                call()

        return run

    def pace(self, bytes_per_second: int) -> str:
        """Let the kernel send no more than this over each connection of this process."""
        for connection in _connections():
            connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_second.to_bytes(4, sys.byteorder))
        return "paced"

    def count(self, name: str, group: int, batch: int) -> dict[str, tuple[int, float]]:
        """The calls and bytes that a step sends, by kind of collective."""
        counted = Counted()
        training = self._training(name, group)
        with counted:
            training.step(batch)
        return counted.by_kind

    def count_refresh(self, samples: int) -> dict[str, tuple[int, float]]:
        """The same of a refresh."""
        counted, refresh = Counted(), self.refresh(samples)
        with counted:
            refresh()
        return counted.by_kind

    def _training(self, name: str, group: int) -> Training:
        key = (name, group)
        if key not in self._trainings:
            self._trainings[key] = Training(name, self.rank, self.ranks, group)
        return self._trainings[key]

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def collective(kind: str, tensor_bytes: int, ranks: int) -> Callable[[], object]:
    """A call of a collective on a tensor of this rank that has so many bytes."""
    own = torch.zeros(tensor_bytes // 4 // ranks * ranks)
    whole, part = own.new_zeros(len(own) * ranks), own.new_zeros(len(own) // ranks)
    parts = [torch.empty_like(own) for _ in range(ranks)]
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(own),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, own),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, own),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(own), own),
        "gather": lambda: dist.all_gather(parts, own),
        "broadcast": lambda: dist.broadcast(own, 0),
    }
    return calls[kind]


def sent_bytes(kind: str, tensor_bytes: float, ranks: int) -> float:
    """What a rank sends in a collective on a tensor of so many bytes; of a broadcast, what goes over one connection."""
    others = ranks - 1
    of_tensor = {
        "all_reduce": ring_bytes(ranks, 1),
        "all_gather": others,
        "gather": others,
        "reduce_scatter": others / ranks,
        "all_to_all": others / ranks,
        "broadcast": 1,
    }
    return of_tensor[kind] * tensor_bytes


KINDS = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
}


class Counted(TorchDispatchMode):
    """Counts the collectives of its block and the bytes that this rank sends in them, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.by_kind: dict[str, tuple[int, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._add(func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def _add(self, name: str, args: Any) -> None:
        kind = KINDS[name]
        gives = args[1] if kind in ("all_gather", "gather", "reduce_scatter", "all_to_all") else args[0]
        tensors = [gives] if isinstance(gives, torch.Tensor) else gives
        objects = [each for each in args if isinstance(each, torch.ScriptObject)]
        boxed = next(each for each in objects if each._type().qualified_name().endswith(".ProcessGroup"))
        group = dist.ProcessGroup.unbox(boxed)
        total = float(sum(tensor.nbytes for tensor in tensors))
        if kind == "all_to_all" and args[4]:
            moved = total * (1 - args[4][group.rank()] / max(1, sum(args[4])))
        else:
            moved = sent_bytes(kind, total, group.size())
        calls, before = self.by_kind.get(kind, (0, 0.0))
        self.by_kind[kind] = (calls + 1, before + moved)


def _connections() -> Iterator[socket.socket]:
    """This process's TCP connections."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            number = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername():
                    yield connection
