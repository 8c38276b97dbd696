"""What the ranks of a method send each other in a step, by formula: from a forward pass in this process.

Bytes of experts are counted by the package's own functions, as `moe-dist show` counts them. What is counted is what
parallel/experts.py: ExpertParallel, engine/deepspeed.py and methods/ranks.py do; benchmarks/scaling.py counts that too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.step_time import Exchange, Layout, ring_bytes
from moe_dist.data.batch import Batch
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.engine.optimisers import choose_optimisers
from moe_dist.methods.base import Method
from moe_dist.methods.dfcp import dispatch
from moe_dist.methods.dfcp.method import Dfcp
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.phases import Progress, Stage
from moe_dist.models.experts import Experts
from moe_dist.parallel.placement import exchanged_bytes_of_chosen, loads, place
from moe_dist.run.exchanged import Call, CountedExperts, bytes_of

OTHERS = 0.1
"""The share of other classes' samples that DFCP's experts see under conditional dispatch, its default."""


def stage_of(method: Method) -> Stage:
    """The stage that trains the whole network."""
    return method.stages()[0 if isinstance(method, Icl) else -1]


def at(method: Method) -> Progress:
    """The first step of that stage."""
    stage = stage_of(method)
    return Progress(stage.name, 0, stage.epochs or 1, 1)


def batch_of(method: Method, size: int, rank: int = 0, ranks: int = 1) -> Batch:
    """A rank's share of a batch of random images, whatever the ranks, of classes as frequent as in the training set."""
    info, draws = method.info, np.random.default_rng(size)
    of_set = np.repeat(np.arange(info.classes), info.class_counts)
    chosen = draws.choice(len(of_set), size, replace=size > len(of_set))
    rows = slice(rank, None, ranks)
    images = torch.from_numpy(draws.standard_normal((size, 3, info.image_size, info.image_size), np.float32)[rows])
    labels, samples = (torch.from_numpy(each)[rows] for each in (of_set[chosen], chosen))
    portion = torch.from_numpy(dispatch.portions(of_set, OTHERS)[chosen][rows])
    weight = torch.full((len(images),), ranks / size)
    return Batch(images, labels, samples, weight, columns={dispatch.PORTION: portion})


class ExpertCall(NamedTuple):
    """A call of experts: by which method of theirs, and with what."""

    way: str
    inputs: tuple[Tensor, ...]


class RecordedExperts(CountedExperts):
    """Experts that also keep what they are called with, to be computed once more by themselves."""

    kept: tuple[ExpertCall, ...] = ()

    def forward(self, *inputs: Tensor) -> list[Any]:
        """As Experts."""
        self.kept = (*self.kept, ExpertCall("forward", inputs))
        return super().forward(*inputs)

    def weighted_sum(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """As Experts."""
        self.kept = (*self.kept, ExpertCall("weighted_sum", (inputs, weights)))
        return super().weighted_sum(inputs, weights)

    def of_chosen(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        """As Experts."""
        self.kept = (*self.kept, ExpertCall("of_chosen", (inputs, chosen)))
        return super().of_chosen(inputs, chosen)


@lru_cache(maxsize=2)
def recorded(method: Method, batch: int) -> nn.Module:
    """The method's network in one process, whose experts have seen a batch."""
    network = method.build(replace(IN_ONE_PROCESS, experts=RecordedExperts), {}, 0)
    method.set_training(network, stage_of(method).name)
    method.loss(network, batch_of(method, batch), at(method))
    return network


def recorded_experts(network: nn.Module) -> list[RecordedExperts]:
    """The modules of experts of a network that `recorded` gave."""
    return [part for part in network.modules() if isinstance(part, RecordedExperts)]


def experts_alone(method: Method, batch: int) -> Callable[[], None]:
    """The forward and backward pass of the experts alone, on what they get of a batch."""
    calls = [(part, call) for part in recorded_experts(recorded(method, batch)) for call in part.kept]

    def run() -> None:
        for part, (way, inputs) in calls:
            own = (each.detach().requires_grad_(each.requires_grad) for each in inputs)
            outputs = getattr(Experts, way)(part, *own)
            torch.stack([tensor.float().sum() for tensor in _tensors(outputs)]).sum().backward()
            part.zero_grad()

    return run


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in _tensors(output)]


def is_conditional(method: Method) -> bool:
    """Whether a sample goes to some of the experts alone."""
    return isinstance(method, Dfcp) and method.config.joint.dispatch == "conditional"


def busiest_share(method: Method, layout: Layout, batch: int) -> float:
    """The largest share of the experts' work that a rank of a group has in a step of `batch` samples."""
    placement = place(method.expert_costs(), layout.group)
    if not is_conditional(method):
        return max(loads(method.expert_costs(), placement))
    pairs = _chosen(recorded(method, batch)).sum(0)
    return float(max(pairs[experts].sum() for experts in placement) / pairs.sum())


def exchanges(method: Method, layout: Layout, batch: int) -> list[Exchange]:
    """What a rank sends in a step of `batch` samples: of experts, gradients, clipping and the log."""
    samples = batch * layout.group // layout.ranks
    network = recorded(method, samples if is_conditional(method) else 2)
    found = [*_of_gradients(method, network, layout), Exchange("all_reduce", 1, 0)]
    if isinstance(method, Icl):
        found += _of_memory(network, layout, batch)
    if layout.group == 1:
        return found
    if stage_of(method).clip_norm is not None:
        found.append(Exchange("all_reduce", 1, 0))
    if is_conditional(method):
        return found + _of_chosen(method, _chosen(network), layout.group)
    for part in recorded_experts(network):
        for noted, call in zip(part.calls, part.kept):
            found += _of_call(noted, call, layout.group, samples)
    return found


def _of_call(noted: Call, call: ExpertCall, group: int, samples: int) -> list[Exchange]:
    """A call with all samples of a group."""
    without = bytes_of(noted._replace(gradient=False), group, samples) / group
    inputs = bytes_of(noted._replace(gradient=True), group, samples) / group - without
    gradients = sum(each.requires_grad for each in call.inputs)
    return [
        Exchange("all_gather", 1 + len(call.inputs), inputs),
        Exchange("all_to_all", 2, without - inputs),
        Exchange("reduce_scatter", gradients, inputs * noted.gradient),
    ]


def _of_chosen(method: Method, chosen: np.ndarray, group: int) -> list[Exchange]:
    """A call in which a sample goes only to ranks that hold an expert chosen for it."""
    shares = [chosen[rank::group] for rank in range(group)]
    pixels = 3 * method.info.image_size**2
    moved = exchanged_bytes_of_chosen(place(method.expert_costs(), group), shares, pixels, 1)
    return [Exchange("all_gather", 1, 0), Exchange("all_to_all", 4, moved / group)]


def _chosen(network: nn.Module) -> np.ndarray:
    """Which experts see which sample of the recorded batch [B, E], with the gate as it begins."""
    (part,) = recorded_experts(network)
    return part.kept[0].inputs[1].numpy()


def _of_gradients(method: Method, network: nn.Module, layout: Layout) -> list[Exchange]:
    """All-reduce of the dense part's gradients over all ranks, and of a rank's experts' over the replicas."""
    trained = choose_optimisers((name for name, _ in network.named_parameters()), stage_of(method).optimisers)
    placement = place(method.expert_costs(), layout.group)
    rank_of = {str(expert): rank for rank, experts in enumerate(placement) for expert in experts}
    dense, of_rank = 0, [0] * layout.group
    for name, parameter in network.named_parameters():
        _, is_expert, within = name.partition(".members.")
        if name in trained and is_expert:
            of_rank[rank_of[within.partition(".")[0]]] += parameter.nbytes
        elif name in trained:
            dense += parameter.nbytes
    if layout.group == 1:
        return [Exchange("all_reduce", 1, ring_bytes(layout.ranks, dense + of_rank[0]))]
    found, replicas = [Exchange("all_reduce", 1, ring_bytes(layout.ranks, dense))], layout.ranks // layout.group
    if replicas > 1:
        found.append(Exchange("all_reduce", 1, ring_bytes(replicas, max(of_rank))))
    return found


def _of_memory(network: nn.Module, layout: Layout, batch: int) -> list[Exchange]:
    """ICL's own: features [B, E, D] and predictions go to every rank, and the experts' mean losses are added up."""
    prototypes = network.get_buffer("memory.prototypes")
    experts, features = prototypes.shape[0], prototypes.shape[2]
    others = batch / layout.ranks * (layout.ranks - 1)
    return [Exchange("gather", 2, others * (4 * experts * features + 8 * (2 + experts))), Exchange("all_reduce", 1, 0)]
