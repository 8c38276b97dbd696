"""The step time of the papers' jobs on 8, 64 and 512 GPUs, by step_time.py's formula: nothing here ran on so many.

    python -m benchmarks.projection

Prints the tables of docs/scaling.md and writes results/projection.json. INPUTS says of each number where it is from:
measured (and where) or assumed. FLOPs, operators and bytes are counted in this process from the jobs' own networks; an
operator counts as one kernel that Python launches, since steps of several workers are not captured as CUDA graphs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine
from benchmarks.scaling_cases import Refreshes, refresh_exchanges
from benchmarks.step_time import Layout, Line, Link, Work, computing_seconds, exchange_seconds
from benchmarks.traffic import at, batch_of, busiest_share, exchanges, experts_alone, stage_of
from moe_dist.data.batch import DatasetInfo
from moe_dist.data.longtail import profile
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import load_job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class

JOBS = Path(__file__).parents[1] / "jobs"
RESULTS = Path(__file__).parent / "results" / "projection.json"
GPUS = (1, 8, 64, 512)
A_RANK = 64
"""Images of a rank in the tables of a batch that grows with the ranks."""
OF_A_NODE = 8


class Input(NamedTuple):
    """A number of a projection. kind: measured or assumed."""

    value: float
    kind: str
    whence: str


INPUTS = {
    "launch_seconds": Input(29e-3 / 1200, "measured", "H100: Python takes 29 ms for the 1,200 kernels of ICL's step"),
    "icl_work_seconds": Input(8e-3, "measured", "H100: what the GPU computes in ICL's step of 128 images"),
    "node_bytes_per_second": Input(200e9, "assumed", "NVLink inside a node, of 450 GB/s in one direction"),
    "node_latency": Input(20e-6, "assumed", "a call of nccl inside a node"),
    "network_bytes_per_second": Input(25e9, "assumed", "a port of 400 Gbit/s for each GPU, at half of it"),
    "network_latency": Input(15e-6, "assumed", "a call of nccl between nodes, for each doubling of the GPUs"),
}


class Projected(NamedTuple):
    """A job's method. info: its dataset as the method sees it; batch: of a step, as the job has it."""

    method: Method
    batch: int


def main() -> None:
    """Count, print and write results/projection.json."""
    torch.set_num_threads(1)
    content: dict[str, Any] = machine() | {"inputs": {name: each._asdict() for name, each in INPUTS.items()}}
    rate = flops_per_second()
    content["inputs"]["flops_per_second"] = Input(rate, "measured", "H100: ICL's FLOPs of a step by its 8 ms")._asdict()
    content["steps"] = {name: project(each(), rate) for name, each in PROJECTED.items()}
    content["refresh"] = project_refresh(rate)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(tables(content))


def gtsrb(dispatch: str) -> Projected:
    """DFCP-MoE's joint stage on GTSRB, 43 experts."""
    config = load_job(JOBS / "dfcp" / "gtsrb.yaml").models["dfcp"]
    joint = config.joint.model_copy(update={"dispatch": dispatch})
    config = config.model_copy(update={"joint": joint})
    return projected(config, classes=43, side=32, counts=(620,) * 43)


def cifar() -> Projected:
    """ICL's first stage on CIFAR-100-LT, three experts."""
    config = load_job(JOBS / "icl" / "cifar100_lt_100.yaml").models["icl"]
    return projected(config, classes=100, side=32, counts=tuple(profile(500, 100, 100).tolist()))


def ip102() -> Projected:
    """GMM-MoE's second stage on IP102, DenseNet-121, three modules of ten experts."""
    config = load_job(JOBS / "gmm_moe" / "ip102.yaml").models["gmm_moe"].model_copy(update={"weights": None})
    return projected(config, classes=102, side=224, counts=(442,) * 102)


def projected(config: Any, *, classes: int, side: int, counts: tuple[int, ...]) -> Projected:
    """The method of a configuration, for a dataset of such a shape."""
    info = DatasetInfo(classes, tuple(map(str, range(classes))), side, sum(counts), counts)
    method = method_class(config.name)(config, info)
    return Projected(method, stage_of(method).batch_size)


PROJECTED: Mapping[str, Callable[[], Projected]] = {
    "DFCP-MoE, 43 experts, all samples to all": lambda: gtsrb("all"),
    "DFCP-MoE, conditional dispatch": lambda: gtsrb("conditional"),
    "ICL, three experts, CIFAR-100-LT": cifar,
    "GMM-MoE, DenseNet-121, 224 pixels": ip102,
}


class Counted(TorchDispatchMode):
    """Counts the operators of its block that compute something: views of a tensor launch no kernel."""

    kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        return result


class Cost(NamedTuple):
    """Of a step: FLOPs of an image, and kernels however many images there are."""

    flops: float
    kernels: int

    def on_gpu(self, rate: float) -> Line:
        """Its seconds by images: launching and computing are added up, as if neither hid the other."""
        return Line(self.kernels * INPUTS["launch_seconds"].value, self.flops / rate)


def cost(run: Callable[[], None], images: int) -> Cost:
    """Counted in this process."""
    with FlopCounterMode(display=False) as flops:
        run()
    with Counted() as counted:
        run()
    return Cost(flops.get_total_flops() / images, counted.kernels)


def costs(method: Method, images: int = 2) -> tuple[Cost, Cost]:
    """Of a step without its experts, and of the experts. Kernels of the optimiser's update are not counted."""
    network = method.build(IN_ONE_PROCESS, {}, 0)
    method.set_training(network, stage_of(method).name)
    batch, now = batch_of(method, images), at(method)

    def whole() -> None:
        torch.stack(list(method.loss(network, batch, now).values())).sum().backward()

    everything, experts = cost(whole, images), cost(experts_alone(method, images), images)
    return Cost(everything.flops - experts.flops, max(0, everything.kernels - experts.kernels)), experts


def flops_per_second() -> float:
    """What the GPU reaches in ICL's step."""
    dense, experts = costs(cifar().method)
    return (dense.flops + experts.flops) * 128 / INPUTS["icl_work_seconds"].value


def links(ranks: int) -> dict[str, Link]:
    """Inside a node for what experts exchange and, with one node, for all; between nodes for the rest."""
    inside = Link(INPUTS["node_latency"].value, INPUTS["node_bytes_per_second"].value)
    network = Link(INPUTS["network_latency"].value * math.log2(max(2, ranks)), INPUTS["network_bytes_per_second"].value)
    everywhere = inside if ranks <= OF_A_NODE else network
    return dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all"), inside) | dict.fromkeys(
        ("all_reduce", "gather", "broadcast"), everywhere
    )


def group_size(method: Method, ranks: int) -> int:
    """The largest expert-parallel group of a power of two inside a node that its experts allow."""
    fewest = min(len(method.expert_costs()), OF_A_NODE, ranks)
    return 2 ** int(math.log2(fewest))


def project(job: Projected, rate: float) -> dict[str, Any]:
    """A step on every number of GPUs, of a batch that grows with them and of the job's own."""
    dense, experts = costs(job.method)
    work = Work(dense.on_gpu(rate), experts.on_gpu(rate))
    rows: dict[str, Any] = {}
    for ranks in GPUS:
        layout = Layout(ranks, group_size(job.method, ranks))
        rows[str(ranks)] = {"group": layout.group, "grown": step(job.method, work, layout, A_RANK * ranks)}
        if job.batch >= ranks:
            rows[str(ranks)]["own"] = step(job.method, work, layout, job.batch)
    about = {"gflop_an_image": (dense.flops + experts.flops) / 1e9, "kernels": dense.kernels + experts.kernels}
    return about | {"of_experts": experts._asdict(), "batch": job.batch, "gpus": rows}


def step(method: Method, work: Work, layout: Layout, batch: int) -> dict[str, float]:
    """Milliseconds of a step, computing and exchanging, and megabytes that a rank sends."""
    sent = exchanges(method, layout, batch) if layout.ranks > 1 else []
    busiest = busiest_share(method, layout, min(batch, A_RANK * layout.group))
    computing, exchanging = computing_seconds(work, layout, batch, busiest), exchange_seconds(sent, links(layout.ranks))
    return {
        "computing_ms": 1e3 * computing,
        "exchanging_ms": 1e3 * exchanging,
        "step_ms": 1e3 * (computing + exchanging),
        "images_per_second": batch / (computing + exchanging),
        "sent_mb": sum(each.sent for each in sent) / 1e6,
    }


def project_refresh(rate: float, samples: int = 70_000) -> dict[str, Any]:
    """EDCWRN's refresh of the target of all images of MNIST: what the first rank computes is measured here."""
    refreshes = Refreshes(samples, 0, 1)
    started = time.process_time()
    refreshes.on_the_first()()
    alone = time.process_time() - started
    autoencoder = 2 * 3 * (784 * 500 + 500 * 500 + 500 * 2000 + 2000 * 10)  # two encoders, and as much again to load
    rows = {}
    for ranks in GPUS:
        encoding = samples / ranks * autoencoder / rate
        sent = exchange_seconds(refresh_exchanges(samples, ranks), links(ranks)) if ranks > 1 else 0.0
        rows[str(ranks)] = {"encoding_ms": 1e3 * encoding, "alone_ms": 1e3 * alone, "exchanging_ms": 1e3 * sent}
    return {"samples": samples, "alone_seconds_here": alone, "gpus": rows}


def tables(content: Mapping[str, Any]) -> str:
    """The Markdown of docs/scaling.md."""
    lines = ["| input | value | |", "|---|---|---|"]
    for name, each in content["inputs"].items():
        lines.append(f"| {name.replace('_', ' ')} | {each['value']:.3g} | {each['kind']}: {each['whence']} |")
    for name, found in content["steps"].items():
        lines += ["", f"**{name}** ({found['kernels']:,} kernels, {found['gflop_an_image']:.3g} GFLOP an image)", ""]
        columns = ["GPUs (groups of)", f"step of {A_RANK} images a GPU", "of it exchanging", "MB sent a rank"]
        columns += ["images/s", "to one GPU", f"step of the job's batch of {found['batch']}"]
        lines += [row_of(columns), row_of(["---", *["---:"] * 6])]
        alone = found["gpus"]["1"]["grown"]["images_per_second"]
        lines += [row_of(cells(ranks, row, alone)) for ranks, row in found["gpus"].items()]
    return "\n".join(lines)


def cells(ranks: str, row: Mapping[str, Any], alone: float) -> list[str]:
    """A row of a table. alone: the images/s of one GPU."""
    grown, own = row["grown"], row.get("own")
    return [
        f"{ranks} ({row['group']})",
        f"{grown['step_ms']:.1f} ms",
        f"{grown['exchanging_ms'] / grown['step_ms']:.0%}",
        f"{grown['sent_mb']:.3g}",
        f"{grown['images_per_second']:,.0f}",
        f"{grown['images_per_second'] / alone:.1f}",
        "fewer images than GPUs" if own is None else f"{own['step_ms']:.1f} ms",
    ]


def row_of(texts: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    main()
