"""ICL over ranks equals one process: every loss term of ten steps within 1e-6, with batch statistics frozen.

Terms that are no sum over samples (parallel loss, memory) see the whole global batch on every rank.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest
import torch
from torch import Tensor
from worlds import World

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.checkpoint import load_checkpoint, save_checkpoint
from moe_dist.engine.choose import make_engine, makers
from moe_dist.engine.engine import Engine
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.longtail.cross_entropy import CrossEntropy, CrossEntropyConfig
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.settings.resources import ParallelConfig
from moe_dist.train.loop import train_step
from moe_dist.train.session import GradientShares, Session

CLASSES, SIDE, BATCH = 5, 8, 12
"""2, 3 and 4 ranks have equal shares of a batch."""
INFO = DatasetInfo(CLASSES, tuple("abcde"), SIDE, 83, (50, 20, 9, 3, 1))
SMALL = {"network": {"width": 2, "scale": 4}, "features": {"learning_rate": 0.005}}
ICL = Icl(IclConfig.model_validate(SMALL | {"t_ad": 9, "t_cl": 0}), INFO)
CROSS_ENTROPY = CrossEntropy(CrossEntropyConfig.model_validate(SMALL | {"experts": 3}), INFO)
"""Its loss is a sum over samples, so that a batch may be cut into micro-batches."""
STEPS = 10


class Outcome(NamedTuple):
    """terms of every step, averaged over ranks; this rank's parameters and buffers; the experts' shares of gradient."""

    terms: list[dict[str, float]]
    tensors: dict[str, Tensor]
    shares: dict[str, float]


def engine_of(
    stage: int, expert: int, ranks: int, zero: int = 0, accumulate: int = 1, method: BranchMethod = ICL
) -> Engine:
    """A fresh engine of a stage: DeepSpeed's over ranks, plain torch in one process (ranks 0)."""
    network = method.build(makers(expert, deepspeed=ranks > 0), {}, seed=3)
    parallel = ParallelConfig(expert=expert, zero=zero, micro_batches=accumulate * max(ranks, 1))
    device, bf16 = torch.device("cpu"), False
    return make_engine(
        network,
        method.stages()[stage].optimisers,
        parallel=parallel,
        clip_norm=None,
        device=device,
        bf16=bf16,
        ranks=max(ranks, 1),
        deepspeed=ranks > 0,
    )


def share(step: int, rank: int, ranks: int) -> Batch:
    """A rank's share of a global batch, as order.py gives it; every third batch ends in padding."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    valid = 7 if step % 3 == 2 else BATCH
    weight = (torch.arange(BATCH) < valid).float() * ranks / valid
    rows = slice(rank, None, ranks)
    return Batch(images[rows], labels[rows], torch.arange(BATCH)[rows], weight[rows])


def take_steps(
    engine: Engine, steps: range, stage: int, rank: int, ranks: int, accumulate: int = 1, method: BranchMethod = ICL
) -> Outcome:
    """Train as the loop does, but with batch normalisation as in evaluation: its statistics are a rank's own."""
    shares = GradientShares(rank, ranks)
    trained = method.stages()[stage]
    session = cast(
        Session, SimpleNamespace(stage=trained, engine=engine, gradients=shares, accumulate=accumulate, captured=None)
    )
    name = trained.name
    method.set_training(engine.network, name)
    engine.network.eval()
    record = []
    for step in steps:
        terms = train_step(method, session, share(step, rank, ranks), Progress(name, 0, 180, step))
        values = torch.stack(list(terms.values()))
        if ranks > 1:
            torch.distributed.all_reduce(values)
        record.append(dict(zip(terms, (values / ranks).tolist())))
    tensors = {name: tensor.detach().clone() for name, tensor in engine.network.state_dict().items()}
    return Outcome(record, tensors, shares.take())


def train_rank(rank: int, ranks: int, expert: int, stage: int, zero: int = 0) -> Outcome:
    """A case for a World."""
    engine = engine_of(stage, expert, ranks, zero)
    outcome = take_steps(engine, range(STEPS), stage, rank, ranks)
    engine.close()
    return outcome


def accumulate_rank(rank: int, ranks: int, expert: int, zero: int) -> Outcome:
    """A case for a World: cross-entropy in two micro-batches a rank."""
    engine = engine_of(0, expert, ranks, zero, 2, CROSS_ENTROPY)
    outcome = take_steps(engine, range(STEPS), 0, rank, ranks, 2, CROSS_ENTROPY)
    engine.close()
    return outcome


def resume_rank(rank: int, ranks: int, expert: int, folder: str) -> tuple[Outcome, Outcome]:
    """A case for a World: all steps at once; and half of them, a checkpoint, and the rest by a new engine."""
    unbroken = train_rank(rank, ranks, expert, 0)
    half = STEPS // 2
    first = engine_of(0, expert, ranks)
    take_steps(first, range(half), 0, rank, ranks)
    save_checkpoint(Path(folder), first, rank=rank, ranks=ranks, state={})
    first.close()
    second = engine_of(0, expert, ranks)
    load_checkpoint(Path(folder), second, rank=rank, ranks=ranks)
    resumed = take_steps(second, range(half, STEPS), 0, rank, ranks)
    second.close()
    return unbroken, resumed


@pytest.fixture(scope="module")
def alone() -> list[Outcome]:
    """Both stages in one process, the second from the initial weights."""
    return [take_steps(engine_of(stage, 1, 0), range(STEPS), stage, 0, 1) for stage in (0, 1)]


@pytest.mark.parametrize(
    ("ranks", "expert", "stage"),
    [
        (1, 1, 0),
        (2, 1, 0),
        (2, 2, 0),
        (3, 3, 0),
        (3, 3, 1),
        pytest.param(3, 1, 0, marks=pytest.mark.slow),
        pytest.param(4, 2, 0, marks=pytest.mark.slow),
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(4, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_equals_one_process(
    worlds: dict[int, World], alone: list[Outcome], ranks: int, expert: int, stage: int
) -> None:
    reference = alone[stage]
    outcomes = worlds[ranks].run(train_rank, expert, stage)
    first, last = (sum(terms.values()) for terms in (reference.terms[0], reference.terms[-1]))
    assert abs(first - last) > 1e-2, "a training that stands still would compare equal"
    for outcome in outcomes:
        for ours, expected in zip(outcome.terms, reference.terms):
            assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert outcome.shares == pytest.approx(reference.shares, abs=1e-6)
        for name, tensor in outcome.tensors.items():
            expected_tensor = reference.tensors[name]
            scale = max(1.0, float(expected_tensor.abs().max()))
            # float32's rounding after ten steps: 7e-7 of a parameter, 1.1e-6 of the prototypes, which reach 14,000.
            assert float((tensor - expected_tensor).abs().max()) <= 2e-6 * scale, name


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize("expert", [1, 2])
def test_shares_of_the_gradient_under_zero(
    worlds: dict[int, World], alone: list[Outcome], expert: int, zero: int
) -> None:
    """ZeRO clears every .grad in its backward pass and keeps a slice; a share is read from the slices."""
    assert_equal_shares(worlds[2].run(train_rank, expert, 0, zero), alone[0])


@pytest.mark.parametrize(("expert", "zero"), [(1, 0), (2, 0), (1, 1), (2, 2)])
def test_shares_of_the_gradient_with_micro_batches(worlds: dict[int, World], expert: int, zero: int) -> None:
    """Before the last micro-batch a gradient is not whole, and a rank's own."""
    engine = engine_of(0, 1, 0, accumulate=4, method=CROSS_ENTROPY)
    reference = take_steps(engine, range(STEPS), 0, 0, 1, 4, CROSS_ENTROPY)
    whole = take_steps(engine_of(0, 1, 0, method=CROSS_ENTROPY), range(STEPS), 0, 0, 1, 1, CROSS_ENTROPY)
    assert_equal_shares([reference], whole)
    assert_equal_shares(worlds[2].run(accumulate_rank, expert, zero), reference)


def assert_equal_shares(ours: Sequence[Outcome], reference: Outcome) -> None:
    """Within 1e-5; equal shares of all experts would hide a mix-up of them."""
    values = sorted(reference.shares.values())
    assert len(values) == 3 and min(second - first for first, second in itertools.pairwise(values)) > 1e-3
    for outcome in ours:
        assert outcome.shares == pytest.approx(reference.shares, abs=1e-5)


def test_every_rank_holds_the_same_memory(worlds: dict[int, World]) -> None:
    first, *others = worlds[3].run(train_rank, 3, 0)
    for name in ("memory.confusion", "memory.prototypes"):
        assert first.tensors[name].any()
        assert all(torch.equal(first.tensors[name], other.tensors[name]) for other in others)


@pytest.mark.parametrize(("ranks", "expert"), [(3, 3), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_goes_on_bit_identically(worlds: dict[int, World], ranks: int, expert: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for unbroken, resumed in worlds[ranks].run(resume_rank, expert, folder):
            assert unbroken.terms[STEPS // 2 :] == resumed.terms
            assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in unbroken.tensors.items())
