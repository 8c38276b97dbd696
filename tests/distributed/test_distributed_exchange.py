"""The exchanges against slicing and concatenating in one process; the bytes they move against the estimate."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from networks import CLASSES, SIDE, build
from torch import Tensor
from training import ADAM
from worlds import World

from moe_dist.engine.choose import make_engine
from moe_dist.parallel.placement import exchanged_bytes, exchanged_bytes_of_chosen, place
from moe_dist.run.exchanged import Call, CountedExperts, bytes_of, calls_of
from moe_dist.settings.resources import ParallelConfig

SIZES = {"even": [2, 2, 2], "uneven": [3, 0, 2]}


def rows_of(sizes: list[int]) -> Tensor:
    return torch.arange(sum(sizes) * 4, dtype=torch.float32).view(sum(sizes), 2, 2)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_rank_sees_all_samples_and_their_gradients_add_up(worlds: dict[int, World], sizes: list[int]) -> None:
    """Rank r weighs what it sees with r + 1, so the gradient of every row is 1 + 2 + 3."""
    for rank, (gathered, gradient) in enumerate(worlds[3].run(gather, sizes)):
        assert torch.equal(gathered, rows_of(sizes))
        assert torch.equal(gradient, torch.full((sizes[rank], 2, 2), 6.0))


def gather(rank: int, ranks: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    from moe_dist.parallel.exchange import batch_sizes, gather_samples

    group = torch.distributed.group.WORLD
    assert batch_sizes(sizes[rank], torch.device("cpu"), group) == sizes
    mine = rows_of(sizes).split(sizes)[rank].requires_grad_()
    gathered = gather_samples(mine, sizes, group)
    ((rank + 1) * gathered).sum().backward()
    assert mine.grad is not None
    return gathered.detach(), mine.grad


def test_rows_go_where_they_are_sent_and_gradients_return(worlds: dict[int, World]) -> None:
    """Rank r sends s rows of value 10 r + s to rank s; the receiver scales by its own number plus one."""
    for rank, (received, gradient) in enumerate(worlds[3].run(send_numbered)):
        assert received == [10.0 * source + rank for source in range(3) for _ in range(rank)]
        assert gradient == [destination + 1.0 for destination in range(3) for _ in range(destination)]


def send_numbered(rank: int, ranks: int) -> tuple[list[float], list[float]]:
    from moe_dist.parallel.exchange import send

    rows = torch.tensor([10.0 * rank + destination for destination in range(3) for _ in range(destination)])
    rows.requires_grad_()
    received = send(rows, [0, 1, 2], [rank] * 3, torch.distributed.group.WORLD)
    ((rank + 1) * received).sum().backward()
    assert rows.grad is not None
    return received.tolist(), rows.grad.tolist()


def test_tie_runs_a_backward_path_without_changing_gradients() -> None:
    from moe_dist.parallel.exchange import tie

    ran = []
    loss, other = torch.ones((), requires_grad=True), torch.full((2,), torch.inf, requires_grad=True)
    watched = other * 2
    watched.grad_fn.register_hook(lambda *_: ran.append(True))  # type: ignore[union-attr]
    (3 * tie(loss * 1, watched)).backward()
    assert loss.grad == 3
    assert ran == [True]


CASES: list[tuple[str, Call]] = [
    ("icl", Call(4 * 16, [CLASSES + width for width in (3, 5, 4)], gradient=True, summed=False)),
    ("gmm", Call(4 * 16, [6 * 16] * 10, gradient=True, summed=False)),
    ("gmm_module", Call((4 + 5) * 16, [4 * 16], gradient=True, summed=True)),
    ("dfcp5", Call(SIDE * SIDE, [CLASSES] * 5, gradient=False, summed=False)),
]


@pytest.mark.parametrize(("name", "call"), CASES, ids=[name for name, _ in CASES])
def test_moves_the_bytes_that_were_estimated(worlds: dict[int, World], name: str, call: Call) -> None:
    """Summed over ranks, apart from the batch sizes. The estimate counts in one process what goes in and out."""
    network = build(name, CountedExperts)
    network(torch.rand(1, 1, SIDE, SIDE))
    assert calls_of(network) == [call]
    assert sum(worlds[3].run(count_bytes, name)) == bytes_of(call, 3, 6)


def test_only_chosen_samples_travel(worlds: dict[int, World]) -> None:
    """Summed over ranks, apart from the counts: the bytes of the samples, flags and outputs that cross ranks."""
    found = worlds[3].run(count_bytes_of_chosen)
    placement = place([2, 3, 4, 5, 6], 3)
    least = exchanged_bytes_of_chosen(placement, [chosen for _, chosen in found], SIDE * SIDE, CLASSES)
    assert sum(sent for sent, _ in found) == least
    assert least < exchanged_bytes(3, 18, SIDE * SIDE, [CLASSES] * 5, input_gradient=False)


def count_bytes_of_chosen(rank: int, ranks: int) -> tuple[int, np.ndarray]:
    """The bytes that this rank, with 6 samples, sends to others, and the experts of its samples, [6, E]."""
    from moe_dist.parallel import exchange

    network = spread_network("dispatched5", ranks)
    images = torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(rank))
    with pytest.MonkeyPatch.context() as patch:
        sent = count_sent(patch, exchange, rank, ranks)
        network(images).sum().backward()
    return sum(sent), network.chosen(images, network.gate(images.flatten(1))).numpy()


def count_bytes(rank: int, ranks: int, name: str) -> int:
    """The bytes that this rank, with 2 samples, sends to others in a forward and a backward pass."""
    from moe_dist.parallel import exchange

    network = spread_network(name, ranks)
    images = torch.rand(2, 1, SIDE, SIDE)
    with pytest.MonkeyPatch.context() as patch:
        sent = count_sent(patch, exchange, rank, ranks)
        network(images).sum().backward()
    return sum(sent)


def spread_network(name: str, ranks: int) -> Any:
    """The network with its experts over all ranks, their process group made by an engine."""
    from moe_dist.parallel.experts import ExpertParallel

    network = build(name, partial(ExpertParallel, ep_size=ranks))
    make_engine(
        network,
        {"": ADAM},
        parallel=ParallelConfig(expert=ranks),
        clip_norm=None,
        device=torch.device("cpu"),
        bf16=False,
        ranks=ranks,
        deepspeed=True,
    ).close()
    return network


def count_sent(patch: pytest.MonkeyPatch, exchange: Any, rank: int, ranks: int) -> list[int]:
    """Counts what the three collectives send to other ranks, floating-point numbers only."""
    sent: list[int] = []
    gather, scatter = exchange._all_gather, exchange._reduce_scatter
    all_to_all = exchange.dist.all_to_all_single

    def counted_gather(output: Tensor, rows: Tensor, **options: Any) -> Any:
        if rows.is_floating_point():
            sent.append((ranks - 1) * rows.numel() * rows.element_size())
        return gather(output, rows, **options)

    def counted_scatter(output: Tensor, rows: Tensor, **options: Any) -> Any:
        sent.append((ranks - 1) * output.numel() * rows.element_size())
        return scatter(output, rows, **options)

    def counted_all_to_all(output: Tensor, rows: Tensor, received: list[int], to: list[int], **options: Any) -> Any:
        width = rows[0].numel() if len(rows) else 0
        sent.append((sum(to) - to[rank]) * width * rows.element_size())
        return all_to_all(output, rows, received, to, **options)

    patch.setattr(exchange, "_all_gather", counted_gather)
    patch.setattr(exchange, "_reduce_scatter", counted_scatter)
    patch.setattr(exchange.dist, "all_to_all_single", counted_all_to_all)
    return sent
