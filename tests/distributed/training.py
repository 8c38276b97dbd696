"""One small training, run alike in one process and on every rank of several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from networks import CLASSES, SIDE, build
from torch import Tensor, nn

from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.models.experts import Experts
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

GLOBAL_BATCH = 26
"""Neither 3 nor 4 divides it: ranks have unequal numbers of rows."""
# Low rates where steps are normalised: those of an element whose gradient all but cancels are rounding noise, scaled up
# to the rate (of RMSprop to ten times the rate), in one process as much as over ranks.
SGD = OptimiserConfig(kind="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
RMSPROP = OptimiserConfig(kind="rmsprop", learning_rate=2e-5)
ADAM = OptimiserConfig(kind="adam", learning_rate=5e-4)
OPTIMISERS = {
    "sgd": {"": SGD},
    "adam": {"": ADAM},
    "mixed": {
        "": RMSPROP,
        "experts.": ADAM,
        "experts.members.0.": SGD,
        "experts.members.1.": OptimiserConfig(kind="adamw", learning_rate=5e-4, weight_decay=0.1),
    },
}


@dataclass(frozen=True)
class Case:
    """One training: network and optimisers by name, and how it is spread."""

    network: str = "dfcp5"
    optimisers: str = "adam"
    expert: int = 1
    zero: int = 0
    accumulate: int = 1
    clip_norm: float | None = None
    loss_factor: float = 1.0
    uneven: bool = False
    """Every third global batch is short: the last ranks have few or no valid samples."""

    def __str__(self) -> str:
        return (
            f"{self.network}-{self.optimisers}-ep{self.expert}-zero{self.zero}-accumulate{self.accumulate}"
            f"-clip{self.clip_norm}{'-uneven' if self.uneven else ''}"
        )


def engine_of(case: Case, ranks: int) -> Engine:
    """A fresh engine: DeepSpeed's over ranks, plain torch in one process (ranks 0)."""
    if case.expert > 1:
        from moe_dist.parallel.experts import ExpertParallel

        network = build(case.network, partial(ExpertParallel, ep_size=case.expert))
    else:
        network = build(case.network, Experts)
    return make_engine(
        network,
        OPTIMISERS[case.optimisers],
        parallel=ParallelConfig(expert=case.expert, zero=case.zero, micro_batches=case.accumulate * max(ranks, 1)),
        clip_norm=case.clip_norm,
        device=torch.device("cpu"),
        bf16=False,
        ranks=max(ranks, 1),
        deepspeed=ranks > 0,
    )


def take_steps(engine: Engine, case: Case, steps: range, rank: int, ranks: int) -> None:
    """Train on the global batches numbered `steps`, this rank's share of each."""
    engine.network.train()
    for step in steps:
        images, labels, weight = share(step, case, rank, ranks)
        for part in torch.arange(len(labels)).tensor_split(case.accumulate):
            losses = nn.functional.nll_loss(engine.network(images[part]), labels[part], reduction="none")
            engine.backward(case.loss_factor * (weight[part] * losses).sum())
            engine.step()


def share(step: int, case: Case, rank: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rank's images, labels and weights of a global batch; padding has weight 0."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(GLOBAL_BATCH, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (GLOBAL_BATCH,), generator=generator)
    valid = 9 if case.uneven and step % 3 == 0 else GLOBAL_BATCH
    weight = (torch.arange(GLOBAL_BATCH) < valid).float() * ranks / valid
    mine = torch.arange(GLOBAL_BATCH).tensor_split(ranks)[rank]
    return images[mine], labels[mine], weight[mine]


def parameters_of(engine: Engine) -> dict[str, Tensor]:
    """A copy of this rank's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in engine.network.state_dict().items()}


def train_alone(case: Case, steps: range) -> dict[str, Tensor]:
    """The parameters after `steps` in one process."""
    engine = engine_of(case, 0)
    take_steps(engine, case, steps, 0, 1)
    return parameters_of(engine)


def train_rank(rank: int, ranks: int, case: Case, steps: range) -> dict[str, Tensor]:
    """A case for a World: this rank's parameters after `steps`."""
    engine = engine_of(case, ranks)
    take_steps(engine, case, steps, rank, ranks)
    parameters = parameters_of(engine)
    engine.close()
    return parameters


def largest_difference(reference: dict[str, Tensor], ranks: list[dict[str, Tensor]]) -> float:
    """The largest |difference| of any element on any rank; every parameter must be on some rank."""
    assert set().union(*ranks) == set(reference)
    return max(float((tensor - reference[name]).abs().max()) for rank in ranks for name, tensor in rank.items())
