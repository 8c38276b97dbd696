"""DeepSpeed's own sparse layer gives the numbers of models/sparse.py, as far as it counts them over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import largest_difference, parameters_of
from worlds import World

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine, makers
from moe_dist.engine.engine import Engine
from moe_dist.errors import UserError
from moe_dist.methods.baselines.sparse_moe import SparseMoe, SparseMoeConfig, SparseNetwork
from moe_dist.methods.phases import Progress
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

CLASSES, SIDE, GLOBAL_BATCH = 4, 8, 24
INFO = DatasetInfo(CLASSES, tuple("abcd"), SIDE, GLOBAL_BATCH)
BEFORE, AFTER, STEPS = range(5), range(5, 10), range(10)
CONFIG = SparseMoeConfig(
    trunk=(4, 6),
    experts=4,
    hidden=5,
    optimiser=OptimiserConfig(kind="adam", learning_rate=5e-4),
    # Not Adam, which scales rounding noise up: all there is of some gradients where the balancing loss has no weight.
    gate_optimiser=OptimiserConfig(kind="sgd", learning_rate=0.1),
    clip_norm=0.5,
)
EXACT = CONFIG.model_copy(update={"capacity_factor": None, "balance": 0.0})
"""What ranks are no part of."""


@dataclass(frozen=True)
class Case:
    """A sparse mixture and how it is spread."""

    config: SparseMoeConfig
    expert: int = 1
    zero: int = 0
    micro_batches: int = 1

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(expert=self.expert, zero=self.zero, micro_batches=self.micro_batches)

    def __str__(self) -> str:
        return f"top{self.config.top_k}-ep{self.expert}-zero{self.zero}-parts{self.micro_batches}"


def engine_of(case: Case, ranks: int) -> tuple[SparseMoe, Engine]:
    """The method and a fresh engine: DeepSpeed's over ranks, plain torch in one process (ranks 0)."""
    sparse = SparseMoe(case.config, INFO)
    (stage,) = sparse.stages()
    engine = make_engine(
        sparse.build(makers(case.expert, deepspeed=ranks > 0), {}, 7),
        stage.optimisers,
        parallel=case.parallel,
        clip_norm=stage.clip_norm,
        device=torch.device("cpu"),
        bf16=False,
        ranks=max(ranks, 1),
        deepspeed=ranks > 0,
    )
    return sparse, engine


def share(step: int, rank: int, ranks: int) -> Batch:
    """A rank's share of a global batch; every third one ends in padding."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(GLOBAL_BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (GLOBAL_BATCH,), generator=generator)
    valid = 10 if step % 3 == 0 else GLOBAL_BATCH
    weight = (torch.arange(GLOBAL_BATCH) < valid) * ranks / valid
    return Batch(images, labels, torch.arange(GLOBAL_BATCH), weight).micro_batches(ranks)[rank]


def take_steps(case: Case, sparse: SparseMoe, engine: Engine, steps: range, rank: int, ranks: int) -> None:
    engine.network.train()
    for step in steps:
        for part in share(step, rank, max(ranks, 1)).micro_batches(case.parallel.accumulate(max(ranks, 1))):
            terms = sparse.loss(engine.network, part, Progress("sparse", 0, 1, step))
            engine.backward(torch.stack(list(terms.values())).sum())
            engine.step()


def train(rank: int, ranks: int, case: Case, steps: range) -> dict[str, Tensor]:
    """This rank's parameters after `steps`; ranks 0 is one process without DeepSpeed."""
    sparse, engine = engine_of(case, ranks)
    take_steps(case, sparse, engine, steps, rank, ranks)
    parameters = parameters_of(engine)
    engine.close()
    return parameters


def changed(config: SparseMoeConfig, **changes: object) -> SparseMoeConfig:
    return SparseMoeConfig.model_validate(config.model_dump() | changes)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("capacity_factor", [None, 0.8])
def test_one_rank_of_deepspeed_equals_plain_torch(
    worlds: dict[int, World], top_k: int, capacity_factor: float | None
) -> None:
    """The gate, who is dropped, the balancing loss, and the gradients of all three."""
    case = Case(changed(CONFIG, top_k=top_k, capacity_factor=capacity_factor, balance=0.5))
    reference = train(0, 0, case, STEPS)
    for without in ({"balance": 0.0}, {"capacity_factor": 0.6}):
        other = train(0, 0, replace(case, config=changed(case.config, **without)), STEPS)
        assert largest_difference(reference, [other]) > 1e-4, f"{without} makes no difference: nothing is tested"
    assert largest_difference(reference, worlds[1].run(train, case, STEPS)) < 1e-6


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("ranks", "case"),
    [
        (2, Case(changed(EXACT, top_k=1), expert=2)),
        (2, Case(EXACT, expert=2, zero=1, micro_batches=4)),
        (2, Case(EXACT, expert=1, zero=2)),
        pytest.param(2, Case(EXACT, expert=2, zero=2), marks=SLOW),
        pytest.param(2, Case(changed(EXACT, top_k=1), expert=1), marks=SLOW),
        pytest.param(4, Case(EXACT, expert=2, zero=1), marks=SLOW),
        pytest.param(4, Case(changed(EXACT, top_k=1), expert=4), marks=SLOW),
    ],
    ids=str,
)
def test_ranks_equal_one_process(worlds: dict[int, World], ranks: int, case: Case) -> None:
    alone = replace(case, expert=1, zero=0)
    reference = train(0, 0, alone, STEPS)
    assert largest_difference(reference, [train(0, 0, alone, range(0))]) > 1e-3
    assert largest_difference(reference, worlds[ranks].run(train, case, STEPS)) < 1e-6


@pytest.mark.parametrize("top_k", [1, 2])
def test_as_many_micro_batches_as_ranks_count_the_same_tokens(worlds: dict[int, World], top_k: int) -> None:
    """Capacity and balancing loss are a micro-batch's own, so two of them train alike on two ranks and on one."""
    case = Case(changed(CONFIG, top_k=top_k, capacity_factor=0.8, balance=0.5), micro_batches=2)
    reference = train(0, 0, case, STEPS)
    assert largest_difference(reference, [train(0, 0, replace(case, micro_batches=1), STEPS)]) > 1e-4
    assert largest_difference(reference, worlds[2].run(train, replace(case, expert=2, zero=1), STEPS)) < 1e-6


def test_a_rank_holds_its_part_of_the_experts_under_their_global_names(worlds: dict[int, World]) -> None:
    whole = SparseMoe(CONFIG, INFO).build(IN_ONE_PROCESS, {}, 7).state_dict()
    for rank, parameters in enumerate(worlds[2].run(train, Case(CONFIG, expert=2), range(0))):
        experts = {int(name.split(".")[2]) for name in parameters if name.startswith("experts.members.")}
        assert experts == {2 * rank, 2 * rank + 1}
        assert all(torch.equal(tensor, whole[name]) for name, tensor in parameters.items())


def test_the_balancing_loss_is_that_of_the_ranks_own_tokens(worlds: dict[int, World]) -> None:
    """Not the global batch's: the ranks' mean is another number."""
    _, engine = engine_of(Case(CONFIG), 0)
    halves = [engine.network(share(1, rank, 2).images)[1].item() for rank in range(2)]
    whole = engine.network(share(1, 0, 1).images)[1].item()
    assert worlds[2].run(balance_of_share, Case(CONFIG, expert=2)) == pytest.approx(halves, abs=1e-6)
    assert abs(sum(halves) / 2 - whole) > 1e-4


def balance_of_share(rank: int, ranks: int, case: Case) -> float:
    _, engine = engine_of(case, ranks)
    balance = engine.network(share(1, rank, ranks).images)[1].item()
    engine.close()
    return balance


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_over_ranks_drops_nothing(worlds: dict[int, World], top_k: int) -> None:
    config = changed(CONFIG, top_k=top_k, capacity_factor=0.25)
    whole = SparseMoe(config, INFO)
    network = whole.build(IN_ONE_PROCESS, {}, 7).eval()
    for rank, log_probs in enumerate(worlds[2].run(evaluate_after_training_mode, Case(config, expert=2))):
        with torch.no_grad():
            expected = whole.predict(network, share(1, rank, 2).images).log_probs
        torch.testing.assert_close(log_probs, expected, atol=1e-6, rtol=0)


def evaluate_after_training_mode(rank: int, ranks: int, case: Case) -> Tensor:
    sparse, engine = engine_of(case, ranks)
    images = share(1, rank, ranks).images
    with torch.no_grad():
        trained = sparse.predict(engine.network.train(), images).log_probs
        evaluated = sparse.predict(engine.network.eval(), images).log_probs
    engine.close()
    assert not torch.allclose(trained, evaluated, atol=1e-4), "in training this capacity does drop"
    return evaluated


def test_a_loss_may_leave_the_layer_out_on_some_ranks(worlds: dict[int, World]) -> None:
    """Its exchanges run backward on all ranks or on none; a rank that skipped them would leave the other waiting."""
    gradients = worlds[2].run(gradients_with_one_rank_idle)
    assert gradients[0] > 0 and gradients[1] == 0, "the idle rank's trunk has no gradient from the layer"


def gradients_with_one_rank_idle(rank: int, ranks: int) -> float:
    """The largest gradient of the layer's output's loss on this rank's tokens; rank 1 trains the classifier alone."""
    from moe_dist.parallel.spread import tie_exchanges

    _, engine = engine_of(Case(EXACT, expert=2), ranks)
    network = engine.network
    assert isinstance(network, SparseNetwork)
    tokens = network.tokens(share(1, rank, ranks).images).detach().requires_grad_()
    logits, _ = network.classify(tokens)
    loss = logits.square().mean() if rank == 0 else network.classifier(tokens.detach().mean(1)).square().mean()
    tie_exchanges(loss, network).backward()
    engine.close()
    return 0.0 if tokens.grad is None else float(tokens.grad.abs().max())


def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(worlds: dict[int, World], tmp_path: Path) -> None:
    case = Case(EXACT, expert=2, zero=1)
    unbroken = worlds[2].run(save_and_go_on, case, str(tmp_path))
    files = {path.name for path in tmp_path.glob("experts_*.safetensors")}
    assert {f"experts_000{expert}.safetensors" for expert in range(4)} <= files
    alone = replace(case, expert=1, zero=0)
    sparse, engine = engine_of(alone, 0)
    assert load_checkpoint(tmp_path, engine, rank=0, ranks=1) == {"step": 5}
    take_steps(alone, sparse, engine, AFTER, 0, 1)
    assert largest_difference(parameters_of(engine), [after for _, after in unbroken]) < 1e-6


def test_weights_of_two_ranks_load_without_deepspeed(worlds: dict[int, World], tmp_path: Path) -> None:
    before = [at_five for at_five, _ in worlds[2].run(save_and_go_on, Case(CONFIG, expert=2), str(tmp_path))]
    network = SparseMoe(CONFIG, INFO).build(IN_ONE_PROCESS, {}, 0)
    load_weights(tmp_path, network)
    assert largest_difference(network.state_dict(), before) == 0


def save_and_go_on(rank: int, ranks: int, case: Case, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Five steps, a checkpoint, five more; the parameters after each five."""
    sparse, engine = engine_of(case, ranks)
    take_steps(case, sparse, engine, BEFORE, rank, ranks)
    at_five = parameters_of(engine)
    save_checkpoint(Path(folder), engine, rank=rank, ranks=ranks, state={"step": 5})
    take_steps(case, sparse, engine, AFTER, rank, ranks)
    parameters = parameters_of(engine)
    engine.close()
    return at_five, parameters


def test_refuses_experts_that_the_ranks_cannot_share_equally(worlds: dict[int, World]) -> None:
    for refusal in worlds[2].run(refusal_of_three_experts):
        assert refusal == (
            "parallel.expert = 2 does not divide method.experts = 3: DeepSpeed's sparse layer gives every rank equally "
            "many; change one of the two"
        )


def refusal_of_three_experts(rank: int, ranks: int) -> str:
    with pytest.raises(UserError) as refusal:
        engine_of(Case(changed(CONFIG, experts=3), expert=2), ranks)
    return str(refusal.value)
