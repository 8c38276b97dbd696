"""Deep clustering: our step beside bare PyTorch's, an update of 437,513 codes' target, and time to 97 % on MNIST-test.

    python benchmarks/deep_clustering.py [--parts step update] [--threads 1] [--codes CODES.npy]
    python benchmarks/deep_clustering.py --parts to_accuracy --mnist FOLDER   (t10k-*.gz; time_to_accuracy.py)

Each part writes its own section of results/deep_clustering.json, with what it was measured on.

step: made-up images of MNIST's size, batch 256, autoencoder 784-500-500-2000-10. bare: inputs that lie in memory, the
same network and loss written out, torch.optim.SGD. ours: the stream's batches, what a refresh left beside them, and
train/loop.py's step. EDCWRN's neighbours are among all samples. Both run in turn; a ratio is the median of rounds.
There are two clocks: the wall's and this process's CPU time, in which other programs on the machine do not count.

update: of the target, of N x 10 codes and 10 clusters, with k = 2 neighbours among all: the neighbours alone, and all
of it. Without --codes (arrays of a trained model) they are made up: a mixture of 1,000 normal distributions in ten
dimensions. Peak: what it adds to the process's memory. Recall: of the neighbours of 200 codes, by all their distances.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from machine import machine
from time_to_accuracy import CONTENDERS, time_to_accuracy
from torch import Tensor

from moe_dist.data.batch import DatasetInfo, TrainingSet
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine
from moe_dist.estimators import ArraySamples
from moe_dist.methods.edcwrn import equations
from moe_dist.methods.edcwrn.config import EdcwrnConfig, IdecConfig
from moe_dist.methods.edcwrn.method import Edcwrn
from moe_dist.methods.edcwrn.neighbours import nearest_of_all
from moe_dist.methods.edcwrn.network import ClusteringNetwork
from moe_dist.methods.edcwrn.update import update
from moe_dist.methods.phases import Progress
from moe_dist.settings.data import DataConfig
from moe_dist.settings.resources import ParallelConfig
from moe_dist.train import loop
from moe_dist.train.session import GradientShares

RESULTS = Path(__file__).parent / "results" / "deep_clustering.json"
SAMPLES, SIDE, CLUSTERS, BATCH = 4096, 28, 10, 256
INAT_SAMPLES = 437_513
DATA = DataConfig(mean=(0, 0, 0), std=(1, 1, 1), image_size=SIDE)
AT = Progress("cluster", epoch=0, epochs=100, step=1)
Train = Callable[[int], None]
"""Makes so many training steps."""


def main() -> None:
    """Measure, print and write results/deep_clustering.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["step", "update"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codes", type=Path, help="an .npy of codes [N, 10], repeated with noise to the full number")
    parser.add_argument("--mnist", type=Path, help="the folder of MNIST's files")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--pretrain-steps", type=int, default=12_000)
    parser.add_argument("--cluster-steps", type=int, default=6_000, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "to_accuracy" in options.parts and options.mnist is None:
        parser.error("to_accuracy needs --mnist")
    torch.set_num_threads(options.threads)
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        measured_on = machine() | {"threads": options.threads}
        content[part] = measured_on | PARTS[part](options)
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        print(json.dumps({part: content[part]}, indent=1))


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """The ratio of EDCWRN's and of IDEC's step."""
    configs = (EdcwrnConfig(), IdecConfig())
    ratios = {config.name: step_ratio(config, options.steps, options.rounds) for config in configs}
    return {"batch": BATCH} | ratios


def step_ratio(config: EdcwrnConfig, steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step by both clocks, and the bare step's time over ours."""
    pixels = torch.randint(0, 256, (SAMPLES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(0))
    pixels[:, 1:] = pixels[:, :1]
    info = DatasetInfo(CLUSTERS, tuple(map(str, range(CLUSTERS))), SIDE, SAMPLES)
    method = Edcwrn(config, info)
    contenders = {"bare": bare(method, pixels), "ours": ours(method, pixels)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, train in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            train(steps)
            if number:  # the first round warms up
                times[name].append(((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps))
    found = {}
    for clock, name in enumerate(("wall", "cpu")):
        for contender, pairs in times.items():
            found[f"{contender}_{name}_ms"] = round(1000 * statistics.median(pair[clock] for pair in pairs), 1)
        ratios = [theirs[clock] / own[clock] for theirs, own in zip(times["bare"], times["ours"])]
        found[f"ratio_{name}"] = round(statistics.median(ratios), 3)
    return found


def left_by_refresh(method: Edcwrn) -> dict[str, np.ndarray]:
    """Made-up targets, labels and neighbours."""
    draws = np.random.default_rng(0)
    target = draws.dirichlet(np.ones(CLUSTERS), SAMPLES).astype(np.float32)
    arrays = {"target": target, "label": target.argmax(1)}
    if count := method.config.neighbours.count:
        arrays["neighbours"] = draws.integers(0, SAMPLES, (SAMPLES, count))
    return arrays


def network_of(method: Edcwrn) -> ClusteringNetwork:
    """The network, its centres where codes are."""
    network = method.build(IN_ONE_PROCESS, {}, 0)
    assert isinstance(network, ClusteringNetwork)
    torch.nn.init.normal_(network.centres, std=0.1, generator=torch.manual_seed(0))
    return network.train()


def ours(method: Edcwrn, pixels: Tensor) -> Train:
    """The stream and the loop's own step."""
    stage = method.stages()[1]
    network, device = network_of(method), torch.device("cpu")
    engine = make_engine(
        network,
        stage.optimisers,
        parallel=ParallelConfig(),
        clip_norm=None,
        device=device,
        bf16=False,
        ranks=1,
        deepspeed=False,
    )
    chosen = TrainingSet(np.arange(SAMPLES), np.zeros(SAMPLES, np.int64))
    stream = Stream(ArraySamples(pixels), chosen, DATA, seed=0, global_batch=BATCH, rank=0, ranks=1)
    session = SimpleNamespace(engine=engine, stage=stage, accumulate=1, gradients=GradientShares(0, 1))
    arrays = left_by_refresh(method)

    def batches() -> Iterator[object]:
        while True:
            for batch in stream.epoch(arrays, stage.companions):
                yield batch
                stream.advance()

    endless = batches()

    def train(steps: int) -> None:
        for _ in range(steps):
            losses = loop.train_step(method, session, next(endless), AT)  # type: ignore[arg-type]
            loop.checked(losses, 1, 1, stage.name)

    return train


def bare(method: Edcwrn, pixels: Tensor) -> Train:
    """The same step written out: inputs in memory, rows by a permutation, the loss of Eq 12."""
    config, network = method.config, network_of(method)
    inputs = pixels[:, 0].flatten(1).float() / 255
    arrays = {name: torch.from_numpy(values) for name, values in left_by_refresh(method).items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=config.optimiser.learning_rate, momentum=0.9)
    generator = torch.manual_seed(0)

    def train(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(0, SAMPLES, (BATCH,), generator=generator)
            seen = inputs[rows]
            codes = network.autoencoder.encoder(seen)
            if network.neighbour_encoder is not None:
                beside = network.neighbour_encoder(inputs[arrays["neighbours"][rows].flatten()])
                codes = codes + beside.unflatten(0, (BATCH, -1)).amax(1)
            if config.formulation == "idec":
                log_q = equations.log_student((codes[:, None] - network.centres).square().sum(2))
                apart = equations.divergence(arrays["target"][rows], log_q)
            else:
                distances = (network.weights * (codes[:, None] - network.centres).square()).sum(2)
                log_q = equations.log_proposed(distances, config.a, config.b)
                apart = equations.cross_entropy(arrays["target"][rows], log_q, normalise=True)
            error = (network.autoencoder.decoder(codes) - seen).square().mean()
            loss = error + config.clustering_weight * apart.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()

    return train


def update_of_all(options: argparse.Namespace) -> dict[str, Any]:
    """The neighbours among as many codes as iNaturalist 2018 has images, and the whole update of their target."""
    codes = codes_like(options.codes)
    found: dict[str, np.ndarray] = {}
    neighbours = measured(lambda: found.update(neighbours=nearest_of_all(codes, 2)))
    centres = torch.from_numpy(codes[:: len(codes) // CLUSTERS][:CLUSTERS])
    halves = {"own": codes / 2, "beside": codes / 2}
    whole = measured(lambda: update(EdcwrnConfig(), centres, torch.full(centres.shape, 0.1), halves, None))
    made = options.codes.name + ", repeated with noise" if options.codes else "made up"
    about = {"codes": made, "samples": INAT_SAMPLES, "k": 2, "recall": recall(codes, found["neighbours"])}
    return about | {"neighbours": neighbours, "whole": whole}


def codes_like(path: Path | None) -> np.ndarray:
    """INAT_SAMPLES codes [N, 10]: those of a file, repeated with noise, or made-up ones."""
    draws = np.random.default_rng(0)
    if path is None:
        centres = draws.normal(scale=5, size=(1000, 10))
        codes = centres[draws.integers(0, 1000, INAT_SAMPLES)] + draws.normal(size=(INAT_SAMPLES, 10))
    else:
        known = np.load(path, allow_pickle=False)
        rows = draws.integers(0, len(known), INAT_SAMPLES)
        codes = known[rows] + 0.05 * known.std(0) * draws.normal(size=(INAT_SAMPLES, known.shape[1]))
    return codes.astype(np.float32)


def measured(function: Callable[[], object]) -> dict[str, float]:
    """Seconds by both clocks, and the megabytes that it adds to this process's memory at its peak."""
    process, stop, highest = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    seconds = {"wall_seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    stop.set()
    watcher.join()
    return seconds | {"added_megabytes": round((highest[0] - before) / 1e6)}


def recall(codes: np.ndarray, neighbours: np.ndarray) -> float:
    """The share of the neighbours found of 200 codes that are as near as the nearest by all distances, in float64."""
    rows, as_near = np.random.default_rng(1).choice(len(codes), 200, replace=False), 0
    for row in rows:
        distances = np.square(codes.astype(np.float64) - codes[row]).sum(1)
        distances[row] = np.inf
        farthest = np.partition(distances, neighbours.shape[1] - 1)[neighbours.shape[1] - 1]
        as_near += int((distances[neighbours[row]] <= farthest * (1 + 1e-6)).sum())
    return as_near / (len(rows) * neighbours.shape[1])


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "step": steps,
    "update": update_of_all,
    "to_accuracy": time_to_accuracy,
}

if __name__ == "__main__":
    main()
