"""A build gives the same bytes broken off, killed, by several workers and to a URL; what is not its own stays."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from listed import picture
from pictures import write_image_folder

from moe_dist.data.longtail import LongTail
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.build.destination import FolderDestination, StoreDestination
from moe_dist.data.shards.index import Index, Shrink
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig, RemoteConfig

STORE = RemoteConfig(retries=0, timeout_seconds=20)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(one: Path, other: Path) -> None:
    """Assert equal files, without pytest's comparison of megabytes."""
    ours, theirs = files(one), files(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


class Broken(Exception):
    """Stands for whatever ends a build that is not the source's fault."""


def break_off(source: Path, out: Path, after: int, **options: Any) -> None:
    """Build until `after` samples of the training split are written."""

    def stop(split: str, done: int, total: int) -> None:
        if done == after:
            raise Broken

    with pytest.raises(Broken):
        build_shards("image_folder", source, out, on_progress=stop, **options)


def test_a_build_that_was_broken_off_keeps_what_it_had_and_ends_the_same(
    image_folder: Path, shards: Path, tmp_path: Path
):
    out = tmp_path / "again"
    break_off(image_folder, out, after=13, samples_per_shard=10)
    assert not out.exists()
    finished = tmp_path / ".again.building/shards/train/train-000000.tar"
    inode = finished.stat().st_ino
    assert sorted(path.name for path in finished.parent.iterdir()) == ["train-000000.tar"]
    calls: list[tuple[str, int, int]] = []
    build_shards("image_folder", image_folder, out, samples_per_shard=10, on_progress=lambda *call: calls.append(call))
    assert (out / "train/train-000000.tar").stat().st_ino == inode
    assert calls[:2] == [("train", 10, 24), ("train", 11, 24)]
    assert_same(out, shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "pictures", "shards"]


def test_a_finished_shard_that_was_damaged_since_is_written_again(image_folder: Path, shards: Path, tmp_path: Path):
    out = tmp_path / "again"
    break_off(image_folder, out, after=13, samples_per_shard=10)
    finished = tmp_path / ".again.building/shards/train/train-000000.tar"
    content = bytearray(finished.read_bytes())
    content[700] ^= 1
    finished.write_bytes(content)
    build_shards("image_folder", image_folder, out, samples_per_shard=10)
    assert_same(out, shards)


def test_shards_that_are_whole_are_left_alone(image_folder: Path, shards: Path):
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    indexes = build_shards("image_folder", image_folder, shards, samples_per_shard=10)
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before
    assert {split: len(index.rows) for split, index in indexes.items()} == {"train": 24, "test": 9}


def test_a_build_of_other_settings_is_not_gone_on_with(image_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    break_off(image_folder, out, after=13, samples_per_shard=10)
    with pytest.raises(UserError, match=r"\.out\.building: .*samples_per_shard 10, not 4.*remove it"):
        build_shards("image_folder", image_folder, out, samples_per_shard=4)
    with pytest.raises(UserError, match="long_tail none, not imbalance 4 choice first seed 0"):
        build_shards("image_folder", image_folder, out, samples_per_shard=10, long_tail=LongTail(4))
    (image_folder / "train/ant/new.png").write_bytes(picture())
    with pytest.raises(UserError, match=r"source [0-9a-f]{12}, not [0-9a-f]{12}"):
        build_shards("image_folder", image_folder, out, samples_per_shard=10)


def test_two_builds_do_not_write_to_one_folder(image_folder: Path, tmp_path: Path):
    import fcntl

    work = tmp_path / ".out.building"
    (work / "shards").mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process builds these shards"):
            build_shards("image_folder", image_folder, tmp_path / "out")


def meanwhile(monkeypatch: pytest.MonkeyPatch, kind: type, build: Callable[[], object]) -> None:
    """Let another process build just after a build has seen that its place, a destination of `kind`, is free."""
    look = kind.in_use

    def look_then_build(self: Any) -> bool:
        seen = look(self)
        monkeypatch.setattr(kind, "in_use", look)
        build()
        return seen

    monkeypatch.setattr(kind, "in_use", look_then_build)


@pytest.mark.parametrize("store", [False, True], ids=["folder", "url"])
def test_a_build_that_another_overtook_leaves_its_shards_alone(
    image_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: bool
):
    """Of another plan: it is refused. Of the same plan: it has nothing to do."""
    out = tmp_path / "store/set"
    place = f"file://{out}" if store else str(out)
    calls: list[tuple[str, int, int]] = []

    def build(samples_per_shard: int, on_progress: Any = None) -> dict[str, Index]:
        options: dict[str, Any] = {"cache": tmp_path / "cache", "remote": STORE, "on_progress": on_progress}
        return build_shards("image_folder", image_folder, place, samples_per_shard=samples_per_shard, **options)

    for samples_per_shard in (4, 10):
        meanwhile(monkeypatch, StoreDestination if store else FolderDestination, lambda: build(10))
        if samples_per_shard == 4:
            with pytest.raises(UserError, match="already holds something"):
                build(4, lambda *call: calls.append(call))
            assert_same(out, shards)
            shutil.rmtree(out)
        else:
            indexes = build(10, lambda *call: calls.append(call))
            assert {split: len(index.rows) for split, index in indexes.items()} == {"train": 24, "test": 9}
            assert_same(out, shards)
    assert calls == []
    left = tmp_path / "cache/building" if store else tmp_path / "store"
    assert [path.name for path in left.iterdir()] == ([] if store else ["set"])


def test_what_was_begun_stays_where_the_place_was_taken_meanwhile(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    break_off(image_folder, out, after=13, samples_per_shard=10)
    meanwhile(monkeypatch, FolderDestination, lambda: write_image_folder(out))
    with pytest.raises(UserError, match="already holds something"):
        build_shards("image_folder", image_folder, out, samples_per_shard=10)
    assert (tmp_path / ".out.building/shards/train/train-000000.tar").is_file()


def test_what_a_build_killed_at_its_very_end_left_is_removed(image_folder: Path, shards: Path, tmp_path: Path):
    (tmp_path / ".shards.building/records/train").mkdir(parents=True)
    (tmp_path / ".shards.building/lock").touch()
    build_shards("image_folder", image_folder, shards, samples_per_shard=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "shards"]


def test_a_job_takes_shards_that_were_built_with_other_settings_meanwhile(
    image_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = DataConfig(dataset="image_folder", source=image_folder, shards=str(tmp_path / "mine"))
    meanwhile(monkeypatch, FolderDestination, lambda: shutil.copytree(shards, tmp_path / "mine"))
    assert ensure_shards(config, tmp_path / "cache") == str(tmp_path / "mine")
    assert_same(tmp_path / "mine", shards)


def test_a_full_disk_keeps_what_is_done(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Any, name: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderDestination, "new_file", full)
        with pytest.raises(UserError, match=r"No space left on device.*it goes on where it stood"):
            build_shards("image_folder", image_folder, tmp_path / "out")
    assert (tmp_path / ".out.building/shards/plan.json").is_file()
    build_shards("image_folder", image_folder, tmp_path / "out")
    assert check_shards(tmp_path / "out") == []


def build_almost(source: Path, out: Path, at: int) -> None:
    """Build, but no further than to a few shards more than `at`."""

    def hold(split: str, done: int, total: int) -> None:
        if shards_in(out.with_name(f".{out.name}.building")) >= at + 5:
            threading.Event().wait()

    build_shards("image_folder", source, out, on_progress=hold, samples_per_shard=5)


def shards_in(work: Path) -> int:
    return len(list(work.rglob("*-*.tar")))


@pytest.mark.chaos
def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path):
    source = write_image_folder(tmp_path / "pictures", train=60, test=20)
    build_shards("image_folder", source, tmp_path / "unbroken", samples_per_shard=5)  # 36 shards and 12
    out, work = tmp_path / "out", tmp_path / ".out.building"
    fork = multiprocessing.get_context("fork")  # torch is imported already
    kills, draw = 0, random.Random(7)
    for at in sorted(draw.sample(range(2, 40), 3)):
        process = fork.Process(target=build_almost, args=(source, out, at), daemon=True)
        process.start()
        while process.is_alive() and shards_in(work) < at:
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert not out.exists() or check_shards(out) == []
    assert kills == 3
    build_shards("image_folder", source, out, samples_per_shard=5)
    assert_same(out, tmp_path / "unbroken")


@pytest.fixture(scope="module")
def small_ray() -> Iterator[Any]:
    """A Ray of two CPUs that was there before any build."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_two_workers_give_the_bytes_of_one(image_folder: Path, shards: Path, tmp_path: Path, small_ray: Any):
    calls: list[tuple[str, int, int]] = []
    out = tmp_path / "again"
    break_off(image_folder, out, after=13, samples_per_shard=10)
    build_shards(
        "image_folder",
        image_folder,
        out,
        samples_per_shard=10,
        workers=2,
        on_progress=lambda *call: calls.append(call),
    )
    assert_same(out, shards)
    done = [("train", number, 24) for number in (10, 20, 24)], [("train", number, 24) for number in (10, 14, 24)]
    assert calls[:3] in done, "the second shard of 10 or the third of 4 came first"
    assert calls[3:] == [("test", 0, 9), ("test", 9, 9)]
    assert small_ray.is_initialized()


def test_a_bad_sample_met_by_a_task_is_one_sentence(image_folder: Path, tmp_path: Path, small_ray: Any):
    (image_folder / "train/bee/cut.png").write_bytes(picture()[:60])
    with pytest.raises(UserError, match=r"train/bee/cut.png: damaged image") as refused:
        build_shards("image_folder", image_folder, tmp_path / "out", samples_per_shard=2, workers=2)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.slow
def test_a_ray_that_a_build_started_is_gone_after_it(image_folder: Path, shards: Path, tmp_path: Path):
    ray = pytest.importorskip("ray")
    ray.shutdown()
    build_shards("image_folder", image_folder, tmp_path / "again", samples_per_shard=10, workers=2)
    assert_same(tmp_path / "again", shards)
    assert not ray.is_initialized()


def build_to_url(source: Path, url: str, cache: Path, **options: Any) -> None:
    build_shards("image_folder", source, url, samples_per_shard=10, cache=cache, remote=STORE, **options)


def test_a_url_gets_the_bytes_that_a_folder_gets(image_folder: Path, shards: Path, tmp_path: Path):
    store = tmp_path / "store"
    build_to_url(image_folder, f"file://{store}/set", tmp_path / "cache")
    assert_same(store / "set", shards)
    assert list((tmp_path / "cache/building").iterdir()) == []


def test_a_build_to_a_store_that_fails_goes_on_with_what_is_there(
    image_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from moe_dist.data.shards.build import destination

    url, cache, put = f"file://{tmp_path}/store/set", tmp_path / "cache", destination.put_file
    tried: list[str] = []

    def failing(local: Path, url: str, remote: RemoteConfig) -> None:
        tried.append(url.rpartition("/")[2])
        if len(tried) == 3:
            raise UserError("the store answered 503")
        put(local, url, remote)

    monkeypatch.setattr(destination, "put_file", failing)
    with pytest.raises(UserError, match=r"the store answered 503.*it goes on where it stood"):
        build_to_url(image_folder, url, cache)
    assert tried == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    build_to_url(image_folder, url, cache)
    assert tried[3:5] == ["train-000002.tar", "test-000000.tar"] and tried[-1] == "index.json"
    assert_same(tmp_path / "store/set", shards)
    build_to_url(image_folder, url, cache)  # whole: nothing is put again
    assert tried.count("index.json") == 2
    with pytest.raises(UserError, match="already holds something"):
        build_to_url(image_folder, url, cache, shrink=Shrink(8))


def test_shards_are_not_built_over_http(image_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written over http"):
        build_to_url(image_folder, "http://127.0.0.1:9/set", tmp_path)
