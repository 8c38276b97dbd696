"""What the modules of multi-scale GMM-MoE cost: DenseNet-121 with Table 1's modules against DenseNet-121 alone.

    python benchmarks/gmm_moe.py [--threads 1] [--device cuda]

network: parameters, multiply-adds of an image of 224 pixels, milliseconds of a forward and of a training step, and the
peak of memory that each adds to the process (a process for each, Linux; on a GPU the allocator's), with and without.
parts: the same of each module's parts, forward, in eval mode, on maps of the taps' sizes.
experts: their forward time over that of the same number of bare convolutions of the same shape: what is beside the
multiply-adds (batch normalisation, ReLU, weights, sum) costs. The goal is at most 1.2.
posterior: the closed form (two matrix products) against the direct broadcast [B, s, s, E, D] at conv3's size, time and
peak memory. The goals are 3 x and 5 x.
routes: all experts at every place against the one or two of largest responsibility.

Milliseconds are medians of the process's CPU time (on a GPU of the wall's) over the rounds, contenders in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from machine import machine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.gmm_moe.config import GmmMoeConfig
from moe_dist.methods.gmm_moe.method import GmmMoe
from moe_dist.models.experts import Experts
from moe_dist.models.gmm_moe import ConvolutionalExpert, GMMMoE, log_joint
from moe_dist.models.multi_scale import MultiScaleNetwork

RESULTS = Path(__file__).parent / "results" / "gmm_moe.json"
SIDE, CLASSES = 224, 102
CONTENDERS = ("linear", "none", "gmm")
POSTERIORS = ("closed_form", "broadcast")


def main() -> None:
    """Measure, print and write results/gmm_moe.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory-of", help="measure the peak memory of one thing, print it, and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    if options.memory_of:
        print(peak_memory(options.memory_of, options.batch, device))
        return
    content = machine() | {"device": str(device), "threads": options.threads, "batch": options.batch}
    content["network"] = networks(options, device)
    network = build("gmm").eval().to(device)
    with torch.inference_mode():
        maps = network.backbone(torch.randn(options.batch, 3, SIDE, SIDE, device=device))
        for module, each in zip(network.mixtures.values(), maps):
            module.initialise(each)
        content["parts"] = parts(network, maps, options.rounds)
        content["experts"] = experts_over_convolutions(network, maps, options.rounds)
        content["posterior"] = posteriors(options, device)
        content["routes"] = routes(network, maps, options.rounds)
    print(json.dumps(content, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def build(modules: str) -> MultiScaleNetwork:
    """The paper's network with random weights."""
    info = DatasetInfo(CLASSES, tuple(map(str, range(CLASSES))), SIDE, 1)
    method = GmmMoe(GmmMoeConfig.model_validate({"weights": None, "modules": modules}), info)
    return cast(MultiScaleNetwork, method.build(IN_ONE_PROCESS, {}, 0))


def networks(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Sizes, times and memory of the network with and without modules."""
    made = {name: build(name).to(device) for name in CONTENDERS}
    images = torch.randn(options.batch, 3, SIDE, SIDE, device=device)
    forward = milliseconds({name: forward_of(each, images) for name, each in made.items()}, options.rounds, device)
    training = milliseconds({name: step_of(each, images) for name, each in made.items()}, options.rounds, device)
    return {
        name: {
            "parameters": sum(parameter.numel() for parameter in each.parameters()),
            "gmac_an_image": round(gmac(forward_of(each, images[:1])), 2),
            "forward_ms": forward[name],
            "training_step_ms": training[name],
            "forward_peak_mib": memory_elsewhere(f"forward:{name}", options),
            "training_peak_mib": memory_elsewhere(f"training:{name}", options),
        }
        for name, each in made.items()
    }


def forward_of(network: nn.Module, images: Tensor) -> Callable[[], Any]:
    """A forward pass in eval mode, without gradients."""

    def run() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    return run


def step_of(network: MultiScaleNetwork, images: Tensor) -> Callable[[], Any]:
    """Forward and backward in training mode, without the optimiser's update."""

    def run() -> None:
        network.train()
        network.zero_grad(set_to_none=True)
        outputs = network(images)
        auxiliary = network.auxiliary(outputs)
        (outputs.logits.square().mean() + (0.0 if auxiliary is None else auxiliary.mean())).backward()

    return run


def parts(network: MultiScaleNetwork, maps: list[Tensor], rounds: int) -> dict[str, Any]:
    """Of each tap: multiply-adds of an image and milliseconds of each part of its module."""
    found = {}
    for (tap, module), each in zip(network.mixtures.items(), maps):
        local = module.project(each)
        _, weights, _ = module._assign(local)
        inputs = local.permute(0, 3, 1, 2)
        inputs = (
            inputs.contiguous() if module.kernel > 1 and each.device.type == "cpu" else inputs
        )  # as the module does
        runs: dict[str, Callable[[], Any]] = {
            "projection": lambda module=module, each=each: module.project(each),
            "gate": lambda module=module, local=local: module._assign(local),
            "experts": lambda module=module, inputs=inputs, weights=weights: group(module).weighted_sum(
                inputs, weights
            ),
            "output": lambda module=module, inputs=inputs: module.output(inputs),
            "module": lambda module=module, each=each: module(each),
        }
        taken = milliseconds(runs, rounds, each.device)
        found[tap] = {
            name: {"gmac_an_image": round(gmac(run) / len(each), 3), "ms": taken[name]} for name, run in runs.items()
        }
    return found


def group(module: GMMMoE) -> Experts:
    """The module's experts."""
    return cast(Experts, module.experts)


def experts_over_convolutions(network: MultiScaleNetwork, maps: list[Tensor], rounds: int) -> dict[str, Any]:
    """Of each tap: the experts' time, that of their bare convolutions, and the ratio."""
    found: dict[str, dict[str, float]] = {}
    for (tap, module), each in zip(network.mixtures.items(), maps):
        local = module.project(each)
        _, weights, _ = module._assign(local)
        inputs = local.permute(0, 3, 1, 2)
        inputs = (
            inputs.contiguous() if module.kernel > 1 and each.device.type == "cpu" else inputs
        )  # as the module does
        convolutions = [cast(ConvolutionalExpert, expert).convolution for expert in group(module).members.values()]
        runs = {
            "experts": lambda module=module, inputs=inputs, weights=weights: group(module).weighted_sum(
                inputs, weights
            ),
            "convolutions": lambda inputs=inputs, convolutions=convolutions: [each(inputs) for each in convolutions],
        }
        taken = milliseconds(runs, rounds, each.device)
        found[tap] = taken | {"ratio": round(taken["experts"] / taken["convolutions"], 2)}
    sums = [sum(taken[name] for taken in found.values()) for name in ("experts", "convolutions")]
    return {**found, "ratio_of_all": round(sums[0] / sums[1], 2)}


def posterior_inputs(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [B, 28, 28, 256], log prior [B, 1, 1, 10], means and precisions [10, 256]: conv3's."""
    means, precisions = torch.randn(10, 256, device=device), torch.rand(10, 256, device=device) + 0.1
    features = functional.layer_norm(torch.randn(batch, 28, 28, 256, device=device), (256,))
    return features, torch.zeros(batch, 1, 1, 10, device=device), means, precisions


def broadcast(features: Tensor, log_prior: Tensor, means: Tensor, precisions: Tensor) -> Tensor:
    """Eq 9 as it is printed."""
    squares = precisions * (features[..., None, :] - means).square() - precisions.log()
    return log_prior - 0.5 * squares.sum(-1)


def posteriors(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time and peak memory of both, and how much better the closed form is."""
    inputs = posterior_inputs(8 * options.batch, device)
    torch.testing.assert_close(log_joint(*inputs), broadcast(*inputs), rtol=1e-4, atol=1e-2)
    runs = {"closed_form": lambda: log_joint(*inputs), "broadcast": lambda: broadcast(*inputs)}
    taken = milliseconds(runs, 3 * options.rounds, device)
    memory = {name: memory_elsewhere(f"posterior:{name}", options) for name in POSTERIORS}
    return {
        "batch": 8 * options.batch,
        "ms": taken,
        "peak_mib": memory,
        "times_faster": round(taken["broadcast"] / taken["closed_form"], 1),
        "times_less_memory": round(memory["broadcast"] / memory["closed_form"], 1),
    }


def routes(network: MultiScaleNetwork, maps: list[Tensor], rounds: int) -> dict[str, Any]:
    """Of each tap: milliseconds of its module where all, two or one of its experts are computed at each place."""
    found = {}
    for (tap, module), each in zip(network.mixtures.items(), maps):

        def run(route: str, module: GMMMoE = module, each: Tensor = each) -> None:
            with module.routed(route):
                module(each)

        runs = {route: lambda route=route: run(route) for route in ("all", "top2", "top1")}
        found[tap] = milliseconds(runs, rounds, each.device)
    return found


def memory_elsewhere(what: str, options: argparse.Namespace) -> float:
    """`peak_memory` of it in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", what, "--device", options.device]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_memory(what: str, batch: int, device: torch.device) -> float:
    """MiB that a run adds, at its peak, to what network and inputs take of the process; on a GPU of its memory."""
    kind, _, name = what.partition(":")
    if kind == "posterior":
        inputs = posterior_inputs(8 * batch, device)
        run = {"closed_form": lambda: log_joint(*inputs), "broadcast": lambda: broadcast(*inputs)}[name]
    else:
        network, images = build(name).to(device), torch.randn(batch, 3, SIDE, SIDE, device=device)
        run = (forward_of if kind == "forward" else step_of)(network, images)  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident = process_memory("VmRSS")
    run()
    return round(process_memory("VmHWM") - resident, 1)


def process_memory(name: str) -> float:
    """A line of Linux's account of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def gmac(run: Callable[[], Any]) -> float:
    """Billions of multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def milliseconds(runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median of each over the rounds, in turn; one round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name, run in runs.items():
            started = clock(device)
            run()
            if number >= 0:
                seconds[name].append(clock(device) - started)
    return {name: round(1e3 * statistics.median(values), 2) for name, values in seconds.items()}


def clock(device: torch.device) -> float:
    """CPU seconds of this process, in which other programs do not count; on a GPU the wall's, once it is idle."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
