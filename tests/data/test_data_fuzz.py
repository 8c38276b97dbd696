"""Indexes, shards and images of any bytes: refused in words or read, never a crash, never unpickled."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode, gradient, write_image_folder, write_tar
from PIL import Image

from moe_dist.data.datasets.source import open_tree
from moe_dist.data.image.decode import decode, decode_resized, image_size
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.scan import Scan, scan_shard
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (20, 21, 3), np.uint8)
BLOCK = 512
often = settings(max_examples=150)


@pytest.fixture(scope="module", autouse=True)
def no_unpickling() -> Iterator[None]:
    """Whoever unpickles anything fails the test."""

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
            patch.setattr(pickle, name, forbidden)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def split(folder: Path) -> Path:
    """A split's folder of two shards; its index.json and index.npy are replaced by the tests."""
    source = write_image_folder(folder / "pictures")
    build_shards("image_folder", source, folder / "shards", samples_per_shard=16)
    return folder / "shards" / "train"


def pictures() -> list[bytes]:
    """A file of every format and layout that is read."""
    grey, palette, cmyk = gradient(9, 8)[..., 0], io.BytesIO(), io.BytesIO()
    Image.fromarray(NOISE).convert("P").save(palette, "PNG")
    Image.fromarray(NOISE).convert("CMYK").save(cmyk, "JPEG")
    plain = [encode(NOISE, kind) for kind in ("PNG", "JPEG", "PPM")]
    return [*plain, encode(grey, "PNG"), encode(grey, "JPEG"), palette.getvalue(), cmyk.getvalue()]


def tars() -> list[bytes]:
    """A shard, and archives whose long names take extra headers in both dialects."""
    png = encode(NOISE, "PNG")
    whole = io.BytesIO()
    members = [("a.cls", b"1"), ("a.json", b'{"group": 3, "roi": [0, 0, 5, 5]}'), ("a.png", png)]
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [*members, ("b/c.jpg", encode(NOISE, "JPEG")), ("b/c.cls", b"0")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    archives = [whole.getvalue()]
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        other = io.BytesIO()
        with tarfile.open(fileobj=other, mode="w", format=dialect) as tar:
            info = tarfile.TarInfo("x" * 120 + ".png")
            info.size = len(png)
            tar.addfile(info, io.BytesIO(png))
        archives.append(other.getvalue())
    return archives


@st.composite
def damaged(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """One of `wholes` with a few bytes changed, dropped or put in, or its end cut off."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "drop", "put in", "cut off"]))
        if kind == "change":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 20))]
        elif kind == "put in":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del data[place:]
    return bytes(data)


@st.composite
def tars_of_strange_headers(draw: st.DrawFn) -> bytes:
    """An archive with bytes of its headers changed, and the headers' checksums put right again."""
    data = bytearray(draw(st.sampled_from(tars())))
    headers = [start for start in range(0, len(data), BLOCK) if data[start + 257 : start + 262] == b"ustar"]
    for _ in range(draw(st.integers(1, 4))):
        header = draw(st.sampled_from(headers))
        place = draw(st.one_of(st.integers(0, 499), st.integers(124, 135), st.just(156)))  # sizes and kinds most of all
        data[header + place] = draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b"01234567xgLKSVD\x80\xff"))))
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + BLOCK])
    return bytes(data)


@pytest.mark.parametrize("read", [decode, lambda data: decode_resized(data, 8), image_size])
@often
@given(st.one_of(damaged(pictures()), st.binary(max_size=60)))
def test_an_image_of_any_bytes_is_decoded_or_a_value_error(read: Callable[[bytes], Any], data: bytes):
    try:
        assert len(read(data)) > 0
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_an_image_that_claims_to_be_huge_is_refused_before_memory_is_taken(kind: str):
    import struct
    import zlib

    data, huge = bytearray(encode(gradient(9, 8), kind)), 60_000
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", huge, huge)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", huge, huge)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    else:
        data = bytearray(b"P6\n60000 60000\n255\n" + bytes(100))
    with pytest.raises(ValueError, match="exceeds limit"):
        decode_resized(bytes(data), 32)


def problems(folder: Path, data: bytes) -> Scan:
    (folder / "fuzzed.tar").write_bytes(data)
    return scan_shard(folder / "fuzzed.tar", 0, classes=3)


@often
@given(data=st.one_of(damaged(tars()), tars_of_strange_headers(), st.binary(max_size=1200)))
def test_a_shard_of_any_bytes_is_scanned_and_what_is_found_lies_inside_it(folder: Path, data: bytes):
    rows = problems(folder, data).rows
    assert ((rows["label"] >= 0) & (rows["label"] < 3) & (rows["offset"] >= 0) & (rows["length"] > 0)).all()
    assert (rows["offset"] + rows["length"] <= len(data)).all()


@often
@given(data=st.one_of(damaged(tars()), tars_of_strange_headers(), st.binary(max_size=1200)))
def test_a_source_tar_of_any_bytes_is_read_or_a_user_error(folder: Path, data: bytes):
    (folder / "source.tar").write_bytes(data)
    try:
        tree = open_tree(folder / "source.tar")
    except UserError as error:
        assert "source.tar" in str(error)
    else:
        assert all(len(tree.read(path)) <= len(data) for path in tree.files)


def test_sizes_that_no_file_has_and_nesting_without_end_are_problems(folder: Path):
    """A negative size would lead back to members that were read, one of 2^62 asks for as much memory."""
    for size in (b"\xff" * 12, b"\x80" + bytes(3) + b"\x40" + bytes(7)):
        for kind in b"0Lx":
            data = bytearray(tars()[0])
            data[124:136], data[156] = size, kind
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
            assert any("damaged" in problem or "cut short" in problem for problem in problems(folder, data).problems)
    deep = [("a.cls", b"1"), ("a.json", b"[" * 100_000), ("a.png", encode(NOISE, "PNG"))]
    assert problems(folder, write_tar(folder / "deep.tar", deep).read_bytes()).problems == [
        "a: .json is nested too deeply"
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**80) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def strange_fields(draw: st.DrawFn, content: Any) -> Any:
    """`content` with one value, however deep, replaced or left out."""
    if isinstance(content, dict | list) and content and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))))
        changed = content.copy()
        if draw(st.integers(0, 4)):
            changed[key] = draw(strange_fields(content[key]))
        else:
            del changed[key]
        return changed
    return draw(json_values)


def open_fuzzed(split: Path, name: str, data: bytes) -> ShardSet | None:
    """The split with the file `name` replaced by `data`; None where that is refused. The file is put back."""
    whole = (split / name).read_bytes()
    try:
        (split / name).write_bytes(data)
        return ShardSet.open(split)
    except UserError as error:
        assert str(split) in str(error)
        return None
    finally:
        (split / name).write_bytes(whole)


@often
@given(st.data())
def test_an_index_of_any_fields_is_read_or_a_user_error(split: Path, data: st.DataObject):
    content = json.loads((split / "index.json").read_text())
    changed = data.draw(strange_fields(content))
    opened = open_fuzzed(split, "index.json", json.dumps(changed).encode())
    if opened is not None:
        assert len(opened) == 24 and len(opened.read(23)) > 0


@often
@given(st.data())
def test_an_index_of_any_bytes_is_read_or_a_user_error(split: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(["index.json", "index.npy"]))
    changed = data.draw(st.one_of(damaged([(split / name).read_bytes()]), st.binary(max_size=100)))
    opened = open_fuzzed(split, name, changed)
    if opened is not None:
        assert len(opened) == 24 and len(opened.read(23)) > 0


def test_a_json_nested_without_end_is_refused(split: Path):
    assert open_fuzzed(split, "index.json", b'{"version": ' + b"[" * 100_000) is None


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_refused_wherever_they_lie(split: Path, folder: Path):
    trap = folder / "unpickled"
    rows = io.BytesIO()
    np.save(rows, np.array([Payload(trap)], object), allow_pickle=True)
    assert open_fuzzed(split, "index.npy", rows.getvalue()) is None
    assert open_fuzzed(split, "index.npy", pickle.dumps(Payload(trap))) is None
    members = [("a.cls", b"1"), ("a.pkl", pickle.dumps(Payload(trap))), ("a.png", encode(NOISE, "PNG"))]
    scan = problems(folder, write_tar(folder / "trap.tar", members).read_bytes())
    assert "a.pkl: not a member name of a shard" in scan.problems
    assert not trap.exists()
    with pytest.raises(AssertionError, match="something was unpickled"):
        np.load(io.BytesIO(rows.getvalue()), allow_pickle=True)  # the guard of this file holds
