"""Every fault a shard can have is found, and named by shard, key and reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fault_server import serving
from pictures import encode, gradient, write_tar

from moe_dist.data.shards.index import read_index, rows_digest
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.scan import scan_shard
from moe_dist.errors import UserError

PNG = encode(gradient(8, 9), "PNG")
JPEG = encode(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8), "JPEG")
GOOD = [("00/a.cls", b"1"), ("00/a.png", PNG)]


def problems_of(path: Path) -> list[str]:
    return scan_shard(path, 0, classes=3).problems


def test_a_good_shard_has_no_problem_and_all_its_samples(tmp_path: Path):
    region = ("c.json", json.dumps({"group": 7, "roi": [0, 1, 9, 8]}).encode())
    others = [("b.jpg", JPEG), ("b.cls", b"0"), ("c.cls", b"2"), region, ("c.png", PNG)]
    shard = write_tar(tmp_path / "s.tar", [*GOOD, *others])
    scan = scan_shard(shard, 5, classes=3)
    assert scan.problems == []
    assert scan.keys == ["00/a", "b", "c"]
    assert scan.rows["label"].tolist() == [1, 0, 2]
    assert scan.rows["shard"].tolist() == [5, 5, 5]
    assert scan.rows["group"].tolist() == [-1, -1, 7]
    assert scan.rows["roi"].tolist() == [[-1] * 4, [-1] * 4, [0, 1, 9, 8]]
    content = shard.read_bytes()
    found = [content[offset : offset + length] for offset, length in scan.rows[["offset", "length"]].tolist()]
    assert found == [PNG, JPEG, PNG]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("b.cls", b"0"), ("b.jpg", JPEG[:-40])], "b: Premature end of JPEG file"),
        ([("b.cls", b"0"), ("b.png", b"GIF89a")], "b: not a JPEG, PNG or PPM image, but GIF: convert it"),
        ([("b.cls", b"3"), ("b.png", PNG)], "b: label 3 is outside 0 to 2"),
        ([("b.cls", b"-1"), ("b.png", PNG)], "b: label -1 is outside 0 to 2"),
        ([("b.cls", b"-1"), ("b.json", b'{"unlabelled": false}'), ("b.png", PNG)], "b: label -1 is outside 0 to 2"),
        (
            [("b.cls", b"-1"), ("b.json", b'{"unlabelled": 1}'), ("b.png", PNG)],
            "b: name '' is not a word, or unlabelled 1 not true",
        ),
        ([("b.cls", b"two"), ("b.png", PNG)], "b: label b'two' is not a whole number"),
        ([("b.cls", b"0")], "b: no image beside .cls"),
        ([("b.png", PNG)], "b: no label (.cls) beside the image"),
        ([("b.cls", b"0"), ("b.png", PNG), ("b.jpg", JPEG)], "b: a member occurs twice"),
        ([("b.cls", b"0"), ("b.cls", b"1"), ("b.png", PNG)], "b: a member occurs twice"),
        ([("b.cls", b"0"), ("b.png", PNG), *GOOD], "00/a: the key occurs twice"),
        ([("b.c.png", PNG)], "b.c.png: not a member name of a shard"),
        ([("../b.png", PNG)], "../b.png: not a member name of a shard"),
        ([("b.pkl", b"x")], "b.pkl: not a member name of a shard"),
        (
            [("b.cls", b"0"), ("b.json", b'{"roi": [0, 0, 10, 8]}'), ("b.png", PNG)],
            "b: region 0,0,10,8 does not lie in the image of 9 x 8 pixels",
        ),
        (
            [("b.cls", b"0"), ("b.json", b'{"mask": 1}'), ("b.png", PNG)],
            "b: .json may hold only group, name, roi, unlabelled",
        ),
        (
            [("b.cls", b"0"), ("b.json", b'{"roi": [1]}'), ("b.png", PNG)],
            "b: region [1] is not four whole numbers",
        ),
        ([("b.cls", b"0"), ("b.json", b'{"group": "x"}'), ("b.png", PNG)], "b: group 'x' is not a whole number"),
    ],
)
def test_a_bad_sample_is_named_and_the_good_one_kept(tmp_path: Path, members: list[tuple[str, bytes]], problem: str):
    scan = scan_shard(write_tar(tmp_path / "s.tar", [*GOOD, *members]), 0, classes=3)
    assert problem in scan.problems
    assert scan.keys[0] == "00/a"


def test_every_problem_of_a_shard_is_named(tmp_path: Path):
    shard = write_tar(tmp_path / "s.tar", [("a.cls", b"9"), ("a.png", PNG), *GOOD, ("c.cls", b"0"), ("x y", b"")])
    assert problems_of(shard) == [
        "a: label 9 is outside 0 to 2",
        "x y: not a member name of a shard",
        "c: no image beside .cls",
    ]


def test_an_empty_shard_is_a_problem(tmp_path: Path):
    assert problems_of(write_tar(tmp_path / "s.tar", [])) == ["the shard is empty"]


@pytest.mark.parametrize("kept_blocks", [1, 2, 3, 4])
def test_a_shard_cut_at_any_block_is_a_problem(tmp_path: Path, kept_blocks: int):
    """Blocks of 512 bytes: header and text of a.cls, header and pixels of a.png, then the zeros that end a tar."""
    shard = write_tar(tmp_path / "s.tar", GOOD)
    shard.write_bytes(shard.read_bytes()[: 512 * kept_blocks])
    assert any("cut short" in problem or "damaged" in problem for problem in problems_of(shard))


def test_a_damaged_header_between_samples_does_not_end_the_shard_in_silence(tmp_path: Path):
    shard = write_tar(tmp_path / "s.tar", [*GOOD, ("b.cls", b"0"), ("b.png", PNG)])
    content = bytearray(shard.read_bytes())
    header = content.index(b"b.cls")
    content[header + 100] ^= 1
    shard.write_bytes(content)
    assert problems_of(shard) == [
        f"damaged after byte {header}: a member's header cannot be read; download or pack it again"
    ]


def test_whole_shards_have_no_problems(shards: Path):
    assert check_shards(shards) == []
    assert check_shards(shards / "train") == []


def test_a_changed_shard_is_found_by_its_digest(shards: Path):
    path = shards / "train/train-000002.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"bigdata", b"BIGDATA"))  # in headers alone: every image is as it was
    problems = check_shards(shards)
    assert "train/train-000002.tar: changed since it was indexed (its sha256 is another)" in problems


def test_missing_unlisted_and_unindexed_shards_are_found(shards: Path):
    shutil.copy(shards / "train/train-000001.tar", shards / "train/train-000009.tar")
    (shards / "train/train-000001.tar").unlink()
    (shards / "test/index.json").unlink()
    problems = check_shards(shards)
    assert problems[:2] == [
        "train/train-000009.tar: not in the index",
        "train/train-000001.tar: the shard is missing",
    ]
    assert "no index.json" in problems[2] and len(problems) == 3


def test_a_web_server_without_listings_is_checked_by_what_the_index_names(shards: Path):
    with serving(shards) as server:
        assert check_shards(server.url) == [] and check_shards(f"{server.url}/train") == []
        (shards / "train/train-000001.tar").unlink()
        assert check_shards(server.url) == ["train/train-000001.tar: the shard is missing"]


def test_a_key_of_two_shards_is_found(shards: Path):
    """The second shard is replaced by a copy of the first, and the index made to agree with it."""
    folder = shards / "train"
    shutil.copy(folder / "train-000000.tar", folder / "train-000001.tar")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1] = {**index["shards"][0], "name": "train-000001.tar"}
    rows = read_index(folder).rows.copy()
    rows[10:20] = rows[:10]
    rows["shard"][10:20] = 1
    np.save(folder / "index.npy", rows)
    (folder / "index.json").write_text(json.dumps({**index, "rows_sha256": rows_digest(rows)}))
    problems = check_shards(folder)
    assert len(problems) == 10
    assert all("the key is also in train-000000.tar" in problem for problem in problems)


def test_rows_that_point_elsewhere_are_found(shards: Path):
    folder = shards / "train"
    rows = read_index(folder).rows.copy()
    rows["label"][4] = (rows["label"][4] + 1) % 3
    index = json.loads((folder / "index.json").read_text())
    np.save(folder / "index.npy", rows)
    (folder / "index.json").write_text(json.dumps({**index, "rows_sha256": rows_digest(rows)}))
    assert check_shards(folder) == ["train/train-000000.tar: its samples are not those of the index"]


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder of shards"):
        check_shards(tmp_path / "nowhere")
