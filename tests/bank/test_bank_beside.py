"""Computations beside each other: one thread each, in order, without gradients."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from moe_dist.bank.beside import beside


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many threads as PyTorch may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_without_gradients(threads: int) -> None:
    weight = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        found = beside([lambda factor=factor: weight * factor for factor in range(20)])  # type: ignore[misc]
    assert [int(each[0]) for each in found] == list(range(20))
    assert not any(each.requires_grad or each.is_inference() for each in found)


def test_inference_mode_is_kept(threads: int) -> None:
    with torch.inference_mode():
        assert all(each.is_inference() for each in beside([lambda: torch.ones(1).neg()] * 3))


def test_each_computes_with_one_thread_and_the_caller_keeps_its_own(threads: int) -> None:
    """Also a thread that is started afterwards gets as many as the process had."""
    assert beside([torch.get_num_threads] * 9) == [1] * 9
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == threads and later == [threads]


def test_they_run_at_once(threads: int) -> None:
    """Each waits for the others, which one after another would never end."""
    if threads == 1:
        pytest.skip("one thread")
    together = threading.Barrier(threads)
    assert sorted(beside([lambda: together.wait(60)] * threads)) == list(range(threads))


def test_an_error_is_raised(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        beside([lambda: 1 // 0, lambda: 1])


def test_a_forked_process_starts_threads_of_its_own(threads: int) -> None:
    beside([torch.get_num_threads] * threads)
    process = multiprocessing.get_context("fork").Process(target=lambda: beside([torch.get_num_threads] * threads))
    process.start()
    process.join()
    assert process.exitcode == 0
