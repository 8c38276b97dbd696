"""Deep clustering: our training step beside the bare PyTorch step, and the neighbours of 437,513 codes.

    python benchmarks/deep_clustering.py [--threads 1] [--codes CODES.npy]

Step: made-up images of MNIST's size, batch 256, autoencoder 784-500-500-2000-10. bare: inputs that lie in memory, the
same network and loss written out, torch.optim.SGD. ours: the stream's batches, what a refresh left beside them, and
train/loop.py's step. EDCWRN's neighbours are among all samples. Both run in turn; a ratio is the median of rounds.
There are two clocks: the wall's and this process's CPU time, in which other programs on the machine do not count.

Neighbours: k = 2 of N x 10 codes, exact. Without --codes (arrays of a trained model) they are made up: a mixture of
1,000 normal distributions in ten dimensions. Peak: what the search adds to the process's memory.
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

import numpy as np
import psutil
import torch
from machine import machine
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codes", type=Path, help="an .npy of codes [N, 10], repeated with noise to the full number")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = machine() | {"threads": options.threads, "batch": BATCH}
    result["step"] = {
        config.name: step_ratio(config, options.steps, options.rounds) for config in (EdcwrnConfig(), IdecConfig())
    }
    result["neighbours"] = neighbour_search(options.codes)
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


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


def neighbour_search(path: Path | None) -> dict[str, object]:
    """Seconds and added memory of the search among all codes of a set as large as iNaturalist 2018's."""
    draws = np.random.default_rng(0)
    if path is None:
        centres = draws.normal(scale=5, size=(1000, 10))
        codes = centres[draws.integers(0, 1000, INAT_SAMPLES)] + draws.normal(size=(INAT_SAMPLES, 10))
    else:
        known = np.load(path, allow_pickle=False)
        rows = draws.integers(0, len(known), INAT_SAMPLES)
        codes = known[rows] + 0.05 * known.std(0) * draws.normal(size=(INAT_SAMPLES, known.shape[1]))
    codes = codes.astype(np.float32)
    process, stop, highest = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    nearest_of_all(codes, 2)
    found = {"wall_seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    stop.set()
    watcher.join()
    made = "made up" if path is None else f"{path.name}, repeated with noise"
    added = round((highest[0] - before) / 1e6)
    return {"codes": made, "samples": INAT_SAMPLES, "k": 2, **found, "added_megabytes": added, "exact": True}


if __name__ == "__main__":
    main()
