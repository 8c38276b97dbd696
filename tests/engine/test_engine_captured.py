"""Captured steps train what ordinary steps train: on a CPU by a recorder that runs again, on a GPU by CUDA's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_engine import CPU, engine_of
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.engine.captured import WARM_UP, CapturedPasses, CudaRecorder, Recorder
from moe_dist.engine.checkpoint import load_checkpoint, save_checkpoint
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine
from moe_dist.engine.optimisers import build_optimiser, choose_optimisers
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.longtail.ldam_drw import LdamDrw, LdamDrwConfig
from moe_dist.methods.longtail.method import CLASSIFIERS, FEATURES
from moe_dist.methods.phases import Progress
from moe_dist.models.multi_scale import ModuleConfig
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig
from moe_dist.train.loop import train_step
from moe_dist.train.session import GradientShares, Session

CLASSES, SIDE = 5, 16
INFO = DatasetInfo(CLASSES, tuple("abcde"), SIDE, 40, (12, 10, 8, 6, 4))
STEPS_OF_AN_EPOCH = 6


class RunsAgain:
    """Keeps a graph's promises on a CPU: recording computes nothing, a replay writes where the record's tensors lie."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self.recorded = network, 0

    def warm(self, run: Callable[[], Any]) -> Any:
        return run()

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        before = [buffer.clone() for buffer in self._network.buffers()]
        result = run()
        for buffer, old in zip(self._network.buffers(), before):
            buffer.copy_(old)
        parameters = list(self._network.parameters())
        written = [parameter.grad for parameter in parameters]

        def replay() -> None:
            for parameter in parameters:
                parameter.grad = None
            for name, value in run().items():
                result[name].data.copy_(value)
            for old, parameter in zip(written, parameters):
                assert (old is None) == (parameter.grad is None)
                if old is not None and parameter.grad is not None:
                    old.copy_(parameter.grad)

        return result, replay


class Refuses(RunsAgain):
    """As where a loss asks for a value while it is captured."""

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def icl(**changes: Any) -> Icl:
    network = {"network": {"width": 2}, "experts": 2, "t_ad": 1, "t_cl": 2, "confused_classes": 2}
    return Icl(IclConfig.model_validate(network | changes), INFO)


def batches(count: int, device: torch.device) -> list[Batch]:
    """Batches of 8; every sixth, as the last of an epoch may, has other shapes."""
    random = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        size = 8 if (number + 1) % STEPS_OF_AN_EPOCH else 6
        images = torch.randn(size, 3, SIDE, SIDE, generator=random)
        labels, samples = torch.randint(0, CLASSES, (size,), generator=random), torch.arange(size)
        found.append(Batch(images, labels, samples, torch.full((size,), 1 / size)).mapped(lambda part: part.to(device)))
    return found


def session_of(method: Icl | LdamDrw, device: torch.device, bf16: bool = False) -> Any:
    engine = make_engine(
        method.build(IN_ONE_PROCESS, {}, seed=0).train(),
        method.stages()[0].optimisers,
        parallel=ParallelConfig(),
        clip_norm=None,
        device=device,
        bf16=bf16,
        ranks=1,
        deepspeed=False,
    )
    shares = GradientShares(0, 1)
    return SimpleNamespace(engine=engine, stage=method.stages()[0], gradients=shares, accumulate=1, captured=None)


def trained(
    session: Any, method: Icl | LdamDrw, device: torch.device, steps: int, first: int = 0
) -> list[dict[str, float]]:
    """The losses of the steps from `first` on, up to `steps`."""
    told = []
    for step, batch in list(enumerate(batches(steps, device)))[first:]:
        progress = Progress(FEATURES, step // STEPS_OF_AN_EPOCH, 4, step + 1, step, steps)
        losses = train_step(method, cast(Session, session), batch, progress)
        told.append({name: float(value) for name, value in losses.items()})
    return told


def captured(session: Any, recorder: Recorder) -> CapturedPasses:
    session.captured = CapturedPasses(list(session.engine.network.parameters()), recorder)
    return session.captured


def test_steps_from_graphs_are_the_ordinary_steps_to_the_bit_through_all_phases_of_the_loss() -> None:
    """Epochs 0 (AD), 1 (neither), 2 and 3 (CCL). The memory, the statistics and the momentum go on in each."""
    method, steps = icl(), 4 * STEPS_OF_AN_EPOCH
    ordinary = session_of(method, CPU)
    expected = trained(ordinary, method, CPU, steps)
    assert [set(losses) for losses in expected[:: 2 * STEPS_OF_AN_EPOCH]] == [
        {"parallel", "distill", "diversity"},
        {"parallel", "distill", "contrast"},
    ]
    session = session_of(method, CPU)
    recorder = RunsAgain(session.engine.network)
    captured(session, recorder)
    assert trained(session, method, CPU, steps) == expected
    assert recorder.recorded == 3, "the form of whole batches, once in each phase; the other is met twice at most"
    one, other = ordinary.engine.network.state_dict(), session.engine.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ordinary.gradients.state() == session.gradients.state()


def test_a_capture_that_fails_is_said_once_and_the_steps_are_ordinary_ones(caplog: pytest.LogCaptureFixture) -> None:
    method = icl(t_ad=0, t_cl=0)
    expected = trained(session_of(method, CPU), method, CPU, 8)
    session = session_of(method, CPU)
    recorder = Refuses(session.engine.network)
    passes = captured(session, recorder)
    with caplog.at_level(logging.WARNING):
        before = session.engine.network.get_buffer("memory.confusion").clone()
        told = trained(session, method, CPU, 8)
    assert not torch.equal(before, session.engine.network.get_buffer("memory.confusion"))
    # The refusing recorder has run the passes once more than CUDA would: what counts is that training goes on.
    assert told[:WARM_UP] == expected[:WARM_UP] and all(value == value for value in told[-1].values())
    assert recorder.recorded == 1 and passes.how == "eager"
    (record,) = caplog.records
    assert "not captured as CUDA graphs" in record.getMessage() and record.getMessage().endswith("capturing")


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_training_that_is_resumed_goes_on_as_an_unbroken_one(kind: str, tmp_path: Path) -> None:
    """After 8 steps of 16: optimiser, memory and statistics go on, and graphs are captured anew. Bits on a CPU."""
    device, method = torch.device(kind), icl(t_ad=0, t_cl=0)

    def fresh() -> Any:
        session = session_of(method, device)
        captured(session, RunsAgain(session.engine.network) if kind == "cpu" else CudaRecorder(device))
        return session

    expected = trained(fresh(), method, device, 16)[8:]
    broken, resumed = fresh(), fresh()
    trained(broken, method, device, 8)
    save_checkpoint(tmp_path / "checkpoint", broken.engine, rank=0, ranks=1, state={"step": 8}, arrays={})
    load_checkpoint(tmp_path / "checkpoint", resumed.engine, rank=0, ranks=1)
    told = trained(resumed, method, device, 16, first=8)
    assert resumed.captured.how == "graph"
    for one, other in zip(expected, told, strict=True):
        assert other == (one if kind == "cpu" else pytest.approx(one, rel=2e-3))


def test_how_a_step_was_run_is_known() -> None:
    method = icl(t_ad=0, t_cl=9)
    session = session_of(method, CPU)
    passes = captured(session, RunsAgain(session.engine.network))
    how = []
    for step, batch in enumerate(batches(5, CPU)):
        train_step(method, cast(Session, session), batch, Progress(FEATURES, 0, 4, step + 1))
        how.append(passes.how)
    assert how == ["eager"] * WARM_UP + ["graph"] * 2


def test_phases_are_what_the_losses_look_at() -> None:
    def phases(method: Any, stage: str = FEATURES) -> list[Any]:
        return [method.loss_phase(Progress(stage, epoch, 4, step=1)) for epoch in range(4)]

    found = phases(icl())
    assert found[2] == found[3] and len(set(found)) == 3
    assert set(phases(icl(), CLASSIFIERS)).isdisjoint(found)
    deferred = phases(LdamDrw(LdamDrwConfig(reweight_from=2), INFO))
    assert deferred[0] == deferred[1] != deferred[2] == deferred[3]
    module = ModuleConfig.model_validate({"dim": 4, "experts": 2})
    assert phases(icl(network={"width": 2, "module": module.model_dump()})) == [None] * 4


def test_a_fused_update_is_the_ordinary_one_up_to_rounding() -> None:
    """On a CPU torch has the fused kernels, too."""
    for kind in ("sgd", "adamw", "rmsprop"):
        results: list[Tensor] = []
        for fused in (False, True):
            torch.manual_seed(0)
            network = nn.Linear(4, 3)
            config = {"": OptimiserConfig(kind=kind, learning_rate=0.1, weight_decay=0.01)}
            optimiser = build_optimiser(network, choose_optimisers(("weight", "bias"), config), fused)
            assert optimiser.is_fused(network.weight) == (fused and kind != "rmsprop")
            for step in range(3):
                network(torch.full((2, 4), 0.5 + step)).square().sum().backward()
                optimiser.step()
                optimiser.zero_grad()
            results.append(network.weight.detach().clone())
        torch.testing.assert_close(*results)


def test_weights_cast_together_give_autocasts_bits() -> None:
    """Logits, losses and gradients, in both stages' modes; the weights are parameters again afterwards."""
    method = icl(t_ad=9, t_cl=0)
    (batch,) = batches(1, CPU)
    gradients: list[list[Tensor]] = []
    for together in (False, True):
        session = session_of(method, CPU, bf16=True)
        network = session.engine.network
        with session.engine.autocast(together):
            losses = method.loss(network, batch, Progress(FEATURES, 0, 4, 1))
        session.engine.backward(torch.stack(list(losses.values())).sum())
        assert all(isinstance(module.weight, nn.Parameter) for module in network.modules() if type(module) is nn.Conv2d)
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 100
    assert all(one.dtype == torch.float32 and torch.equal(one, other) for one, other in zip(*gradients))


def test_a_network_without_convolutions_casts_nothing_together() -> None:
    engine = engine_of(nn.Linear(3, 1), bf16=True)
    with engine.autocast(together=True):
        assert engine.network(torch.ones(2, 3)).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_gpu_steps_from_graphs_are_the_ordinary_steps_up_to_rounding(bf16: bool) -> None:
    device, method, steps = torch.device("cuda"), icl(), 4 * STEPS_OF_AN_EPOCH
    expected = trained(session_of(method, device, bf16), method, device, steps)
    session = session_of(method, device, bf16)
    passes = captured(session, CudaRecorder(device))
    told = trained(session, method, device, steps)
    assert passes.how == "eager", "the last batch is of the other form"
    assert len(passes._graphs) == 1
    for one, other in zip(expected, told):
        assert other == pytest.approx(one, rel=2e-2 if bf16 else 2e-3)


@pytest.mark.gpu
def test_on_a_gpu_a_loss_that_waits_for_a_value_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    class Waits(Icl):
        def feature_loss(self, network: nn.Module, outputs: Any, batch: Batch, progress: Progress) -> dict[str, Tensor]:
            terms = super().feature_loss(network, outputs, batch, progress)
            return {name: value for name, value in terms.items() if value.item() != 0}

    device = torch.device("cuda")
    method = Waits(icl().config, INFO)
    session = session_of(method, device)
    captured(session, CudaRecorder(device))
    with caplog.at_level(logging.WARNING):
        told = trained(session, method, device, 6)
    assert len(caplog.records) == 1 and all(value == value for value in told[-1].values())
