"""Checkpoints saved in one layout of ranks go on in any other; in the same layout bit-identically."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor
from training import Case, engine_of, largest_difference, parameters_of, take_steps
from worlds import World

from moe_dist.engine.checkpoint import is_whole, load_checkpoint, load_weights, save_checkpoint
from moe_dist.models.experts import Experts

BEFORE, AFTER = range(5), range(5, 10)
MIXED = Case("dfcp5", "mixed", clip_norm=0.1)


def save_and_go_on(rank: int, ranks: int, case: Case, folder: str, own_folders: bool = False) -> dict[str, Tensor]:
    """The unbroken run: five steps, a checkpoint, five more. World 0 is one process without DeepSpeed."""
    engine = engine_of(case, ranks)
    take_steps(engine, case, BEFORE, rank, max(ranks, 1))
    where = Path(folder) / f"rank{rank}" if own_folders else Path(folder)
    save_checkpoint(where, engine, rank=rank, ranks=max(ranks, 1), state={"step": 5})
    take_steps(engine, case, AFTER, rank, max(ranks, 1))
    parameters = parameters_of(engine)
    engine.close()
    return parameters


def resume(rank: int, ranks: int, case: Case, folder: str) -> dict[str, Tensor]:
    """A run that goes on from the checkpoint for five steps."""
    torch.manual_seed(rank + 1000)
    engine = engine_of(case, ranks)
    assert load_checkpoint(Path(folder), engine, rank=rank, ranks=max(ranks, 1)) == {"step": 5}
    take_steps(engine, case, AFTER, rank, max(ranks, 1))
    parameters = parameters_of(engine)
    engine.close()
    return parameters


def on(worlds: dict[int, World], ranks: int, function: Any, case: Case, *arguments: Any) -> list[dict[str, Tensor]]:
    return worlds[ranks].run(function, case, *arguments) if ranks else [function(0, 0, case, *arguments)]


def identical(first: Iterable[dict[str, Tensor]], second: Iterable[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


LAYOUTS = {"local": (0, 1, 0), "1/1": (1, 1, 1), "2/1": (2, 1, 2), "2/2": (2, 2, 1), "4/2": (4, 2, 1), "4/4": (4, 4, 0)}
"""(ranks, expert-parallel size, ZeRO stage)."""


def spread(case: Case, layout: str) -> tuple[int, Case]:
    ranks, expert, zero = LAYOUTS[layout]
    return ranks, replace(case, expert=expert, zero=zero)


SLOW = pytest.mark.slow
PAIRS = [
    *(("2/2", "4/4"), ("local", "2/2"), ("4/2", "1/1")),
    *(pytest.param(*pair, marks=SLOW) for pair in (("2/2", "local"), ("2/2", "2/1"), ("2/2", "4/2"))),
    *(pytest.param(saved, "2/2", marks=SLOW) for saved in ("2/1", "4/2", "4/4")),
]


@pytest.mark.parametrize(("saved", "resumed"), PAIRS)
def test_resumes_in_another_layout(worlds: dict[int, World], tmp_path: Path, saved: str, resumed: str) -> None:
    ranks, case = spread(MIXED, saved)
    unbroken = on(worlds, ranks, save_and_go_on, case, str(tmp_path))
    ranks, case = spread(MIXED, resumed)
    reference = {name: tensor for rank in unbroken for name, tensor in rank.items()}
    assert largest_difference(reference, on(worlds, ranks, resume, case, str(tmp_path))) < 1e-6


@pytest.mark.parametrize("layout", ["local", "2/2", "2/1", "4/2"])
def test_same_layout_is_bit_identical(worlds: dict[int, World], tmp_path: Path, layout: str) -> None:
    ranks, case = spread(Case("normalised", "mixed", clip_norm=0.1), layout)
    unbroken = on(worlds, ranks, save_and_go_on, case, str(tmp_path))
    assert identical(unbroken, on(worlds, ranks, resume, case, str(tmp_path)))


@pytest.mark.parametrize("zero", [1, pytest.param(0, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_zero_stages_share_checkpoints(worlds: dict[int, World], tmp_path: Path, zero: int) -> None:
    case = replace(MIXED, expert=2, zero=zero)
    unbroken = worlds[2].run(save_and_go_on, case, str(tmp_path))
    reference = {name: tensor for rank in unbroken for name, tensor in rank.items()}
    for other in {0, 1, 2} - {zero}:
        ranks = worlds[2].run(resume, replace(case, zero=other), str(tmp_path))
        assert largest_difference(reference, ranks) < 1e-6


def test_a_folder_per_rank_merges_without_clashes(worlds: dict[int, World], tmp_path: Path) -> None:
    """Ray Train merges the ranks' folders into one."""
    ranks, case = spread(MIXED, "4/2")
    unbroken = worlds[ranks].run(save_and_go_on, case, str(tmp_path), True)
    merged = tmp_path / "merged"
    merged.mkdir()
    for folder in sorted(tmp_path.glob("rank*")):
        assert not is_whole(folder)
        for file in folder.iterdir():
            assert not (merged / file.name).exists()
            shutil.copy(file, merged)
    assert is_whole(merged)
    assert {f"experts_{expert:04d}.safetensors" for expert in range(5)} <= {file.name for file in merged.iterdir()}
    assert identical(unbroken, worlds[ranks].run(resume, case, str(merged)))


def test_replicas_of_buffers_agree_after_saving(worlds: dict[int, World], tmp_path: Path) -> None:
    """With 4 ranks of EP 2, running statistics of the trunk and of each expert's two replicas drift apart."""
    case = Case("normalised", "sgd", expert=2)
    before, after = zip(*worlds[4].run(buffers_around_saving, case, str(tmp_path)))
    mean = "trunk.1.running_mean"
    assert not torch.equal(before[0][mean], before[1][mean])
    assert all(torch.equal(after[0][mean], rank[mean]) for rank in after)
    for rank in (0, 1):
        assert after[rank].keys() == after[rank + 2].keys()
        assert all(torch.equal(after[rank][name], after[rank + 2][name]) for name in after[rank])


def test_batch_statistics_inside_spread_experts_agree_after_saving(worlds: dict[int, World], tmp_path: Path) -> None:
    """With 4 ranks of EP 2 a GMM-gated module's experts see half of the batch each; replicas are equal again."""
    case = Case("gmm_module", "sgd", expert=2)
    before, after = zip(*worlds[4].run(buffers_around_saving, case, str(tmp_path)))
    name = next(name for name in before[0] if name.endswith("norm.running_mean"))
    assert not torch.equal(before[0][name], before[2][name])
    for rank in (0, 1):
        assert all(torch.equal(after[rank][name], after[rank + 2][name]) for name in after[rank])


def buffers_around_saving(rank: int, ranks: int, case: Case, folder: str) -> tuple[dict[str, Tensor], ...]:
    engine = engine_of(case, ranks)
    take_steps(engine, case, BEFORE, rank, ranks)
    before = parameters_of(engine)
    save_checkpoint(Path(folder), engine, rank=rank, ranks=ranks, state={})
    after = parameters_of(engine)
    engine.close()
    return before, after


def test_another_number_of_ranks_seeds_its_generators_from_the_checkpoint(
    worlds: dict[int, World], tmp_path: Path
) -> None:
    worlds[2].run(save_and_go_on, replace(MIXED, expert=2), str(tmp_path))
    first = worlds[3].run(draw_after_loading, str(tmp_path), 1)
    again = worlds[3].run(draw_after_loading, str(tmp_path), 2)
    assert first == again
    assert len(set(first)) == 3


def draw_after_loading(rank: int, ranks: int, folder: str, seed: int) -> float:
    torch.manual_seed(seed)
    engine = engine_of(replace(MIXED, expert=3), ranks)
    load_checkpoint(Path(folder), engine, rank=rank, ranks=ranks)
    engine.close()
    return float(torch.rand(()))


def test_weights_load_into_one_process(worlds: dict[int, World], tmp_path: Path) -> None:
    case = replace(MIXED, expert=2, zero=1)
    before = worlds[2].run(parameters_and_checkpoint, case, str(tmp_path))
    network = build("dfcp5", Experts)
    load_weights(tmp_path, network)
    loaded = network.state_dict()
    assert set(loaded) == set().union(*before)
    assert all(torch.equal(tensor, loaded[name]) for rank in before for name, tensor in rank.items())


def parameters_and_checkpoint(rank: int, ranks: int, case: Case, folder: str) -> dict[str, Tensor]:
    engine = engine_of(case, ranks)
    take_steps(engine, case, BEFORE, rank, ranks)
    save_checkpoint(Path(folder), engine, rank=rank, ranks=ranks, state={})
    parameters = parameters_of(engine)
    engine.close()
    return parameters
