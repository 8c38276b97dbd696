"""Training many LeNet experts together in one process, beside training them one after another in one process.

    python benchmarks/bank.py [--threads 1 2] [--members 16 32 64] [--device cuda]

table1: the rows of jobs/dfcp/table1.yaml, again and again: batches of 16 to 64. search: widths, optimisers, rates and
batch sizes drawn as a search of experts draws them. Every member trains on as many samples of one held array of made-up
32-pixel images, and each batch is shifted, rotated and zoomed as DFCP's jobs do it, unless --plain.
one after another: LeNet as it stands and torch.optim, batch by batch. bank: moe_dist/bank, all members at once.
banks of one: moe_dist/bank, a bank for each member (`alone.bank: 1`); ratio_to_ones is the bank's speed over theirs.

All run in this process, in turn, after a round to warm up. There are two clocks: the wall's, and the CPU time of this
process, in which other programs on the machine do not count. A ratio is the median over the rounds. Without start-up
of processes, which benchmarks/search.py measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from held_images import HeldImages
from machine import machine
from torch import Tensor
from torch.nn import functional

from moe_dist.bank.bank import Bank
from moe_dist.bank.batches import EpochData, ImagesOf
from moe_dist.bank.stack import Member
from moe_dist.methods.dfcp.config import ExpertConfig
from moe_dist.methods.dfcp.views import Views
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.optimisers import torch_optimiser
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig

RESULTS = Path(__file__).parent / "results" / "bank.json"
TABLE_1 = Path(__file__).parents[1] / "jobs" / "dfcp" / "table1.yaml"
SIDE, IMAGES = 32, 4096
MOVES = AugmentConfig(shift=0.1, rotate=12, zoom=0.15)
Train = Callable[[], object]
"""Trains every member for one epoch."""


def main() -> None:
    """Measure, print and write results/bank.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--members", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--samples", type=int, default=192, help="of one member's epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="images are only normalised")
    options = parser.parse_args()
    content: dict[str, Any] = {
        **machine(),
        "device": options.device,
        "samples": options.samples,
        "augmented": not options.plain,
        "cases": [],
    }
    device, augment = torch.device(options.device), AugmentConfig() if options.plain else MOVES
    for name, experts in (("table1", table1), ("search", drawn)):
        for count in options.members:
            contenders = make_contenders(experts(count), options.samples, augment, device)
            for threads in options.threads:
                torch.set_num_threads(threads)
                case = {"experts": name, "members": count, "threads": threads}
                case |= measure(contenders, options.rounds, device)
                print(json.dumps(case), flush=True)
                content["cases"].append(case)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def table1(count: int) -> list[ExpertConfig]:
    """The paper's experts, from the first on, and round again."""
    rows = [ExpertConfig(**row) for row in yaml.safe_load(TABLE_1.read_text())]
    return [rows[number % len(rows)] for number in range(count)]


def drawn(count: int) -> list[ExpertConfig]:
    """Experts as a search tries them."""
    random = np.random.default_rng(0)
    return [
        ExpertConfig(
            conv1=int(random.integers(6, 21)),
            conv2=int(random.integers(16, 51)),
            fc1=int(random.integers(32, 257)),
            fc2=int(random.integers(32, 129)),
            optimiser=random.choice(["sgd", "rmsprop", "adam"]).item(),
            learning_rate=float(np.exp(random.uniform(np.log(5e-4), np.log(5e-3)))),
            batch_size=int(random.choice([16, 32, 64])),
        )
        for _ in range(count)
    ]


def made(experts: list[ExpertConfig]) -> list[Member]:
    """The experts as members of a bank, with their first weights."""
    return [
        Member(
            config.widths,
            config.optimiser_config,
            config.batch_size,
            seeded_member(lambda config=config: LeNet(config.widths, 1, SIDE), number, seed=0).state_dict(),
        )
        for number, config in enumerate(experts)
    ]


def make_contenders(
    experts: list[ExpertConfig], samples: int, augment: AugmentConfig, device: torch.device
) -> dict[str, Train]:
    """All three, on the same data; a round goes on where the last one ended."""
    members = made(experts)
    random = np.random.default_rng(1)
    epoch = {
        number: EpochData(random.permutation(IMAGES)[:samples], random.integers(0, 2, samples).astype(np.float32))
        for number in range(len(members))
    }
    images = HeldImages(np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIDE, SIDE), np.uint8))
    views = Views(images, DataConfig(image_size=SIDE), seed=0)

    def images_of(numbers: np.ndarray) -> Tensor:
        return views.augmented(images.uint8(numbers).to(device), numbers, 0, augment)

    bank = Bank(members, SIDE, device=device)
    ones = [Bank([member], SIDE, device=device) for member in members]
    alone = [one_alone(member, epoch[number], images_of, device) for number, member in enumerate(members)]

    def one_after_another() -> None:
        for train in alone:
            train()

    def banks_of_one() -> None:
        for number, one in enumerate(ones):
            one.train_epoch({0: epoch[number]}, images_of)

    return {
        "bank": lambda: bank.train_epoch(epoch, images_of),
        "banks_of_one": banks_of_one,
        "one_after_another": one_after_another,
    }


def one_alone(member: Member, data: EpochData, images_of: ImagesOf, device: torch.device) -> Train:
    """One epoch of one network under torch.optim."""
    network = LeNet(member.widths, 1, SIDE).to(device)
    network.load_state_dict(member.weights)
    optimiser = torch_optimiser(network.parameters(), member.optimiser)
    targets = torch.from_numpy(data.targets).to(device)

    def train() -> None:
        for start in range(0, len(data.samples), member.batch_size):
            rows = slice(start, start + member.batch_size)
            logits = network(images_of(data.samples[rows])).squeeze(1)
            functional.binary_cross_entropy_with_logits(logits, targets[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()

    return train


def measure(contenders: dict[str, Train], rounds: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of an epoch of all members by both clocks, and the others' median ratios to the bank."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, train in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            train()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    found: dict[str, Any] = {}
    for clock, kind in enumerate(("wall", "cpu")):
        for name, times in seconds.items():
            found[f"{name}_{kind}_s"] = round(statistics.median(time[clock] for time in times), 3)
        for ratio, other in (("ratio", "one_after_another"), ("ratio_to_ones", "banks_of_one")):
            pairs = zip(seconds[other], seconds["bank"])
            found[f"{ratio}_{kind}"] = round(
                statistics.median(theirs[clock] / bank[clock] for theirs, bank in pairs), 2
            )
    return found


if __name__ == "__main__":
    main()
