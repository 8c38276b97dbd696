"""The deep stages of three branches as one grouped computation against a loop over them, as ICL's network has it.

    python benchmarks/branches.py [--threads 2] [--device cuda]

ResNet-32's third stage, three times, on the same map of its second (batch 128, 32 channels of 16 x 16), forward and
backward under bfloat16 autocast, channels-last.
loop: one stage after another, models/cifar_resnet.py.
grouped: the same weights side by side, 192 channels wide: the first convolutions, which all see the same map, are one
wide convolution, the others are convolutions in three groups; batch normalisation is per channel in either.

Both are held to the same outputs in float32 first. The clock is the CPU time of the process (on a GPU the wall's, with
the device waited for); a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from torch import Tensor, nn

from moe_dist.models import cifar_resnet

RESULTS = Path(__file__).parent / "results" / "branches.json"
EXPERTS, BATCH, CHANNELS, SIDE = 3, 128, 32, 16


def main() -> None:
    """Measure, print and write results/branches.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    measured_on = machine()
    stages = [cifar_resnet.stage(CHANNELS, 2 * CHANNELS, 2) for _ in range(EXPERTS)]
    contenders = {
        "loop": SideBySide(stages).to(device, memory_format=torch.channels_last),
        "grouped": grouped(stages).to(device, memory_format=torch.channels_last),
    }
    maps = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device).relu().to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(contenders["grouped"](maps), contenders["loop"](maps), rtol=1e-3, atol=1e-3)
    seconds = measure({name: step(network, maps) for name, network in contenders.items()}, device, options.rounds)
    content = {
        **measured_on,
        "device": str(device),
        "threads": options.threads,
        "milliseconds": {name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()},
        "grouped_over_loop": round(statistics.median(g / b for g, b in zip(seconds["grouped"], seconds["loop"])), 2),
    }
    print(json.dumps(content, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


class SideBySide(nn.Module):
    """Branches in a loop: a map [B, K, s, s] -> their maps, one after another along the channels."""

    def __init__(self, branches: list[nn.Sequential]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], 1)


def grouped(stages: list[nn.Sequential]) -> nn.Module:
    """One stage with the weights of all `stages` side by side: convolutions in as many groups, past the first ones."""
    wide = copy.deepcopy(stages[0])
    count = len(stages)
    for name, module in list(wide.named_modules()):
        parts = [stage.get_submodule(name) for stage in stages]
        if isinstance(module, nn.Conv2d):
            shared_input = name in ("0.conv1", "0.shortcut.0")
            module.groups = 1 if shared_input else count
            module.in_channels *= module.groups
            module.out_channels *= count
            module.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        elif isinstance(module, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(wide.get_submodule(parent), own, nn.BatchNorm2d(count * module.num_features))
    return wide


def step(network: nn.Module, maps: Tensor) -> Callable[[], None]:
    """Forward and backward, to the maps as well."""
    maps = maps.clone().requires_grad_()

    def run() -> None:
        with torch.autocast(maps.device.type, dtype=torch.bfloat16):
            outputs = network(maps)
        outputs.float().square().mean().backward()

    return run


def measure(contenders: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, in turn; two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-2, rounds):
        for name, run in contenders.items():
            started = clock(device)
            run()
            taken = clock(device) - started
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def clock(device: torch.device) -> float:
    """CPU seconds of this process, in which other programs do not count; on a GPU the wall's, once it is idle."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
