"""The command as a user types it: results, refusals of one sentence, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from moe_dist.cli import again, app
from moe_dist.data.datasets.catalog import DATASETS
from moe_dist.errors import UserError
from moe_dist.job import load_job
from moe_dist.run.run import choose_run_directory, claim_run_directory

ROOT = Path(__file__).parents[2]

METHOD = {
    "name": "traditional_moe",
    "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8, "learning_rate": 0.003, "batch_size": 32},
    "gate": {"filters": [4, 8], "hidden": [16]},
    "epochs": 1,
    "batch_size": 32,
}


def moe_dist(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moe_dist.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def write_job(folder: Path, **changes: object) -> Path:
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 200, "max_test_images": 40}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "kind": "train", "data": data, "method": METHOD} | changes))
    return path


def write_images(folder: Path, classes: int = 3, images: int = 6) -> Path:
    """train|test/<class>/*.png of noise whose brightness tells the class."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(images):
                pixels = random.integers(80 * label, 80 * label + 60, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{number}.png")
    return folder


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a refused command: one line on stderr, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_run_resume_and_report(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    first = moe_dist("run", job, "--launcher", "local", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    latest = tmp_path / "runs" / "small" / "latest"
    assert "report: runs/small/" in first.stdout and (latest / "report.html").is_file()
    metrics = json.loads((latest / "metrics.json").read_text())
    again = moe_dist("run", job, "--launcher", "local", "--resume", cwd=tmp_path)
    assert "kept from an earlier run" in again.stdout and len(list((tmp_path / "runs" / "small").glob("2*"))) == 1
    (latest / "report.html").unlink()
    in_process("report", str(latest))
    assert (latest / "report.html").is_file()
    assert json.loads((latest / "metrics.json").read_text()) == metrics


def test_a_setting_that_does_nothing_is_told_before_any_work(tmp_path: Path) -> None:
    icl = {"name": "icl", "network": {"width": 2}, "experts": 2, "features": {"epochs": 60, "batch_size": 33}}
    job = write_job(tmp_path, method=icl)
    told = "icl: CCL is never trained on: t_cl = 120, and features.epochs = 60"
    refused = moe_dist("run", job, "--launcher", "local", "--set", "workers=2", cwd=tmp_path)
    assert told in refused.stdout and "set it to 32 or 34" in sentence(refused)
    assert told.removeprefix("icl: ") in in_process("show", str(job))


def test_show_runs_nothing(tmp_path: Path) -> None:
    result = moe_dist("show", write_job(tmp_path), "--set", "workers=2", "--set", "parallel.expert=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "10 experts over 2 ranks" in result.stdout and "50.0%" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_show_says_which_numbers_of_workers_an_elastic_job_may_have(tmp_path: Path) -> None:
    words = ["--set", "workers=4", "--set", "min_workers=1", "--set", "parallel.micro_batches=4"]
    assert "workers: 1, 2, 4, as many of these as" in in_process("show", str(write_job(tmp_path)), *words)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.dataset=digitz"], "no dataset is called 'digitz'"),
        (["method.experts=[{}, {}]"], "2 experts, but the dataset has 10 classes"),
        (["data.dataset=image_folder", "data.source=absent"], "absent"),
        (["method.batch_size=33", "workers=2"], "not a multiple of workers = 2"),
    ],
)
def test_a_refusal_is_one_sentence(
    tmp_path: Path, overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [word for override in overrides for word in ("--set", override)]
    with pytest.raises(UserError) as told:
        in_process("run", str(write_job(tmp_path)), "--launcher", "local", *options)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_a_refused_command_prints_its_sentence_alone(tmp_path: Path) -> None:
    assert "wrokers: unknown field" in sentence(
        moe_dist("run", write_job(tmp_path), "--launcher", "local", "--set", "wrokers=2", cwd=tmp_path)
    )


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["run", "my job.yaml"], True, "moe-dist run 'my job.yaml' --out runs/x --resume"),
        (["run", "job.yaml", "--out", "there"], True, "moe-dist run job.yaml --out there --resume"),
        (["run", "job.yaml", "--out", "there", "--resume"], True, "moe-dist run job.yaml --out there --resume"),
        (["run", "job.yaml", "--resume"], True, "moe-dist run job.yaml --resume --out runs/x"),
        (["run", "job.yaml"], False, "moe-dist run job.yaml"),
    ],
)
def test_the_command_that_goes_on(
    words: list[str], begun: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moe-dist", *words])
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    if begun:
        (folder / "job.yaml").touch()
    out = Path("there") if "--out" in words else None
    assert again(folder, out, "--resume" in words) == expected
    monkeypatch.setenv("MOE_DIST_GO_ON", "moe-dist submit job.yaml --resume")
    assert again(folder, out, False) == "moe-dist submit job.yaml --resume"


URL = "s3://bucket/x"
CUT = "s3:/bucket/x"
"""A URL that has lost a slash would be a folder `s3:`."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "job.yaml", "--launcher", "local", "--out", CUT], f"--out {CUT}: must be a path of this machine"),
        (["run", "job.yaml", "--launcher", "local", f"--out={CUT}"], "give a folder, or a URL with two slashes"),
        (
            ["run", "job.yaml", "--resume", "--out", "https://host/x"],
            "--out https://host/x: cannot be written over http",
        ),
        (["run", "s3://bucket/job.yaml"], "JOB.yaml s3://bucket/job.yaml: "),
        (
            ["run", "job.yaml", "--set", f"data.source={URL}"],
            "data.source: must be a path of this machine (only shards",
        ),
        (
            ["show", "dense.yaml", "--set", "method.weights=https://host/w.pth"],
            "method.weights: must be a path of this",
        ),
        (["show", "dfcp.yaml", "--set", "method.experts=s3://bucket/x.yaml"], "method.experts: must be a path of this"),
        (["submit", "job.yaml", "--address", "http://127.0.0.1:9", "--out", CUT], f"--out {CUT}: "),
        (["report", CUT], f"RUN {CUT}: must be a path of this machine"),
        (["report", "one", CUT], f"RUN {CUT}: "),
        (["report", "file:///nowhere/x"], "RUN file:///nowhere/x: no run is there; `moe-dist runs list URL`"),
        (["run", "job.yaml", "--out", "https://me:word@host/x"], "--out https://host/x: leave out user, password"),
        (["report", "one", "two", "--out", URL], f"--out {URL}: "),
        (["shards", "mnist", "out", "--from", URL], f"--from {URL}: must be a path of this machine"),
        (["shards", "stats", "packed", "--plot", "s3://bucket/x.png"], "--plot s3://bucket/x.png: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_url_where_a_path_is_meant_is_refused_and_nothing_is_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path)
    for name in ("dense", "dfcp"):
        job = {"name": name, "kind": "train", "method": {"name": name}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(job))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as told:
        in_process(*words)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("variable", "url"), [("MOE_DIST_CACHE", CUT), ("MOE_DIST_NODE_CACHE", URL)])
def test_a_url_as_cache_is_refused(variable: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node keeps is in a folder; what runs share may be at a URL, but not at one that has lost a slash."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, url)
    with pytest.raises(UserError, match=f"{variable} {url}: must be a path of this machine"):
        in_process("run", str(write_job(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_an_out_that_is_no_url_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    said = sentence(moe_dist("run", write_job(tmp_path), "--launcher", "local", "--out", CUT, cwd=tmp_path))
    assert said.startswith(f"error: --out {CUT}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_weights_without_a_network_are_a_sentence(tmp_path: Path) -> None:
    job = write_job(tmp_path, method={"name": "dense", "backbone": "resnet18", "epochs": 1})
    command = [sys.executable, "-c", NO_NETWORK, "run", str(job), "--launcher", "local"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = sentence(result)
    assert "DEFAULT" in said and "resnet18" in said and "weights" in said


NO_NETWORK = """
import socket, sys, tempfile, os
os.environ["TORCH_HOME"] = tempfile.mkdtemp()
def refuse(*_, **__): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from moe_dist.cli import main
main()
"""


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = moe_dist("--debug", "run", write_job(tmp_path), "--set", "wrokers=2", cwd=tmp_path)
    assert "Traceback" in result.stderr and "wrokers: unknown field" in result.stderr


def test_own_images_as_folder_and_tar_give_the_same_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own")
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        tar.add(tmp_path / "own", arcname="own")
    digests = []
    for source in ("own", "own.tar"):
        data = {"dataset": "image_folder", "source": source, "image_size": 16, "val_fraction": 0.3}
        in_process("run", str(write_job(tmp_path, data=data)), "--launcher", "local", "--out", f"run-{source}")
        digests.append(json.loads((tmp_path / f"run-{source}" / "run.json").read_text())["split_digest"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "job.yaml", "--launcher", "local", "--out", "file"], "--out file: {here}/file is not a folder"),
        (["run", "job.yaml", "--launcher", "local", "--out", "file/x"], "--out file/x: {here}/file is not a folder"),
        (["run", "job.yaml", "--launcher", "local", "--out", "/proc/x"], "--out /proc/x: nothing can be written into"),
        (["run", "job.yaml", "--launcher", "local", "--out", "file", "--resume"], "--out file: no run is there"),
        (["report", "file"], "file"),
        (["report", "1", "2", "--out", "file"], "the table file/seeds.md: {here}/file is not a folder"),
        (["report", "1", "2", "--out", "/proc/x"], "the table /proc/x/seeds.md: nothing can be written into /proc"),
        (["report", "grid", "--record", "file/x.json"], "the record of grid: {here}/file is not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_written_to_is_told_before_any_work(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.run.run.ensure_shards", lambda *_: pytest.fail("work has begun"))
    write_job(tmp_path)
    (tmp_path / "file").touch()
    for seed in (1, 2):
        write_finished(tmp_path / str(seed), seed)
    grid = {"name": "grid", "kind": "reproduce", "methods": {"dense": "dense"}, "grid": {"seeds": [0, 1]}}
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "job.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(UserError) as told:
        in_process(*words)
    assert said.format(here=tmp_path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["run", "job.yaml", "--launcher", "local", "--out", "r", "--resume"], "--out r"),
        (["report", "1"], "report of 1"),
    ],
)
def test_a_read_only_run_is_told_before_any_work(
    words: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.run.run.ensure_shards", lambda *_: pytest.fail("work has begun"))
    monkeypatch.setattr("moe_dist.report.build.flat_metrics", lambda *_: pytest.fail("work has begun"))
    write_job(tmp_path)
    write_finished(tmp_path / "1", 1)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "job.yaml").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=rf"{what}: nothing can be written into .* \(Read-only file system\)"):
        in_process(*words)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "RAY_ADDRESS 127.0.0.1:9: no Ray cluster answers there (Connection refused)"),
        ("http://127.0.0.1:8265", "RAY_ADDRESS http://127.0.0.1:8265: is the address of a job server"),
    ],
)
@pytest.mark.parametrize(
    "words", [["run", "job.yaml"], ["shards", "digits", "packed", "--workers", "2"]], ids=["run", "build"]
)
def test_a_cluster_that_is_gone_is_told_before_any_work(
    words: list[str], address: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    write_job(tmp_path)
    with pytest.raises(UserError) as told:
        in_process(*words)
    assert said in str(told.value) and [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_a_launcher_there_is_not_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--launcher loca: choose ray or local"):
        in_process("run", str(write_job(tmp_path)), "--launcher", "loca")
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/images/a.png")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.run.run.ensure_shards", refuse)
    with pytest.raises(UserError, match=r"^/images/a\.png: Permission denied; "):
        in_process("run", str(write_job(tmp_path)), "--launcher", "local", "--out", "r")


def test_a_cache_that_is_a_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_DIST_CACHE", str(write_job(tmp_path)))
    with pytest.raises(UserError, match=r"MOE_DIST_CACHE .*job\.yaml: is not a folder; name a folder"):
        in_process("shards", "list")


@pytest.mark.parametrize("words", [["--out", "gr\udcf6sse"], ["--out=gr\udcf6sse"]])
def test_a_run_folder_that_is_not_utf_8_is_told_before_any_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="its name is not UTF-8; rename it"):
        in_process("run", str(write_job(tmp_path)), "--launcher", "local", *words)
    (tmp_path / "gr\udcf6sse").mkdir()
    monkeypatch.chdir(tmp_path / "gr\udcf6sse")
    with pytest.raises(UserError, match="is not UTF-8, and no report could name it"):
        choose_run_directory(load_job(tmp_path / "job.yaml"), None, resume=False)


def test_a_terminal_without_a_names_letters_gets_them_escaped(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "20", "TERM": "dumb"}
    runs = [str(write_finished(tmp_path / "Größe" / str(seed), seed)) for seed in (1, 2)]
    command = [sys.executable, "-m", "moe_dist.cli", "report", *runs, "--out", "Größe"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == rb"table: Gr\xf6\xdfe/seeds.md"


def test_a_copied_home_of_runs_asks_for_the_runs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to a file system without links: `latest` is a folder, or is not there."""
    monkeypatch.chdir(tmp_path)
    job = load_job(write_job(tmp_path))
    (tmp_path / "runs" / "small" / "latest").mkdir(parents=True)
    run = choose_run_directory(job, None, resume=False)
    claim_run_directory(run, job)
    assert sorted(path.name for path in run.parent.iterdir()) == [run.name, "latest"]
    with pytest.raises(UserError, match=r"--resume: .*runs/small has no link `latest` .* name the run with --out"):
        choose_run_directory(job, None, resume=True)
    (run.parent / "latest").rmdir()
    claim_run_directory(run, job)
    assert choose_run_directory(job, None, resume=True) == run


def test_a_clock_that_was_set_back_begins_no_run_in_another_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:  # type: ignore[override]
            return cls(2026, 10, 25, 2, 30, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_dist.run.run.datetime", Clock)
    job = load_job(write_job(tmp_path))
    for expected in ("20261025-023000-000", "20261025-023000-001", "20261025-023000-002"):
        folder = choose_run_directory(job, None, resume=False)
        assert folder == tmp_path / "runs" / "small" / expected
        folder.mkdir(parents=True)


@pytest.mark.parametrize("name", ["exp[v2]", "x[/y]", "[bold]"])
def test_a_run_folder_may_be_called_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [write_finished(tmp_path / name / str(seed), seed) for seed in (1, 2)]
    assert f"table: {name}/seeds.md\n" in in_process("report", *map(str, runs), "--out", name)
    with pytest.raises(UserError) as told:
        in_process("run", f"{name}.yaml")
    assert str(told.value) == f"{name}.yaml: no such job file"
    for words in ([name], ["run"], ["run", "job.yaml", name], ["shards", "stats", "a", f"--{name}"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, words


def test_shards_are_built_checked_and_refused_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own")
    in_process("shards", "image_folder", "packed", "--from", "own")
    assert "all shards are whole" in in_process("shards", "check", "packed")
    shard = next((tmp_path / "packed" / "train").glob("*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[3 * 512 + 100] ^= 1
    shard.write_bytes(damaged)
    refused = CliRunner().invoke(app, ["shards", "check", "packed"])
    assert refused.exit_code == 1 and shard.name in refused.output


def in_process(*arguments: str) -> str:
    """The output of a command, which must succeed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_damaged_shards_are_repaired_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "own")
    build = ["shards", "image_folder", "packed", "--from", "own"]
    options = ["--imbalance", "2", "--short-side", "16", "--quality", "80", "--samples-per-shard", "5"]
    # int(6 * (1 / 2) ** (c / 2)) for c = 0, 1, 2: 6, 4, 3
    built = in_process(*build, *options)
    index = json.loads((tmp_path / "packed/train/index.json").read_text())
    assert f"train: 13 images in 3 shards, split hash {index['rows_sha256']}\n" in built
    assert index["image_kinds"] == {"jpg": 13} and index["shrink"] == {"short_side": 16, "quality": 80}
    assert "train: 13 images" in in_process(*build, *options)
    with pytest.raises(UserError, match="already holds something"):
        in_process(*build)
    shard = tmp_path / "packed/train/train-000001.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.index(b"\xff\xd8") + 200] ^= 1
    shard.write_bytes(damaged)
    repaired = in_process("shards", "check", "packed", "--repair")
    assert "packed/train: 1 sample dropped, 12 kept" in repaired and "all shards are whole" in repaired
    assert "imbalance factor" in in_process("shards", "stats", "packed")
    assert (tmp_path / "packed/stats.png").is_file()
    in_process("shards", "stats", "packed/test", "--plot", "test.png")
    assert (tmp_path / "test.png").is_file()


@pytest.mark.parametrize("place", ["/proc/1/x.png", "/proc/x/y.png", "job.yaml/x.png"])
def test_a_picture_that_cannot_be_written_is_one_sentence_below_the_statistics(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").touch()
    write_images(tmp_path / "own")
    in_process("shards", "image_folder", "packed", "--from", "own")
    result = CliRunner().invoke(app, ["shards", "stats", "packed", "--plot", place])
    assert isinstance(result.exception, UserError) and "imbalance factor" in result.output
    assert f"{place}: cannot be written (" in str(result.exception)
    assert str(result.exception).endswith("; choose another place")


def test_the_datasets_and_their_shards_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    in_process("shards", "digits", "cache/shards/digits-1")
    listed = in_process("shards", "list")
    assert all(f"\n{name}\n" in f"\n{listed}" for name in DATASETS)
    assert "the pickles hold only plain arrays" in listed and "https://www.cs.toronto.edu/~kriz/cifar.html" in listed
    assert "cache/shards/digits-1: whole (1,438 train, 359 test)" in listed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chekc", "."], "shards chekc: neither a command (build, check, list, stats) nor a dataset (cifar10,"),
        (["cifar100", "out"], "dataset cifar100 needs data.source (--from): "),
        (["mnist", "out", "--from", "nowhere"], "nowhere: no such folder or tar; set data.source (--from)"),
        (["check", "nowhere"], "nowhere: no such folder of shards"),
        (["check", "s4://bucket/set"], "s4://bucket/set/index.json: is not the address of a store"),
        (["digits", "http://host/out"], "http://host/out: cannot be written over http"),
    ],
)
def test_misspelt_shards_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as told:
        in_process("shards", *words)
    assert said in str(told.value)


def test_a_report_of_several_runs_is_a_table_over_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [write_finished(tmp_path / str(seed), seed) for seed in (1, 2)]
    result = CliRunner().invoke(app, ["report", *map(str, runs), "--out", "tables"])
    assert result.exit_code == 0 and "small: mean over 2 seeds" in result.stdout
    # 3 and 4 of 4 right: mean 87.5 %, t = 12.706 with one degree of freedom, half = 12.706 * 0.125, cut at 0 and 100 %.
    assert "| Top-1 accuracy | 87.50 % (0.00 % to 100.00 %) |" in (tmp_path / "tables" / "seeds.md").read_text()
    assert isinstance(CliRunner().invoke(app, ["report", str(runs[0]), "--out", "tables"]).exception, UserError)


def write_finished(folder: Path, seed: int) -> Path:
    """A run directory of four test images, of which `seed` + 2 are right."""
    (folder / "dense" / "evaluation").mkdir(parents=True)
    job = {"name": "small", "kind": "train", "seed": seed, "data": {"dataset": "digits"}, "method": {"name": "dense"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    record = {"dataset": "digits", "classes": ["a", "b"], "counts": {"train": 9, "val": 0, "test": 4}}
    (folder / "run.json").write_text(json.dumps(record))
    right = np.arange(4) < seed + 2
    log_probs = np.log(np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]))
    np.savez(folder / "dense/evaluation/predictions.npz", labels=np.zeros(4, np.int64), log_probs=log_probs)
    times = {"training": {"wall_seconds": 1.0, "summed_expert_seconds": None}, "latency": {}}
    facts = times | {"labels_used": "all", "parameters": 10}
    (folder / "dense/evaluation/evaluation.json").write_text(json.dumps(facts))
    return folder
