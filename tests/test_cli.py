"""The command as a user types it: results, refusals of one sentence, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]

METHOD = {
    "name": "traditional_moe",
    "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8, "learning_rate": 0.003, "batch_size": 32},
    "gate": {"filters": [4, 8], "hidden": [16]},
    "epochs": 1,
    "batch_size": 32,
}


def moe_dist(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moe_dist.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


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
    report = moe_dist("report", latest, cwd=tmp_path)
    assert report.returncode == 0 and (latest / "report.html").is_file()
    assert json.loads((latest / "metrics.json").read_text()) == metrics


def test_show_runs_nothing(tmp_path: Path) -> None:
    result = moe_dist("show", write_job(tmp_path), "--set", "workers=2", "--set", "parallel.expert=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "10 experts over 2 ranks" in result.stdout and "50.0%" in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["wrokers=2"], "wrokers: unknown field"),
        (["data.dataset=digitz"], "no dataset is called 'digitz'"),
        (["method.experts=[{}, {}]"], "2 experts, but the dataset has 10 classes"),
        (["data.dataset=image_folder", "data.source=absent"], "absent"),
        (["method.batch_size=33", "workers=2"], "no multiple of workers = 2"),
    ],
)
def test_a_refusal_is_one_sentence(tmp_path: Path, overrides: list[str], said: str) -> None:
    options = [word for override in overrides for word in ("--set", override)]
    assert said in sentence(moe_dist("run", write_job(tmp_path), "--launcher", "local", *options, cwd=tmp_path))


def test_weights_without_a_network_are_a_sentence(tmp_path: Path) -> None:
    job = write_job(tmp_path, method={"name": "dense", "backbone": "resnet18", "epochs": 1})
    command = [sys.executable, "-c", NO_NETWORK, "run", str(job), "--launcher", "local"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
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


def test_own_images_as_folder_and_tar_give_the_same_split(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        tar.add(tmp_path / "own", arcname="own")
    digests = []
    for source in ("own", "own.tar"):
        data = {"dataset": "image_folder", "source": source, "image_size": 16, "val_fraction": 0.3}
        result = moe_dist(
            "run", write_job(tmp_path, data=data), "--launcher", "local", "--out", f"run-{source}", cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        digests.append(json.loads((tmp_path / f"run-{source}" / "run.json").read_text())["split_digest"])
    assert digests[0] == digests[1]


def test_shards_are_built_checked_and_refused_when_damaged(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    assert moe_dist("shards", "image_folder", "packed", "--from", "own", cwd=tmp_path).returncode == 0
    whole = moe_dist("shards", "check", "packed", cwd=tmp_path)
    assert whole.returncode == 0 and "all shards are whole" in whole.stdout
    shard = next((tmp_path / "packed" / "train").glob("*.tar"))
    damaged = bytearray(shard.read_bytes())
    damaged[3 * 512 + 100] ^= 1
    shard.write_bytes(damaged)
    refused = moe_dist("shards", "check", "packed", cwd=tmp_path)
    assert refused.returncode == 1 and shard.name in refused.stdout


def test_the_datasets_are_listed(tmp_path: Path) -> None:
    result = moe_dist("shards", "list", cwd=tmp_path)
    assert all(name in result.stdout for name in ("digits", "gtsrb", "image_folder"))
