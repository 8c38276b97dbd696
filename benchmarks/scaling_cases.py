"""The five things whose scaling is measured, each of a shipped job or close to one, small enough for two cores.

dfcp, dfcp_conditional: the demo's joint stage, 10 experts, 32 pixels. icl: ResNet-32 of half the width, three experts.
gmm_moe: two modules of ten experts on a small ResNet. edcwrn: a refresh of the target of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from benchmarks.held_images import HeldImages
from benchmarks.step_time import Exchange, ring_bytes
from benchmarks.traffic import at, batch_of, stage_of
from moe_dist.data.batch import Batch, DatasetInfo, TrainingSet
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine, makers
from moe_dist.job import load_job
from moe_dist.methods.base import Method
from moe_dist.methods.edcwrn.config import EdcwrnConfig
from moe_dist.methods.edcwrn.method import Edcwrn
from moe_dist.methods.edcwrn.network import ClusteringNetwork
from moe_dist.methods.edcwrn.update import update
from moe_dist.methods.phases import Progress
from moe_dist.methods.registry import method_class
from moe_dist.settings.data import DataConfig
from moe_dist.settings.resources import ParallelConfig
from moe_dist.train import loop
from moe_dist.train.sample_view import SampleView
from moe_dist.train.session import GradientShares
from moe_dist.train.task import EVALUATION_BATCH

QUICK = Path(__file__).parents[1] / "jobs" / "repro" / "quick.yaml"
CLASSES, SIDE = 10, 32
SAMPLES = 4096
"""Of the set that DFCP's portions and ICL's class counts are of."""
AT_A_REFRESH = Progress("cluster", 0, 1, 1)


class Batches(NamedTuple):
    """Samples of a step: two sizes that one process is fitted at, and one that is held out."""

    few: int
    many: int
    between: int


class Case(NamedTuple):
    """A method as it is measured: of the job `QUICK` its entry `job`, changed."""

    job: str
    change: dict[str, Any]
    batches: Batches
    group_of_four: int
    """Expert-parallel size on four ranks."""


CASES = {
    "dfcp": Case("dfcp", {}, Batches(32, 128, 64), 4),
    "dfcp_conditional": Case("dfcp", {"joint": {"dispatch": "conditional"}}, Batches(32, 128, 64), 4),
    "icl": Case("icl", {}, Batches(16, 64, 32), 2),
    "gmm_moe": Case("gmm_moe", {}, Batches(16, 64, 32), 2),
}


def method_of(name: str) -> Method:
    """The method of a case."""
    case = CASES[name]
    config = load_job(QUICK).models[case.job]
    for field, values in case.change.items():
        config = config.model_copy(update={field: getattr(config, field).model_copy(update=values)})
    names, counts = tuple(map(str, range(CLASSES))), (SAMPLES // CLASSES,) * CLASSES
    return method_class(config.name)(config, DatasetInfo(CLASSES, names, SIDE, SAMPLES, counts))


class Training:
    """A case's last stage on one rank, as train/loop.py takes its steps, and as it logs each of them on a CPU."""

    def __init__(self, name: str, rank: int, ranks: int, group: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.method = method_of(name)
        self.stage = stage_of(self.method)
        network = self.method.build(makers(group, deepspeed=True), {}, 0)
        engine = make_engine(
            network,
            self.stage.optimisers,
            parallel=ParallelConfig(expert=group),
            clip_norm=self.stage.clip_norm,
            device=torch.device("cpu"),
            bf16=False,
            ranks=ranks,
            deepspeed=True,
        )
        self.method.set_training(engine.network, self.stage.name)
        own = {"engine": engine, "stage": self.stage, "captured": None, "accumulate": 1}
        self._session = cast(Any, SimpleNamespace(**own, gradients=GradientShares(rank, ranks)))
        self._batches: dict[int, Batch] = {}

    def step(self, batch: int) -> None:
        """One step of a global batch."""
        if batch not in self._batches:
            self._batches[batch] = batch_of(self.method, batch, self.rank, self.ranks)
        losses = loop.train_step(self.method, self._session, self._batches[batch], at(self.method))
        loop.checked(losses, self.ranks, 1, self.stage.name)


class Refreshes:
    """EDCWRN's refresh of the target of all samples on one rank: codes shared over the ranks, the rest on the first."""

    def __init__(self, samples: int, rank: int, ranks: int) -> None:
        info = DatasetInfo(CLASSES, tuple(map(str, range(CLASSES))), SIDE, samples)
        config = load_job(QUICK).models["edcwrn"]
        assert isinstance(config, EdcwrnConfig)
        self._method = Edcwrn(config, info)
        self._network = cast(ClusteringNetwork, self._method.build(IN_ONE_PROCESS, {}, 0).eval())
        torch.nn.init.normal_(self._network.centres, std=0.1, generator=torch.manual_seed(0))
        pixels = np.random.default_rng(0).integers(0, 256, (samples, 3, SIDE, SIDE), np.uint8)
        chosen = TrainingSet(np.arange(samples), np.arange(samples) % CLASSES)
        task = SimpleNamespace(job=SimpleNamespace(seed=0))
        data = SimpleNamespace(train=SimpleNamespace(images=HeldImages(pixels)), config=DataConfig(image_size=SIDE))
        training = cast(Any, SimpleNamespace(training_set=lambda stage: chosen, task=task, data=data))
        worker = cast(Any, SimpleNamespace(rank=rank, ranks=ranks, device=torch.device("cpu")))
        self._samples = SampleView(training, cast(Any, None), worker)

    @torch.no_grad()
    def refresh(self) -> None:
        """A whole refresh."""
        self._method._refresh(self._network, self._samples, {}, AT_A_REFRESH)

    @torch.no_grad()
    def encode(self) -> None:
        """What all ranks share the work of."""
        self._method._encoded(self._network, self._samples)

    @torch.no_grad()
    def on_the_first(self) -> Callable[[], None]:
        """What only the first rank computes."""
        encoded = self._method._encoded(self._network, self._samples)
        centres, weights = self._network.centres.detach(), self._network.weights
        return lambda: update(self._method.config, centres, weights, encoded, None) and None


def refresh_exchanges(samples: int, ranks: int) -> list[Exchange]:
    """Two codes of every sample are added up over the ranks; what the first one makes of them goes to all, pickled."""
    config = load_job(QUICK).models["edcwrn"]
    assert isinstance(config, EdcwrnConfig)
    code, neighbours = config.network.code, config.neighbours.count
    codes = 2 * ring_bytes(ranks, 4 * samples * code)
    result = samples * (4 * code + 4 * CLASSES + 8 + 8 * neighbours)
    return [Exchange("all_reduce", 2, codes), Exchange("broadcast", 2, result)]


def batches_of_the_busiest(samples: int, ranks: int) -> float:
    """The share of a refresh's batches that the busiest rank encodes."""
    batches = math.ceil(samples / EVALUATION_BATCH)
    return math.ceil(batches / ranks) / batches
