"""Images per second of an ICL training step on CIFAR-100-LT: ours beside the straightforward PyTorch implementation.

    python benchmarks/icl.py [--threads 2] [--device cuda]

Both train ResNet-32 with three aligned experts on made-up images (10,847 of 32 x 32 pixels, in the classes of imbalance
factor 100), batch 128, with every term of ICL's loss and SGD with momentum.
straightforward: one Pillow image at a time through torchvision's transforms (crop, flip, AutoAugment, Cutout) in
DataLoader workers, one a thread; the branches in a loop, float32, in torch's default memory layout.
ours: the stream's batched augmentation and train/loop.py's step on the network of models/branches.py: channels-last,
and bfloat16 autocast unless --precision fp32.

Both run in this process, in turn, and both profit from what moe_dist/__init__.py asks of the allocator; the loader's
workers go on preparing batches while ours trains. There are two clocks: the wall's, and the CPU time of this process
and its loader workers, in which other programs on the machine do not count. A ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from held_images import HeldImages
from icl_straightforward import MEAN, STD, Straightforward, loaded_batches
from machine import machine

from moe_dist.data.batch import Batch, DatasetInfo, TrainingSet
from moe_dist.data.longtail import profile
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.longtail.method import FEATURES
from moe_dist.methods.phases import Progress, Stage
from moe_dist.optimisers import torch_optimiser
from moe_dist.settings.data import DataConfig
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig
from moe_dist.train import loop
from moe_dist.train.session import LOG_EVERY_STEPS, GradientShares

RESULTS = Path(__file__).parent / "results" / "icl.json"
CLASSES, SIDE, EXPERTS = 100, 32, 3
LARGEST_CLASS, IMBALANCE = 500, 100.0
RATE = 0.01
AT = Progress(FEATURES, epoch=0, epochs=200, step=1)
Train = Callable[[int], None]
"""Makes so many training steps, and waits for the last one's result."""


def main() -> None:
    """Measure, print and write results/icl.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=8, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured_on = machine()
    sizes = profile(LARGEST_CLASS, IMBALANCE, CLASSES)
    labels = np.repeat(np.arange(CLASSES), sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, SIDE, SIDE), np.uint8)
    info = DatasetInfo(CLASSES, tuple(map(str, range(CLASSES))), SIDE, len(labels), tuple(sizes.tolist()))
    method = Icl(IclConfig(experts=EXPERTS, t_ad=AT.epochs, t_cl=0), info)
    device = torch.device(options.device)
    contenders = {
        "ours": ours(method, pixels, labels, device, options.precision == "bf16"),
        "straightforward": straightforward(method, pixels, labels, device, options.threads),
    }
    batch_size = method.stages()[0].batch_size
    content = {
        **measured_on,
        "device": str(device),
        "precision": options.precision,
        "threads": options.threads,
        **measure(contenders, options.steps, options.rounds, batch_size),
    }
    print(json.dumps(content, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def ours(method: Icl, pixels: np.ndarray, labels: np.ndarray, device: torch.device, bf16: bool) -> Train:
    """The first stage of the method as train/loop.py trains it."""
    stage = method.stages()[0]
    data = DataConfig(image_size=SIDE, mean=MEAN, std=STD)
    everything = TrainingSet(np.arange(len(labels)), labels)
    stream = Stream(
        HeldImages(pixels),
        everything,
        data,
        seed=0,
        global_batch=stage.batch_size,
        rank=0,
        ranks=1,
        augment=stage.augment,
        device=device,
    )
    session = opened(method, stage, device, bf16)
    batches = endless(stream)

    def train(steps: int) -> None:
        for step in range(1, steps + 1):
            losses = loop.train_step(method, session, next(batches), AT)
            stream.advance()
            if step % session.log_every == 0 or step == steps:
                loop.checked(losses, 1, step, stage.name)

    return train


def opened(method: Icl, stage: Stage, device: torch.device, bf16: bool) -> Any:
    """What a step of one rank takes of a session."""
    network = method.build(IN_ONE_PROCESS, {}, seed=0)
    engine = make_engine(
        network.train(),
        stage.optimisers,
        parallel=ParallelConfig(),
        clip_norm=None,
        device=device,
        bf16=bf16,
        ranks=1,
        deepspeed=False,
    )
    engine.optimiser.scale_rates(RATE / method.config.features.learning_rate)
    gradients, log_every = GradientShares(0, 1), LOG_EVERY_STEPS[device.type]
    return SimpleNamespace(
        engine=engine, stage=stage, gradients=gradients, accumulate=1, captured=None, log_every=log_every
    )


def endless(stream: Stream) -> Iterator[Batch]:
    """The stream's batches, epoch after epoch."""
    while True:
        yield from stream.epoch()


def straightforward(method: Icl, pixels: np.ndarray, labels: np.ndarray, device: torch.device, workers: int) -> Train:
    """The same losses on a plain network and per-image transforms."""
    batch_size = method.stages()[0].batch_size
    network = Straightforward(EXPERTS, CLASSES).to(device).train()
    optimiser = torch_optimiser(
        network.parameters(), OptimiserConfig(kind="sgd", learning_rate=RATE, weight_decay=5e-4)
    )
    batches = loaded_batches(pixels, labels, batch_size, workers)
    weight = torch.full((batch_size,), 1 / batch_size, device=device)

    def train(steps: int) -> None:
        for _ in range(steps):
            images, own = (part.to(device) for part in next(batches))
            terms = method.loss(network, Batch(images, own, own, weight), AT)
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            assert loss.isfinite()

    return train


def measure(contenders: dict[str, Train], steps: int, rounds: int, batch_size: int) -> dict[str, object]:
    """Median images per second of each contender by both clocks, and the rounds' ratios of ours to the other."""
    clocks = {"wall": time.perf_counter, "cpu": cpu_seconds}
    rates: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in contenders} for clock in clocks}
    for round_number in range(rounds + 1):  # the first one warms up
        for name, train in contenders.items():
            started = {clock: read() for clock, read in clocks.items()}
            train(steps)
            for clock, read in clocks.items():
                if round_number:
                    rates[clock][name].append(steps * batch_size / (read() - started[clock]))
    ratios = {
        clock: [mine / theirs for mine, theirs in zip(of_clock["ours"], of_clock["straightforward"])]
        for clock, of_clock in rates.items()
    }
    return {
        "images_per_second": {
            clock: {name: round(statistics.median(values), 1) for name, values in of_clock.items()}
            for clock, of_clock in rates.items()
        },
        "ratio": {clock: round(statistics.median(values), 2) for clock, values in ratios.items()},
        "ratios": {clock: [round(value, 2) for value in values] for clock, values in ratios.items()},
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its living children, the loader's workers."""
    children = (child.cpu_times() for child in psutil.Process().children())
    return time.process_time() + sum(times.user + times.system for times in children)


if __name__ == "__main__":
    main()
