"""Checkpoints of one process: exact resume, incomplete folders, other networks, and no pickle."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_dist.engine.checkpoint import (
    is_whole,
    load_checkpoint,
    load_weights,
    random_state,
    read_state,
    restore_random_state,
    save_checkpoint,
    seed_random,
)
from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.settings.resources import ParallelConfig
from moe_dist.settings.training import OptimiserConfig

OPTIMISERS = {
    "gate.": OptimiserConfig(kind="adam"),
    "experts.": OptimiserConfig(kind="sgd"),
    "experts.members.1.": OptimiserConfig(kind="rmsprop"),
}


class Mixture(nn.Module):
    """A gate and experts with batch normalisation and dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(5, 3)
        self.experts = Experts([partial(expert, width)] * 3)

    def forward(self, features: Tensor) -> Tensor:
        return (self.gate(features).softmax(1)[..., None] * torch.stack(self.experts(features), 1)).sum(1)


def expert(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 2))


def engine_of(optimisers: dict[str, OptimiserConfig] = OPTIMISERS, width: int = 4) -> Engine:
    return make_engine(
        Mixture(width),
        optimisers,
        parallel=ParallelConfig(micro_batches=2),
        clip_norm=1.0,
        device=torch.device("cpu"),
        bf16=False,
        ranks=1,
        deepspeed=False,
    )


def take_steps(engine: Engine, seed: int) -> None:
    """Three updates of two micro-batches, with dropout drawn from the global generator."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        engine.backward(engine.network(torch.randn(8, 5, generator=generator)).square().mean())
        engine.step()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Engine, Path]:
    """An engine after a few steps and its checkpoint."""
    engine = engine_of()
    take_steps(engine, 1)
    save_checkpoint(tmp_path / "saved", engine, rank=0, ranks=1, state={"step": 3, "loss": 0.1})
    return engine, tmp_path / "saved"


def test_goes_on_bit_identically(saved: tuple[Engine, Path]) -> None:
    unbroken, folder = saved
    take_steps(unbroken, 2)
    torch.manual_seed(1234)
    resumed = engine_of()
    assert load_checkpoint(folder, resumed, rank=0, ranks=1) == {"step": 3, "loss": 0.1}
    take_steps(resumed, 2)
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, engine_of(), rank=0, ranks=1, state={})
    resumed = engine_of()
    load_checkpoint(tmp_path, resumed, rank=0, ranks=1)
    assert not resumed.optimiser.state


def test_one_file_per_expert_and_nothing_pickled(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    stems = ["dense", "experts_0000", "experts_0001", "experts_0002"]
    expected = {f"{stem}{suffix}.safetensors" for stem in stems for suffix in ("", ".optimiser")}
    assert {file.name for file in folder.iterdir()} == expected | {"random_0000.safetensors", "state.json"}
    assert all(name.startswith("experts.members.1.") for name in load_file(folder / "experts_0001.safetensors"))
    assert "gate.weight/exp_avg_sq" in load_file(folder / "dense.optimiser.safetensors")
    assert json.loads((folder / "state.json").read_text())["state"] == read_state(folder)


def test_weights_alone(saved: tuple[Engine, Path]) -> None:
    engine, folder = saved
    network = Mixture()
    load_weights(folder, network)
    for name, tensor in engine.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_a_missing_file_is_noticed(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    assert is_whole(folder)
    for file in sorted(folder.iterdir()):
        aside = file.rename(folder.parent / file.name)
        assert not is_whole(folder), file.name
        with pytest.raises(UserError, match="not a whole checkpoint"):
            load_checkpoint(folder, engine_of(), rank=0, ranks=1)
        aside.rename(file)
    assert is_whole(folder)


def test_a_torn_file_is_noticed(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert not is_whole(folder), file.name
        file.write_bytes(content)
    assert is_whole(folder)


def test_damage_of_the_same_size_is_a_sentence(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    file = folder / "experts_0001.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(UserError, match=r"experts_0001\.safetensors: cannot be read"):
        load_weights(folder, Mixture())


def test_another_network_is_refused(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    with pytest.raises(UserError, match=r"belongs to another network: experts\.members\.0\.0\.bias is \[4\] there"):
        load_checkpoint(folder, engine_of(width=6), rank=0, ranks=1)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop"])
def test_another_optimiser_is_refused(saved: tuple[Engine, Path], kind: str) -> None:
    _, folder = saved
    other = engine_of(OPTIMISERS | {"gate.": OptimiserConfig(kind=kind)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gate\.\w+ was trained with another optimiser \(exp_avg, exp_avg_sq, step"):
        load_checkpoint(folder, other, rank=0, ranks=1)


def test_training_more_than_was_saved_is_refused(tmp_path: Path) -> None:
    engine = engine_of({"experts.": OptimiserConfig(kind="sgd")})
    take_steps(engine, 1)
    save_checkpoint(tmp_path, engine, rank=0, ranks=1, state={})
    with pytest.raises(UserError, match=r"gate\.\w+ was trained with another optimiser \(none saved\)"):
        load_checkpoint(tmp_path, engine_of(), rank=0, ranks=1)


def test_another_format_is_refused(saved: tuple[Engine, Path]) -> None:
    _, folder = saved
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="written by a later version"):
        read_state(folder)


def draws() -> list[float]:
    return [float(torch.rand(())), random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal()]


def test_every_generator_is_restored() -> None:
    """The state includes the second of two normal numbers, which Python and NumPy keep for the next call."""
    draws()
    state = random_state()
    expected = draws()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    restore_random_state(state)
    assert draws() == expected


def test_reseeding_depends_on_the_state_and_the_rank() -> None:
    origin = random_state()["torch"].numpy().tobytes()
    seed_random(origin, 1)
    expected = draws()
    seed_random(origin, 1)
    assert draws() == expected
    seed_random(origin, 2)
    assert draws() != expected
    torch.rand(1)
    seed_random(random_state()["torch"].numpy().tobytes(), 1)
    assert draws() != expected
