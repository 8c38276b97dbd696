"""Computations beside each other, each on one thread of its own: for many that are each too small for several threads.

PyTorch divides an operation among its threads, and waits for all of them after each one. A small network is some dozens
of operations of a few microseconds, so the waiting costs as much as the division saves. Whole computations side by side
wait once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")


def beside(computations: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each computation returns, in order, on as many threads as PyTorch may use; without gradients.

    A free thread takes the next one, so the largest should come first. Raises what a computation raises.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [compute() for compute in computations]
    inference = torch.is_inference_mode_enabled()

    def alone(compute: Callable[[], Result]) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # both are a thread's own
            return compute()

    return list(_threads(threads).map(alone, computations))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads on each of which PyTorch computes alone; they are kept, since starting them costs more than a network."""
    all_started = Barrier(count)

    def compute_alone() -> None:
        torch.get_num_threads()  # a thread takes the process's setting when it first asks, in place of its own
        torch.set_num_threads(1)
        all_started.wait()  # so that none is started later, when the process's setting is not mended any more

    pool = ThreadPoolExecutor(count, "moe-dist-beside", initializer=compute_alone)
    for started in [pool.submit(torch.get_num_threads) for _ in range(count)]:
        assert started.result() == 1
    torch.set_num_threads(count)  # each of them has made the process's setting, which new threads take, 1
    return pool


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
