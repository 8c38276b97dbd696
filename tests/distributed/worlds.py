"""Worlds of gloo processes for tests: started once, given many cases, killed when one hangs or fails."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

CASE_SECONDS = 270
"""A case that takes longer has hung, as far as pytest's limit allows to tell; the slowest takes a few seconds, and some
more where it starts its world, which on a busy machine is minutes."""


class World:
    """`size` processes of one gloo process group. A case is a module-level function run on every rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, case: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `case(rank, ranks, *arguments)` returns on each rank; AssertionError with the trace where one fails.

        A failed or hanging world is killed; the next case starts a new one.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((case, arguments))
        try:
            return self._collect()
        except AssertionError:
            self.close()
            raise

    def close(self) -> None:
        """Kill the processes of this world."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["moe_dist.engine.deepspeed"])
        store = Path(tempfile.mkdtemp()) / "store"
        for rank in range(self.size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.size, str(store)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def _collect(self) -> list[Any]:
        results: dict[int, Any] = {}
        deadline = time.monotonic() + CASE_SECONDS
        while len(results) < self.size:
            pending = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            assert ready, f"ranks {sorted(set(range(self.size)) - set(results))} hang"
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = self._pipes.index(pipe)
                succeeded, results[rank] = pipe.recv()
                assert succeeded, f"rank {rank}: {results[rank]}"
        return [results[rank] for rank in range(self.size)]


def _serve(pipe: Connection, rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{store}", timedelta(seconds=CASE_SECONDS), world_size=ranks, rank=rank
    )
    while True:
        case, arguments = pipe.recv()
        try:
            pipe.send((True, case(rank, ranks, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
