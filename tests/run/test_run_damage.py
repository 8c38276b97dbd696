"""Files that a power failure emptied, and damaged checkpoints: the part is made again, or the error names the file."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_folders import checkpoints_of, evaluation_of, step_of, training_of
from safetensors.numpy import load_file
from small_jobs import dfcp, quiet, traditional

import moe_dist.launch.phases as phases_module
import moe_dist.run.run as run_module
from moe_dist.engine.checkpoint import FORMAT, damaged_file, is_whole
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.report.build import build_report
from moe_dist.run.run import run_job
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import checkpoints, newest_checkpoint, sound_checkpoint
from moe_dist.train.worker import LocalWorker, from_first_rank

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reports, which take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def run(job: Job, folder: Path) -> str:
    """The output of the run."""
    console = Console(record=True, width=1000, file=io.StringIO())
    run_job(job, folder, "local", Show(console))
    return console.export_text()


def weights(model: Path) -> dict[str, np.ndarray]:
    newest = newest_checkpoint(checkpoints_of(model))
    assert newest is not None
    return {f"{path.name}/{name}": t for path in newest.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        run_job(traditional(), folder, "local", quiet())
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of three epochs, with the checkpoints of the last two."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change_a_byte(path: Path) -> None:
    """Flip a bit in the middle of a file, so that its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_gone_on_from(folder: Path, finished: Path) -> None:
    newest = newest_checkpoint(checkpoints_of(folder / "traditional_moe"))
    assert newest is not None and damaged_file(newest) is None
    change_a_byte(newest / "experts_0003.safetensors")
    assert is_whole(newest) and damaged_file(newest) == "experts_0003.safetensors"
    said = run(traditional(), folder)
    assert "experts_0003.safetensors does not hold the bytes that were written" in said
    assert "the training continues from checkpoint_00000012" in said
    assert (newest.parent / "damaged-checkpoint_00000018").is_dir(), "nothing is deleted"
    assert_same(folder / "traditional_moe", finished / "traditional_moe")
    assert "does not hold" not in run(traditional(), folder)


def test_a_checkpoint_that_was_damaged_since_its_training_is_not_evaluated(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(evaluation_of(folder / "traditional_moe"))
    newest = newest_checkpoint(checkpoints_of(folder / "traditional_moe"))
    assert newest is not None
    with monkeypatch.context() as patch:
        patch.setattr(phases_module, "sound_checkpoint", lambda place: (newest, {}))  # it is damaged after that look
        change_a_byte(newest / "dense.safetensors")
        with pytest.raises(UserError, match=r"dense.safetensors does not hold the bytes .* run again with --resume"):
            run(traditional(), folder)
    run(traditional(), folder)
    assert_same(folder / "traditional_moe", finished / "traditional_moe")


def test_with_no_sound_checkpoint_nothing_is_trained_over_it(folder: Path) -> None:
    places = checkpoints(checkpoints_of(folder / "traditional_moe"))
    for place in places:
        change_a_byte(place / "dense.safetensors")
    with pytest.raises(UserError, match=r"checkpoint_00000018: dense.safetensors does not hold the bytes .* move"):
        run(traditional(), folder)
    assert checkpoints(checkpoints_of(folder / "traditional_moe")) == places


def test_a_damaged_chosen_checkpoint_is_not_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, last = checkpoints(checkpoints_of(folder / "traditional_moe"))
    monkeypatch.setattr(run_module, "best_on_validation", lambda place: earlier)
    change_a_byte(earlier / "dense.safetensors")
    said = run(traditional(), folder)
    assert "the epoch that validation chose is left out" in said
    about = json.loads((evaluation_of(folder / "traditional_moe") / "evaluation.json").read_text())
    assert "chosen" not in about and last.is_dir()


def test_a_checkpoint_without_digests_counts_by_its_sizes(folder: Path) -> None:
    """Format 1 had no digests."""
    newest = newest_checkpoint(checkpoints_of(folder / "traditional_moe"))
    assert newest is not None
    content = json.loads((newest / "state.json").read_text())
    assert content["format"] == FORMAT == 2
    files = {name: about["bytes"] for name, about in content["files"].items()}
    (newest / "state.json").write_text(json.dumps(content | {"format": 1, "files": files}))
    assert is_whole(newest) and damaged_file(newest) is None


def ranks_agree(rank: int, store: str, folder: str, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    worker = LocalWorker(Path(folder), 1, rank, 2, torch.device("cpu"))
    try:
        found: Any = worker.restore()
    except UserError as error:
        found = str(error)
    answers.put((rank, str(found)))


def both_ranks(folder: Path) -> list[str]:
    context = multiprocessing.get_context("spawn")
    answers, store = context.Queue(), f"{tempfile.mkdtemp()}/store"
    ranks = [context.Process(target=ranks_agree, args=(rank, store, str(folder), answers)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    found = sorted(answers.get(timeout=270) for _ in ranks)
    for rank in ranks:
        rank.join()
    return [answer for _, answer in found]


def test_all_ranks_restore_what_rank_0_found_sound(folder: Path) -> None:
    place = checkpoints_of(folder / "traditional_moe")
    earlier, last = checkpoints(place)
    change_a_byte(last / "dense.safetensors")
    assert both_ranks(place) == [str(earlier)] * 2
    change_a_byte(earlier / "dense.safetensors")
    refused = both_ranks(place)
    assert refused[0] == refused[1] and "does not hold the bytes that were written" in refused[0]


def test_rank_0_s_find_is_everybodys(tmp_path: Path) -> None:
    assert from_first_rank(lambda: tmp_path, 0, 1) == tmp_path and from_first_rank(lambda: None, 0, 1) is None
    assert sound_checkpoint(tmp_path) == (None, {})


EMPTY = [b"", b"\x00" * 40, b'{"cut": ']


@pytest.mark.parametrize("content", EMPTY)
@pytest.mark.parametrize("name", ["training.json", "settings.json"])
def test_an_emptied_file_of_a_training_is_written_again(
    folder: Path, finished: Path, name: str, content: bytes
) -> None:
    path = training_of(folder / "traditional_moe") / name
    whole = json.loads(path.read_text())
    path.write_bytes(content)
    run(traditional(), folder)
    again = json.loads(path.read_text())
    assert again.keys() == whole.keys() and again.get("step") == whole.get("step")
    assert_same(folder / "traditional_moe", finished / "traditional_moe")


@pytest.mark.parametrize("content", EMPTY)
def test_an_emptied_evaluation_is_made_again(folder: Path, content: bytes) -> None:
    path = evaluation_of(folder / "traditional_moe") / "evaluation.json"
    whole = json.loads(path.read_text())
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"evaluation.json: cannot be read .*--resume"):
        build_report(folder)
    run(traditional(), folder)
    assert json.loads(path.read_text())["fingerprint"] == whole["fingerprint"]


@pytest.mark.parametrize("name", ["current.json", "../run.json"])
@pytest.mark.parametrize("content", EMPTY)
def test_an_emptied_pointer_or_record_is_written_again(folder: Path, name: str, content: bytes) -> None:
    training = training_of(folder / "traditional_moe")
    (folder / "traditional_moe" / name).write_bytes(content)
    run(traditional(), folder)
    assert training_of(folder / "traditional_moe") == training
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("content", [*EMPTY, b"name: [", b"- a list", b"\xff\xfe\x00j"])
def test_an_emptied_job_is_named(folder: Path, content: bytes) -> None:
    (folder / "job.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"job.yaml: holds no job any more"):
        run(traditional(), folder)
    with pytest.raises(UserError, match=r"job.yaml"):
        build_report(folder)


@pytest.mark.parametrize("file", ["done.json", "result.json", "arrays.npz"])
def test_an_emptied_result_of_a_step_is_made_again(tmp_path: Path, file: str) -> None:
    run(dfcp(), tmp_path)
    path = step_of(tmp_path / "dfcp", "first_stage") / file
    before = path.stat().st_size
    path.write_bytes(b"")
    run(dfcp(), tmp_path)
    assert path.stat().st_size == before or file == "done.json"
