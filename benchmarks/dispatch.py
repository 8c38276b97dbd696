"""A step of DFCP-MoE's joint stage with conditional dispatch against all experts on all samples, for 43 experts.

    python benchmarks/dispatch.py [--batch 64] [--threads 1] [--rounds 15]

The experts are Table 1's (jobs/dfcp/table1.yaml), the managing network Table 2's, images have 32 x 32 pixels, labels
are drawn as Table 1's sample counts are, and the gate is untrained. Four parts, each forward and backward:
experts: the 43 experts, given whose samples are whose; gate: the managing network, which nothing saves; step: loss,
backward and both optimisers of the method itself. Conditional dispatch hands images on channels last; what that alone
would gain where all experts see all samples is the part "experts, all, channels last".

The clock is the CPU time of the process; a ratio is the median over rounds, in which the two ways take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from machine import machine
from torch import nn

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine
from moe_dist.job import load_job
from moe_dist.methods.dfcp import dispatch
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.method import Dfcp
from moe_dist.methods.dfcp.network import Mixture, optimisers
from moe_dist.methods.phases import Progress
from moe_dist.settings.resources import ParallelConfig

RESULTS = Path(__file__).parent / "results" / "dispatch.json"
JOB = Path(__file__).parents[1] / "jobs" / "dfcp" / "gtsrb.yaml"
CLASSES, SIDE = 43, 32
SAMPLES = (
    *(210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200, 210),
    *(360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240),
    240,
)
"""Table 1's samples of each class."""
WAYS = ("all", "conditional")


def main() -> None:
    """Measure, print and write results/dispatch.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured_on = machine()
    method, batch = {way: method_of(way) for way in WAYS}, batch_of(options.batch)
    network = cast(Mixture, method["all"].build(IN_ONE_PROCESS, {}, 0))
    seen = method["conditional"]._seen(network.gate(batch.images), batch, 0, 0)
    work = {
        "experts, all": lambda: forward_and_backward(lambda: torch.stack(network.experts(batch.images), 1)),
        "experts, all, channels last": lambda: forward_and_backward(
            lambda: torch.stack(network.experts(batch.images.contiguous(memory_format=torch.channels_last)), 1)
        ),
        "experts, conditional": lambda: forward_and_backward(lambda: network.experts.of_chosen(batch.images, seen)),
        "gate": lambda: forward_and_backward(lambda: network.gate(batch.images)),
        **{f"step, {way}": step_of(method[way], batch) for way in WAYS},
    }
    seconds = measure(work, options.rounds)
    content = {
        **measured_on,
        "threads": options.threads,
        "batch": options.batch,
        "experts": CLASSES,
        "experts_a_sample": round(float(seen.sum(1).float().mean()), 2),
        "milliseconds": {name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()},
        "all_to_conditional": {
            name: round(statistics.median(np.divide(seconds[name], seconds[f"{name.split(',')[0]}, conditional"])), 2)
            for name in ("experts, all", "experts, all, channels last", "step, all")
        },
    }
    print(json.dumps(content, indent=1))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def method_of(way: str) -> Dfcp:
    """DFCP-MoE as the GTSRB job has it, with one way of dispatch."""
    config = load_job(JOB).models["dfcp"]
    assert isinstance(config, DfcpConfig)
    joint = config.joint.model_copy(update={"dispatch": way})
    names = tuple(map(str, range(CLASSES)))
    return Dfcp(config.model_copy(update={"joint": joint}), DatasetInfo(CLASSES, names, SIDE, sum(SAMPLES)))


def batch_of(size: int) -> Batch:
    """A batch of random images, their classes drawn as Table 1 counts them, with their portions."""
    torch.manual_seed(0)
    labels = np.repeat(np.arange(CLASSES), SAMPLES)
    chosen = np.random.default_rng(0).choice(len(labels), size, replace=False)
    portion = torch.from_numpy(dispatch.portions(labels, 0.1)[chosen])
    images, weight = torch.randn(size, 3, SIDE, SIDE), torch.full((size,), 1 / size)
    own = (torch.from_numpy(labels[chosen]), torch.from_numpy(chosen), weight)
    return Batch(images, *own, columns={dispatch.PORTION: portion})


def forward_and_backward(forward: Callable[[], torch.Tensor]) -> None:
    """A forward pass, and the backward pass of the mean of squares."""
    forward().square().mean().backward()


def step_of(method: Dfcp, batch: Batch) -> Callable[[], None]:
    """A whole step: loss, backward pass and the optimisers of the experts and the gate."""
    network: nn.Module = method.build(IN_ONE_PROCESS, {}, 0)
    engine = make_engine(
        network,
        optimisers(method.experts, method.config.gate),
        parallel=ParallelConfig(),
        clip_norm=None,
        device=torch.device("cpu"),
        bf16=False,
        ranks=1,
        deepspeed=False,
    )

    def step() -> None:
        terms = method.loss(engine.network, batch, Progress("joint", 0, 1, 1))
        engine.backward(torch.stack(list(terms.values())).sum())
        engine.step()

    return step


def measure(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every part in each round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, part in work.items():
            started = time.process_time()
            part()
            seconds[name].append(time.process_time() - started)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    main()
