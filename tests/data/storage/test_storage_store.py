"""Shards behind a URL: what a store may do wrong, and the cache that holds their copies."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest
from built_data import built_data
from fault_server import FaultServer, serving, time_passing_while_it_stalls
from fsspec.implementations.memory import MemoryFileSystem

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.images import EncodedImages
from moe_dist.data.shards.cache import ShardCache
from moe_dist.data.shards.index import ShardInfo, read_index
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage import transfer
from moe_dist.data.storage.store import exists, get_bytes, get_file, is_url, join, list_names, put_file, shown
from moe_dist.data.stream.stream import Stream
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.settings.data import DataConfig, RemoteConfig

PATIENT = RemoteConfig(timeout_seconds=30, retries=2)
"""A busy machine is no stall."""
QUICK_ONCE = RemoteConfig(timeout_seconds=0.4, retries=0)
SHARD = "train-000001.tar"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time here."""
    slept: list[float] = []
    monkeypatch.setattr("moe_dist.data.storage.store.sleep", slept.append)
    return slept


@pytest.fixture
def server(shards: Path) -> Iterator[FaultServer]:
    """The shards, served."""
    with serving(shards) as running:
        yield running


def small_cache(folder: Path, limit_bytes: int) -> ShardCache:
    return ShardCache(folder, RemoteConfig(cache_gib=limit_bytes / 2**30, timeout_seconds=30, retries=0))


def objects(server: FaultServer, sizes: list[int]) -> list[ShardInfo]:
    """Files of `sizes` bytes on the server, as an index would list them."""
    infos = []
    for number, size in enumerate(sizes):
        path = server.root / f"object-{number}.tar"
        path.write_bytes(bytes([number]) * size)
        infos.append(ShardInfo(path.name, 1, size, file_sha256(path)))
    return infos


def copies(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.tar")}


@pytest.mark.parametrize(
    ("place", "name", "expected"),
    [
        ("s3://bucket/set/", "train", "s3://bucket/set/train"),
        ("gs://bucket", "train/index.json", "gs://bucket/train/index.json"),
        ("https://host/set?sig=a%2Fb", "train", "https://host/set/train?sig=a%2Fb"),
    ],
)
def test_a_name_is_joined_before_the_query(place: str, name: str, expected: str):
    assert is_url(place) and not is_url("/data/set")
    assert join(place, name) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@host/set?sig=secret", "https://host/set"),
        ("s3://bucket/me@home/train", "s3://bucket/me@home/train"),
    ],
)
def test_messages_hold_no_secrets(url: str, expected: str):
    assert shown(url) == expected


def test_a_set_behind_a_url_reads_as_the_folder(server: FaultServer, shards: Path, tmp_path: Path):
    stored = ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")
    local = ShardSet.open(shards / "train")
    assert stored.digest == local.digest
    assert [stored.read(sample) for sample in range(24)] == [local.read(sample) for sample in range(24)]
    assert stored.where(12) == local.where(12).replace(str(shards), server.url)
    assert server.asked.count(SHARD) == 1, "fetched whole, and once"
    ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies").read(12)
    assert server.asked.count(SHARD) == 1 and server.asked.count("index.json") == 2


def test_a_set_travels_without_its_copies_open(server: FaultServer, tmp_path: Path):
    stored = ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")
    data = stored.read(5)
    assert pickle.loads(pickle.dumps(stored)).read(5) == data


@pytest.mark.parametrize(
    ("faults", "tries", "said"),
    [
        ([404, "..."], 1, r"train-000001.tar: cannot be fetched: there is no such file \(404\); check the address"),
        ([403, "..."], 1, r"cannot be fetched: the store refuses access \(403\); check the credentials"),
        ([416, "..."], 1, "cannot be fetched: the store answered 416"),
        ([503, "..."], 3, "cannot be fetched after 3 tries: the store answered 503; try again later"),
        (["half", "..."], 3, "after 3 tries: the connection ended after 20480 of 40960 bytes; check the network"),
        (
            ["stall", "..."],
            3,
            r"after 3 tries: the store was silent for 30 s; check the network, or raise data.remote",
        ),
        (["stall in body", "..."], 3, "after 3 tries: the store was silent for 30 s"),
        (["flip", "..."], 3, "after 3 tries: the 40960 bytes that arrived are not those of the index"),
    ],
)
def test_a_lasting_fault_is_one_sentence(
    server: FaultServer, pauses: list[float], tmp_path: Path, faults: list[int | str], tries: int, said: str
):
    stored = ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")
    server.faults[SHARD] = faults
    with time_passing_while_it_stalls(server, lambda: len(pauses)), pytest.raises(UserError, match=said) as raised:
        stored.read(12)
    assert f"{server.url}/train/{SHARD}: " in str(raised.value)
    assert server.asked.count(SHARD) == tries
    assert pauses == [1, 2][: tries - 1]
    assert not [path for path in (tmp_path / "copies").iterdir() if path.suffix != ".lock"], "nothing half is left"


@pytest.mark.parametrize("fault", [503, 429, "half", "stall", "stall in body", "flip"])
def test_a_passing_fault_is_tried_again(
    server: FaultServer, pauses: list[float], shards: Path, tmp_path: Path, fault: int | str
):
    server.faults[SHARD] = [fault, fault]
    stored = ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")
    with time_passing_while_it_stalls(server, lambda: len(pauses)):
        assert stored.read(12) == ShardSet.open(shards / "train").read(12)
    assert server.asked.count(SHARD) == 3


def test_pauses_double_up_to_half_a_minute(server: FaultServer, pauses: list[float]):
    server.faults["index.json"] = [503, "..."]
    with pytest.raises(UserError, match="after 8 tries"):
        get_bytes(f"{server.url}/train/index.json", RemoteConfig(retries=7))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_a_server_that_is_not_there_is_named(pauses: list[float], tmp_path: Path):
    with serving(tmp_path) as gone:
        url = gone.url
    with pytest.raises(UserError, match=rf"{url}/x: cannot be fetched after 3 tries: Cannot connect .*check"):
        get_bytes(f"{url}/x", PATIENT)
    with pytest.raises(UserError, match="cannot be looked up after 3 tries: Cannot connect"):
        exists(f"{url}/x", PATIENT)


def test_an_unanswered_question_is_no_no(server: FaultServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    assert exists(f"{server.url}/train/index.json", PATIENT)
    assert not exists(f"{server.url}/train/other.json", PATIENT)
    monkeypatch.setattr(server.RequestHandlerClass, "do_HEAD", lambda handler: handler.send_error(503))
    server.faults["index.json"] = [503, "..."]
    with pytest.raises(UserError, match="cannot be looked up after 3 tries: the store answered 503"):
        exists(f"{server.url}/train/index.json", PATIENT)


def test_secrets_of_a_url_stay_out_of_errors(server: FaultServer, pauses: list[float]):
    for name in ("missing", "train/index.json"):
        server.faults["index.json"] = [503, "..."]
        address = server.url.replace("//", "//me:hidden@")
        with pytest.raises(UserError) as raised:
            get_bytes(f"{address}/{name}?token=hidden", PATIENT)
        assert "hidden" not in str(raised.value) and "me:" not in str(raised.value)


def test_an_unknown_protocol_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="nowhere://x: is not the address of a store"):
        get_bytes("nowhere://x", QUICK_ONCE)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://bucket/x: the package for gs:// is missing; .*'moe-dist\[gcs\]'"):
        get_bytes("gs://bucket/x", QUICK_ONCE)


def test_http_is_not_written_to(tmp_path: Path):
    with pytest.raises(UserError, match="http://host/x: cannot be written over http"):
        put_file(tmp_path, "http://host/x")


def test_files_are_put_listed_and_got_in_any_store_of_fsspec(tmp_path: Path):
    (tmp_path / "one").write_bytes(b"1")
    assert list_names("memory://set/train") == []
    for name in ("train/b.tar", "train/a.tar", "train/deeper/c.tar"):
        put_file(tmp_path / "one", join("memory://set", name))
    assert list_names("memory://set/train") == ["a.tar", "b.tar"]
    assert get_bytes("memory://set/train/a.tar") == b"1"
    assert exists("memory://set/train/a.tar") and not exists("memory://set/train/c.tar")


def test_a_file_system_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: Path):
    """Also one of blocking calls, which cannot be interrupted."""
    released = threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *arguments, **options: released.wait())
    with pytest.raises(UserError, match=r"memory://x: cannot be fetched: the store was silent for 0\.4 s"):
        get_file("memory://x", tmp_path / "x", QUICK_ONCE)
    released.set()


def test_slow_is_not_silent(tmp_path: Path, pauses: list[float]):
    """Four blocks with pauses between them, together longer than the timeout; who waits looks after each of them."""
    now, looks = [0.0], threading.Semaphore(0)

    def trickle(system: MemoryFileSystem, remote: str, local: str, callback, **options) -> None:
        for _ in range(4):
            now[0] += 0.4
            callback.relative_update(1)
            while looks.acquire(blocking=False):
                pass
            looks.acquire()  # this look may have begun before
            looks.acquire()
        Path(local).write_bytes(b"slow")

    def look(futures: list[Future], seconds: float) -> None:
        wait(futures, 0.01)
        looks.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", trickle)
        patch.setattr(transfer, "monotonic", lambda: now[0])
        patch.setattr(transfer, "wait", look)
        get_file("memory://x", tmp_path / "x", RemoteConfig(timeout_seconds=1.2, retries=0))
    assert (tmp_path / "x").read_bytes() == b"slow"


def test_a_full_disk_is_no_fault_of_the_store(monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: Path):
    def full(*arguments, **options) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(UserError, match=r"the disk is full; free space, or lower data.remote.cache_gib"):
        get_file("memory://x", tmp_path / "x", PATIENT)
    assert pauses == []


def test_index_and_rows_of_different_builds_are_refused(server: FaultServer, shards: Path, tmp_path: Path):
    rows = read_index(shards / "train").rows.copy()
    rows["label"][3] = (rows["label"][3] + 1) % 3
    np.save(shards / "train/index.npy", rows)
    with pytest.raises(UserError, match=r"/train: index.npy does not belong to index.json"):
        ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "../../index.tar"), ("name", "/etc/passwd.tar"), ("sha256", "../../../home"), ("bytes", -1)],
)
def test_an_index_that_leads_elsewhere_is_refused(
    server: FaultServer, shards: Path, tmp_path: Path, field: str, value: str | int
):
    path = shards / "train/index.json"
    content = json.loads(path.read_text())
    content["shards"][1][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the index cannot be read"):
        ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")


def test_a_missing_index_is_named(server: FaultServer, tmp_path: Path):
    with pytest.raises(UserError, match=rf"{server.url}/nowhere/index.json: cannot be fetched: there is no such file"):
        ShardSet.open(f"{server.url}/nowhere", PATIENT, tmp_path / "copies")


def test_a_copy_that_rots_is_fetched_anew(server: FaultServer, shards: Path, tmp_path: Path):
    stored = ShardSet.open(f"{server.url}/train", PATIENT, tmp_path / "copies")
    good = stored.read(12)
    (copy,) = (tmp_path / "copies").glob("*.tar")
    copy.write_bytes(copy.read_bytes().replace(good, bytes(len(good))))
    assert stored.read(12) == good
    assert server.asked.count(SHARD) == 2


def test_the_copies_used_longest_ago_make_room(server: FaultServer, tmp_path: Path):
    first, second, third, fourth = objects(server, [400, 400, 400, 500])
    cache = small_cache(tmp_path / "copies", 1200)
    for shard in (first, second, third, first):  # first is used again, so second is the oldest
        cache.open(shard, f"{server.url}/{shard.name}").close()
        time.sleep(0.01)  # times of use are told apart
    assert server.asked == [first.name, second.name, third.name]
    cache.open(fourth, f"{server.url}/{fourth.name}")
    assert copies(cache.folder) == {first.sha256, fourth.sha256}, "500 + 400 + 400 would be too much: two went"


def test_a_copy_that_is_open_survives_its_removal(server: FaultServer, tmp_path: Path):
    first, second = objects(server, [400, 700])
    cache = small_cache(tmp_path / "copies", 1000)
    held = cache.open(first, f"{server.url}/{first.name}")
    cache.open(second, f"{server.url}/{second.name}")
    assert copies(cache.folder) == {second.sha256}
    assert os.pread(held.fileno(), 400, 0) == b"\0" * 400


def test_files_of_others_stay(server: FaultServer, tmp_path: Path):
    first, second = objects(server, [400, 700])
    cache = small_cache(tmp_path / "copies", 1000)
    cache.folder.mkdir()
    foreign = ["notes.txt", "train-000000.tar", "0" * 64 + ".tar", "0" * 64 + ".tar.lock", "x-1.part"]
    for name in foreign:
        (cache.folder / name).write_bytes(b"x" * 900)
    for shard in (first, second):
        cache.open(shard, f"{server.url}/{shard.name}")
    assert all((cache.folder / name).stat().st_size == 900 for name in foreign)
    assert copies(cache.folder) == {second.sha256, "0" * 64, "train-000000"}


def test_what_a_killed_process_left_is_removed(server: FaultServer, tmp_path: Path):
    (shard,) = objects(server, [600])
    cache = small_cache(tmp_path / "copies", 1000)
    cache.folder.mkdir()
    for name in ("a" * 64 + "-800.part", f"{shard.sha256}-600.part"):
        (cache.folder / name).write_bytes(b"half")
    cache.open(shard, f"{server.url}/{shard.name}")
    assert sorted(path.suffix for path in cache.folder.iterdir() if path.suffix != ".lock") == [".tar"]


def test_room_for_what_others_fetch_is_kept(server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The second fetch waits for the first to end, then removes its copy: 700 + 600 bytes are never there at once."""
    first, second = objects(server, [700, 600])
    cache, other = (small_cache(tmp_path / "copies", 1000) for _ in range(2))
    cache.remote = PATIENT
    between_tries, go_on = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        between_tries.set()
        go_on.wait()

    monkeypatch.setattr("moe_dist.data.storage.store.sleep", pause)
    server.faults[first.name] = ["half"]
    fetching = threading.Thread(target=cache.open, args=(first, f"{server.url}/{first.name}"))
    fetching.start()
    between_tries.wait()
    waiting = threading.Thread(target=other.open, args=(second, f"{server.url}/{second.name}"))
    waiting.start()
    waiting.join(0.3)
    assert second.name not in server.asked
    go_on.set()
    fetching.join()
    waiting.join()
    assert copies(cache.folder) == {second.sha256}


def test_a_shard_larger_than_the_cache_is_refused_when_opened(server: FaultServer, tmp_path: Path):
    with pytest.raises(UserError, match=r"train-000000.tar: has .* GiB, more than data.remote.cache_gib = 1e-06;"):
        ShardSet.open(f"{server.url}/train", RemoteConfig(cache_gib=1e-6), tmp_path / "copies")


def test_a_window_larger_than_the_cache_is_refused(server: FaultServer, shards: Path, tmp_path: Path):
    """Room for the two largest of three shards."""
    *_, second, largest = sorted(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    remote = RemoteConfig(cache_gib=(largest + second) / 2**30)
    stored = ShardSet.open(f"{server.url}/train", remote, tmp_path / "copies")
    stored.require_room(window_shards=2)
    for window_shards in (0, 3):
        with pytest.raises(UserError, match=r"raise data.remote.cache_gib \(it is .*\), or set data.window_shards=2"):
            stored.require_room(window_shards)


def test_a_job_reads_its_splits_from_a_url(server: FaultServer, image_folder: Path, shards: Path, tmp_path: Path):
    """The same splits, images and digest as from the folder."""
    local = DataConfig(dataset="image_folder", shards=str(shards), image_size=8, val_fraction=0.25)
    stored = local.model_copy(update={"shards": server.url, "remote": RemoteConfig(timeout_seconds=30, retries=0)})
    expected, opened = (built_data(config, 0, tmp_path / "cache") for config in (local, stored))
    assert opened.split_digest == expected.split_digest
    np.testing.assert_array_equal(opened.val_samples, expected.val_samples)
    shutil.rmtree(tmp_path / "cache/decoded")
    images = built_data(stored, 0, tmp_path / "cache").test.images
    np.testing.assert_array_equal(images.uint8(np.arange(9)), expected.test.images.uint8(np.arange(9)))


def test_nothing_is_built_to_an_address_without_shards(server: FaultServer, tmp_path: Path):
    config = DataConfig(dataset="digits", shards=f"{server.url}/digts", remote=PATIENT)
    with pytest.raises(UserError, match=r"/digts: holds no whole shards; check the address, or build them with `moe-"):
        built_data(config, 0, tmp_path)


def test_a_small_cache_serves_an_epoch_of_windows(server: FaultServer, shards: Path, tmp_path: Path):
    """Room for one shard at a time, shards one after another: each is fetched once, and no removed one is kept open."""
    largest = max(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    remote = RemoteConfig(cache_gib=largest / 2**30, timeout_seconds=30, retries=0)
    stored = ShardSet.open(f"{server.url}/train", remote, tmp_path / "copies")
    local = ShardSet.open(shards / "train")
    assert [stored.read(sample) for sample in range(24)] == [local.read(sample) for sample in range(24)]
    assert sum(name.endswith(".tar") for name in server.asked) == 3
    assert len(stored._files) == 1


def read_all(url: str, cache: Path, barrier) -> None:
    barrier.wait()
    stored = ShardSet.open(url, RemoteConfig(timeout_seconds=30, retries=0), cache)
    for sample in range(len(stored)):
        stored.read(sample)


def test_two_processes_fetch_a_shard_once(server: FaultServer, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    arguments = (f"{server.url}/train", tmp_path / "copies", barrier)
    processes = [context.Process(target=read_all, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(name for name in server.asked if name.endswith(".tar")) == [
        f"train-00000{number}.tar" for number in range(3)
    ]


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_an_epoch_streams_from_a_url(server: FaultServer, shards: Path, tmp_path: Path, loader_workers: int):
    """The batches are those of the folder, also where the processes of a loader fetch."""
    config = DataConfig(image_size=8, loader_workers=loader_workers, window_shards=1)

    def batches(opened: ShardSet) -> list[np.ndarray]:
        training_set = TrainingSet(np.arange(24), opened.labels)
        images = EncodedImages(opened, 8, crop_roi=False)
        stream = Stream(images, training_set, config, seed=0, global_batch=5, rank=0, ranks=1, shard_of=opened.shard_of)
        return [batch.images.numpy() for batch in stream.epoch()]

    stored = ShardSet.open(f"{server.url}/train", RemoteConfig(timeout_seconds=30, retries=0), tmp_path / "copies")
    pairs = list(zip(batches(stored), batches(ShardSet.open(shards / "train")), strict=True))
    assert len(pairs) == 5
    for ours, expected in pairs:
        np.testing.assert_array_equal(ours, expected)


def test_a_place_here_that_cannot_be_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without permission, or a share whose server is gone: `is_file` raises for these."""

    def refusing(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refusing)
    (tmp_path / "index.json").touch()
    with pytest.raises(UserError, match=r"index.json: cannot be looked up \(Permission denied\); make it readable"):
        exists(tmp_path / "index.json")
    with pytest.raises(UserError, match=r"cannot be looked up \(Permission denied\)"):
        list_names(tmp_path)
