"""An S3 server that stops and comes back, a web server killed in mid body, a fetch killed: streaming goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import pytest
import yaml
from s3_server import S3Server, reserved_port
from s3fs import S3FileSystem

from moe_dist.cli import app
from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.images import EncodedImages
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage.store import exists, get_bytes, list_names, put_file
from moe_dist.data.stream.stream import Stream
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig, RemoteConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from fault_server import FaultServer, serving, time_passing_while_it_stalls
from pictures import write_image_folder

pytestmark = pytest.mark.chaos

FORK = multiprocessing.get_context("fork")
REMOTE = RemoteConfig(timeout_seconds=60, retries=4)
"""A busy machine is no stall."""
ONCE = RemoteConfig(timeout_seconds=60, retries=0)
BUCKET = "s3://images"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training pictures and 9 to test."""
    return write_image_folder(tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in a folder of shards, three of them for training."""
    folder = tmp_path_factory.mktemp("built") / "shards"
    build_shards("image_folder", pictures, folder, samples_per_shard=10)
    return folder


@contextmanager
def endpoint(url: str) -> Iterator[None]:
    """S3 is at `url`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", url)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        yield
        S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def moto(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The pictures, built to s3://images/set."""
    server = S3Server()
    with endpoint(f"http://127.0.0.1:{server.port}"):
        boto3.client("s3").create_bucket(Bucket="images")
        cache = tmp_path_factory.mktemp("cache")
        build_shards("image_folder", pictures, f"{BUCKET}/set", samples_per_shard=10, cache=cache, remote=REMOTE)
        yield server
    server.stop()


def epoch(opened: ShardSet) -> Iterator[np.ndarray]:
    """One epoch of batches, a shard after the other."""
    training_set = TrainingSet(np.arange(len(opened)), opened.labels)
    images = EncodedImages(opened, 8, crop_roi=False)
    config = DataConfig(image_size=8, window_shards=1)
    stream = Stream(images, training_set, config, seed=0, global_batch=4, rank=0, ranks=1, shard_of=opened.shard_of)
    for batch in stream.epoch():
        yield batch.images.numpy()


def test_an_epoch_streams_from_s3(moto: S3Server, shards: Path, tmp_path: Path) -> None:
    stored = ShardSet.open(f"{BUCKET}/set/train", REMOTE, tmp_path)
    np.testing.assert_array_equal(list(epoch(stored)), list(epoch(ShardSet.open(shards / "train"))))


def stored_files(place: str) -> dict[str, bytes]:
    """Every object under `place` by its path, as S3 itself lists them."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]
    return {
        name.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names
    }


def test_s3_gets_the_bytes_that_a_folder_gets(moto: S3Server, shards: Path) -> None:
    expected = {str(path.relative_to(shards)): path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    assert stored_files(f"{BUCKET}/set") == expected
    assert check_shards(f"{BUCKET}/set", REMOTE) == []


def test_a_build_to_s3_goes_on_where_the_store_left_it(
    moto: S3Server, pictures: Path, shards: Path, tmp_path: Path
) -> None:
    """The server stops while the second shard is written; the first is not written again."""

    def stop(split: str, done: int, total: int) -> None:
        if (split, done) == ("train", 15):
            moto.stop()

    options = {"samples_per_shard": 10, "cache": tmp_path, "remote": ONCE}
    with pytest.raises(UserError, match=r"train-000001.tar: cannot be written.*it goes on where it stood"):
        build_shards("image_folder", pictures, f"{BUCKET}/again", on_progress=stop, **options)
    moto.start()
    before = boto3.client("s3").head_object(Bucket="images", Key="again/train/train-000000.tar")["LastModified"]
    with pytest.raises(UserError, match=r"index\.json: cannot be fetched: there is no such file"):
        ShardSet.open(f"{BUCKET}/again/train", REMOTE, tmp_path / "copies")
    begun: list[int] = []
    build_shards(
        "image_folder",
        pictures,
        f"{BUCKET}/again",
        on_progress=lambda split, done, total: begun.append(done),
        **options,
    )
    assert begun[0] == 10
    assert stored_files(f"{BUCKET}/again") == stored_files(f"{BUCKET}/set")
    after = boto3.client("s3").head_object(Bucket="images", Key="again/train/train-000000.tar")["LastModified"]
    assert after == before


def test_a_job_trains_on_s3(moto: S3Server, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built by the command, trained on by the command: neither is told more than the address."""
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    place = f"{BUCKET}/by-command"
    run_command("shards", "image_folder", place, "--from", str(pictures))
    job = {
        "name": "small",
        "kind": "train",
        "data": {"dataset": "image_folder", "shards": place, "image_size": 16, "val_fraction": 0.25},
        "method": {
            "name": "traditional_moe",
            "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8, "learning_rate": 0.003, "batch_size": 8},
            "gate": {"filters": [4, 8], "hidden": [16]},
            "epochs": 1,
            "batch_size": 8,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run_command("run", str(tmp_path / "job.yaml"), "--launcher", "local", "--out", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run/metrics.json").read_text())["traditional_moe/test_images"] == 9
    assert len(list((tmp_path / "cache/fetched").glob("*.tar"))) == 2, "train and test, each fetched whole"


def run_command(*arguments: str) -> None:
    """`moe-dist` in this process, whose environment knows the store."""
    app(list(arguments), standalone_mode=False)


def test_s3_is_listed_and_asked_as_it_is_now(moto: S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert list_names(f"{BUCKET}/new") == [] and not exists(f"{BUCKET}/new/b")
    for name in ("b", "a", "deeper/c"):
        put_file(tmp_path / "file", f"{BUCKET}/new/{name}")
    assert list_names(f"{BUCKET}/new") == ["a", "b"] and exists(f"{BUCKET}/new/b")


def test_a_file_of_several_parts_arrives_whole(moto: S3Server, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2**24 + 1)
    (tmp_path / "file").write_bytes(data)
    put_file(tmp_path / "file", f"{BUCKET}/large")
    assert get_bytes(f"{BUCKET}/large") == data


def test_a_server_that_comes_back_is_waited_for(
    moto: S3Server, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after the first batch and comes back while the second try waits; no batch is lost or another."""
    pauses: list[float] = []

    def back_at_the_second(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            moto.start()

    monkeypatch.setattr("moe_dist.data.storage.store.sleep", back_at_the_second)
    batches = epoch(ShardSet.open(f"{BUCKET}/set/train", REMOTE, tmp_path))
    streamed = [next(batches)]
    moto.stop()
    streamed += batches
    assert pauses == [1, 2]
    np.testing.assert_array_equal(streamed, list(epoch(ShardSet.open(shards / "train"))))


def test_objects_and_buckets_that_are_not_there_are_named(moto: S3Server) -> None:
    for url in (f"{BUCKET}/set/train/other.tar", "s3://nowhere/index.json"):
        with pytest.raises(UserError, match=rf"{url}: cannot be fetched: there is no such file \(404\); check"):
            get_bytes(url, REMOTE)


def test_missing_credentials_are_asked_for(moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="cannot be fetched: no credentials were found; set them in the environment"):
        get_bytes(f"{BUCKET}/set/train/index.json", REMOTE)
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (403, r"the store refuses access \(403\); check the credentials in the environment"),
        (503, "the store answered 503; try again later"),
        ("half", "the connection ended after 500 of 1000 bytes"),
        ("stall", "the store was silent for 60 s"),
        ("stall in body", "the store was silent for 60 s"),
    ],
)
def test_faults_of_s3_are_named(tmp_path: Path, fault: int | str, said: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/shard.tar").write_bytes(bytes(1000))
    with serving(tmp_path) as server, endpoint(server.url):
        server.faults["shard.tar"] = ["", fault]
        assert get_bytes(f"{BUCKET}/shard.tar", ONCE) == bytes(1000)
        failing = pytest.raises(UserError, match=f"{BUCKET}/shard.tar: cannot be fetched: {said}")
        with time_passing_while_it_stalls(server), failing as raised:
            get_bytes(f"{BUCKET}/shard.tar", ONCE)
        assert server.asked == ["shard.tar"] * 2, "one try is one try, whatever the library would do"
        assert "hidden" not in str(raised.value)
        assert get_bytes(f"{BUCKET}/shard.tar", ONCE) == bytes(1000)


def test_an_upload_nobody_takes_ends(tmp_path: Path) -> None:
    """The server accepts and reads nothing: more bytes than any socket buffer holds stay on the way."""
    (tmp_path / "file").write_bytes(bytes(2**25))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}"),
        pytest.raises(UserError, match="cannot be written: the store was silent for 1 s"),
    ):
        put_file(tmp_path / "file", f"{BUCKET}/file", RemoteConfig(timeout_seconds=1, retries=0))


def serve(root: Path, port: int, faults: dict[str, list[int | str]]) -> None:
    server = FaultServer(root, port)
    server.faults.update(faults)
    server.serve_forever()


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def wait_for_server(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)


def wait_for_half_a_shard(folder: Path) -> None:
    while not any(has_content(path) for path in folder.glob("*.part")):
        time.sleep(0.01)


def has_content(partial: Path) -> bool:
    """Whether the file is there and not empty; one that is whole by now has another name."""
    try:
        return partial.stat().st_size > 0
    except FileNotFoundError:
        return False


def test_a_server_killed_in_mid_body_is_waited_for(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = reserved_port()
    port = reservation.getsockname()[1]
    servers = [start(serve, shards, port, {"train-000001.tar": ["stall in body"]})]
    wait_for_server(port)

    def killed() -> None:
        wait_for_half_a_shard(tmp_path)
        os.kill(servers[0].pid, signal.SIGKILL)

    def back_at_the_second(seconds: float) -> None:
        if seconds == 2:
            servers.append(start(serve, shards, port, {}))
            wait_for_server(port)

    monkeypatch.setattr("moe_dist.data.storage.store.sleep", back_at_the_second)
    killer = threading.Thread(target=killed)
    killer.start()
    streamed = list(epoch(ShardSet.open(f"http://127.0.0.1:{port}/train", REMOTE, tmp_path)))
    killer.join()
    np.testing.assert_array_equal(streamed, list(epoch(ShardSet.open(shards / "train"))))
    assert len(servers) == 2
    servers[1].kill()
    servers[1].join()
    reservation.close()


def read_first(url: str, cache: Path) -> None:
    ShardSet.open(url, RemoteConfig(timeout_seconds=30), cache).read(0)


def test_a_fetch_that_was_killed_is_done_by_the_next(shards: Path, tmp_path: Path) -> None:
    """The lock goes with the killed process, and so does what it had fetched."""
    with serving(shards) as server:
        server.faults["train-000000.tar"] = ["stall in body"]
        fetching = start(read_first, f"{server.url}/train", tmp_path)
        wait_for_half_a_shard(tmp_path)
        os.kill(fetching.pid, signal.SIGKILL)
        fetching.join()
        data = ShardSet.open(f"{server.url}/train", REMOTE, tmp_path).read(0)
    assert data == ShardSet.open(shards / "train").read(0)
    assert not list(tmp_path.glob("*.part"))
