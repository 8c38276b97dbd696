"""What spreading experts costs: step time and bytes of expert parallelism beside data parallelism and one process.

    python benchmarks/expert_parallel.py [--ranks 2] [--batch 64] [--rounds 7]

The network is DFCP-MoE's joint stage: 43 LeNets of unequal widths and a gate on 32x32 images, Adam, the same global
batch in every case. On one machine without GPUs the ranks share its cores, so time can only be lost by spreading;
what is measured is how much. "Least" is what dense dispatch cannot do without: every sample to the other ranks, every
expert's output back, and the gradients of the outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn

from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.models.experts import Experts, seeded
from moe_dist.models.lenet import LeNet, LeNetWidths
from moe_dist.models.makers import MakeExperts
from moe_dist.parallel.placement import exchanged_bytes, loads, place
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

EXPERTS, CLASSES, SIDE = 43, 43, 32
WIDTHS = [LeNetWidths(4 + expert % 5, 8 + expert % 9, 60, 42) for expert in range(EXPERTS)]
COSTS = [float(LeNet.multiply_adds(widths, CLASSES, SIDE)) for widths in WIDTHS]
SPREAD = "expert parallel"
CASES = ("one process", "data parallel", SPREAD)
RESULTS = Path(__file__).parent / "results" / "expert_parallel.json"


class Mixture(nn.Module):
    """LeNets and a gate."""

    def __init__(self, make_experts: MakeExperts) -> None:
        super().__init__()
        self.gate = nn.Linear(3 * SIDE * SIDE, EXPERTS)
        self.experts = make_experts([partial(LeNet, widths, CLASSES, SIDE) for widths in WIDTHS], COSTS, 0)

    def forward(self, images: Tensor) -> Tensor:
        """Mixed logits [B, C]."""
        gate = self.gate(images.flatten(1)).softmax(1)
        return (gate[:, :, None] * torch.stack(self.experts(images), 1)).sum(1)


def engine_of(ranks: int, ep_size: int) -> Engine:
    """A fresh engine: plain torch for one rank, otherwise DeepSpeed's with experts replicated or spread."""
    make_experts: Any = Experts
    if ep_size > 1:
        from moe_dist.parallel.experts import ExpertParallel

        make_experts = partial(ExpertParallel, ep_size=ep_size)
    return make_engine(
        seeded(0, lambda: Mixture(make_experts)),
        {"": OptimiserConfig()},
        parallel=ParallelConfig(expert=ep_size),
        clip_norm=1.0,
        device=torch.device("cpu"),
        bf16=False,
        ranks=ranks,
        deepspeed=ranks > 1,
    )


def step_of(engine: Engine, batch: int, ranks: int) -> Callable[[], None]:
    """One training step on this rank's share of `batch` samples."""
    images, labels = torch.rand(batch // ranks, 3, SIDE, SIDE), torch.randint(CLASSES, (batch // ranks,))

    def step() -> None:
        engine.backward(nn.functional.cross_entropy(engine.network(images), labels))
        engine.step()

    return step


def run_rank(rank: int, ranks: int, batch: int, rounds: int, started: float, folder: str) -> None:
    """Everything one rank measures, written as JSON into `folder`."""
    startup = {"process and torch": time.time() - started}

    def lap(name: str) -> None:
        startup[name] = time.time() - started - sum(startup.values())

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    lap("process group")
    import moe_dist.engine.deepspeed  # noqa: F401

    lap("import DeepSpeed")
    spread = engine_of(ranks, ranks)
    lap("network and engine")
    step_of(spread, batch, ranks)()
    lap("first step")
    engines = {SPREAD: spread, "data parallel": engine_of(ranks, 1)}
    steps = {name: step_of(engine, batch, ranks) for name, engine in engines.items()}
    with counted_bytes(rank, ranks) as sent:
        steps[SPREAD]()
    if rank == 0:
        steps["one process"] = step_of(engine_of(1, 1), batch, 1)
    result = {"startup": startup, "moved": {SPREAD: sum(sent)}, "times": measure(steps, rounds)}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and processor seconds of each case's step on this rank; cases take turns, the first turn warms up."""
    walls: dict[str, list[float]] = {name: [] for name in CASES}
    processors: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds + 1):
        for name in CASES:
            torch.distributed.barrier()
            wall, processor = time.perf_counter(), time.process_time()
            if name in steps:  # only the first rank has one process's
                steps[name]()
            walls[name].append(time.perf_counter() - wall)
            processors[name].append(time.process_time() - processor)
    return {
        name: {"wall": statistics.median(walls[name][1:]), "processor": statistics.median(processors[name][1:])}
        for name in CASES
    }


@contextmanager
def counted_bytes(rank: int, ranks: int) -> Iterator[list[int]]:
    """Records what the exchange's collectives send to other ranks, in bytes, without the batch sizes."""
    from moe_dist.parallel import exchange

    sent: list[int] = []
    gather, scatter, all_to_all = exchange._all_gather, exchange._reduce_scatter, exchange.dist.all_to_all_single

    def counted_gather(output: Tensor, rows: Tensor, **options: Any) -> None:
        sent.append((ranks - 1) * rows.nbytes * rows.is_floating_point())
        gather(output, rows, **options)

    def counted_scatter(output: Tensor, rows: Tensor, **options: Any) -> None:
        sent.append((ranks - 1) * output.nbytes)
        scatter(output, rows, **options)

    def counted_all_to_all(output: Tensor, rows: Tensor, received: Any, to: list[int], **options: Any) -> None:
        sent.append(rows.nbytes * (sum(to) - to[rank]) // sum(to))
        all_to_all(output, rows, received, to, **options)

    exchange._all_gather, exchange._reduce_scatter = counted_gather, counted_scatter
    exchange.dist.all_to_all_single = counted_all_to_all  # type: ignore[assignment]
    try:
        yield sent
    finally:
        exchange._all_gather, exchange._reduce_scatter = gather, scatter
        exchange.dist.all_to_all_single = all_to_all


def gradient_bytes(ranks: int) -> dict[str, int]:
    """What a ring all-reduce of the replicated parameters' gradients moves in one step, over all ranks."""
    network = Mixture(Experts)
    everything = sum(parameter.numel() for parameter in network.parameters())
    gate = sum(parameter.numel() for parameter in network.gate.parameters())
    replicated = {"one process": 0, "data parallel": everything, SPREAD: gate}
    return {name: 4 * 2 * (ranks - 1) * elements for name, elements in replicated.items()}


def summarise(parts: list[dict[str, Any]], ranks: int, batch: int) -> dict[str, Any]:
    """The ranks' measurements as one row per case."""
    least = exchanged_bytes(ranks, batch, 3 * SIDE * SIDE, [CLASSES] * EXPERTS, input_gradient=False)
    gradients, rows = gradient_bytes(ranks), {}
    processor = {name: sum(part["times"][name]["processor"] for part in parts) for name in CASES}
    for name in CASES:
        moved = sum(part["moved"].get(name, 0) for part in parts)
        rows[name] = {
            "processor_ms": round(1e3 * processor[name], 1),
            "processor_to_data_parallel": round(processor[name] / processor["data parallel"], 2),
            "wall_ms": round(1e3 * max(part["times"][name]["wall"] for part in parts), 1),
            "exchanged_mb": round(moved / 1e6, 3),
            "exchanged_to_least": round(moved / least, 3) if name == SPREAD else None,
            "gradients_mb": round(gradients[name] / 1e6, 3),
        }
    startup = {name: round(max(part["startup"][name] for part in parts), 2) for name in parts[0]["startup"]}
    return {"steps": rows, "startup_seconds": startup, "loads": loads(COSTS, place(COSTS, ranks))}


def show(summary: dict[str, Any]) -> None:
    """Print the rows as a table, and the start-up."""
    columns = list(next(iter(summary["steps"].values())))
    print(" " * 30 + "".join(f"{column:>28}" for column in columns))
    for name, row in summary["steps"].items():
        print(f"{name:<30}" + "".join(f"{'-' if row[column] is None else row[column]:>28}" for column in columns))
    print("start-up, seconds: " + ", ".join(f"{name} {taken}" for name, taken in summary["startup_seconds"].items()))
    print("load per rank: " + ", ".join(f"{load:.3f}" for load in summary["loads"]))


def main() -> None:
    """Start the ranks, print the tables and write results/expert_parallel.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="global; a multiple of the ranks")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    measured_on = machine()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        settings = (arguments.ranks, arguments.batch, arguments.rounds, time.time(), folder)
        torch.multiprocessing.spawn(run_rank, settings, nprocs=arguments.ranks)
        parts = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(arguments.ranks)]
    summary = summarise(parts, arguments.ranks, arguments.batch)
    show(summary)
    content = {
        **measured_on,
        "ranks": arguments.ranks,
        "batch": arguments.batch,
        "experts": EXPERTS,
        **summary,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
