"""Reading a shard from end to end: its rows for the index, and everything that is wrong with it.

Letters: n samples of a shard, H, W an image's height and width.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.image.crops import Region
from moe_dist.data.image.decode import EXTENSIONS, decode
from moe_dist.data.image.vectors import VECTOR, decode_vector, is_vector
from moe_dist.data.longtail import UNLABELLED
from moe_dist.data.shards.index import NO_REGION, ROW
from moe_dist.data.storage.tars import members

MEMBER_NAME = re.compile(r"(?P<key>(?:[A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+)\.(?P<kind>jpg|jpeg|png|ppm|npy|cls|json)")
"""The names of a shard's members. With a second dot WebDataset would see another key."""
_EXTRA_FIELDS = {"group", "name", "roi", "unlabelled"}


@dataclass
class Scan:
    """The content of a shard: the rows and keys of its good samples, images by extension, and `problems` in words."""

    samples: list[tuple[Any, ...]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    image_kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def rows(self) -> np.ndarray:
        """The samples as index rows [n] of ROW."""
        return np.array(self.samples, ROW)


@dataclass(frozen=True)
class _Part:
    """One member of a sample: `00012.png` is the part of kind png of key 00012."""

    key: str
    kind: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class _Extra:
    """What a sample's .json holds: group, region, the name users know it by, and whether it has no label."""

    group: int = -1
    region: Region | None = None
    name: str = ""
    unlabelled: bool = False


def scan_shard(path: Path, number: int, classes: int, decode_images: bool = True) -> Scan:
    """Read the shard at `path`, the `number`-th of a split of `classes` classes; problems name the sample's key.

    decode_images: False trusts images that were decoded when they were written.
    """
    scan = Scan()
    seen: set[str] = set()
    for key, parts in groupby(_parts(path, scan.problems), key=attrgetter("key")):
        if key in seen:
            scan.problems.append(f"{key}: the key occurs twice")
        seen.add(key)
        _take(list(parts), number, classes, decode_images, scan)
    if not seen:
        scan.problems.append("the shard is empty")
    return scan


def image_names(path: Path) -> dict[int, str]:
    """What users call the images of the shard at `path`, or else their keys, by the byte at which an image begins.

    Raises ValueError where a sample cannot be read.
    """
    names = {}
    for key, parts in groupby(_parts(path, []), key=attrgetter("key")):
        image, _, extra = _read_parts(list(parts))
        names[image.offset] = extra.name or key
    return names


def image_problem(data: bytes, region: Region | None = None) -> str | None:
    """The reason why an image, or a vector, cannot be used; None where it decodes and `region` lies inside it."""
    try:
        if is_vector(data):
            decode_vector(data)
            return None
        return region_problem(region, decode(data))
    except ValueError as error:
        return str(error)


def region_problem(region: Region | None, pixels: np.ndarray) -> str | None:
    """The reason why a region cannot be used; None where it lies inside the image `pixels` [H, W, 3]."""
    if region is None:
        return None
    x1, y1, x2, y2 = region
    height, width, _ = pixels.shape
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return None
    return f"region {x1},{y1},{x2},{y2} does not lie in the image of {width} x {height} pixels"


def label_problem(label: int, classes: int, unlabelled: bool = False) -> str | None:
    """The reason why a label cannot be used; None where it is the number of a class, or UNLABELLED and may be so."""
    return (
        None
        if 0 <= label < classes or (unlabelled and label == UNLABELLED)
        else f"label {label} is outside 0 to {classes - 1}"
    )


def _parts(path: Path, problems: list[str]) -> Iterator[_Part]:
    """The members of a shard as parts of samples. Unknown names and damage that ends the shard go to `problems`."""
    try:
        with path.open("rb") as file:
            for member in members(path):
                name = MEMBER_NAME.fullmatch(member.name)
                if name is None or member.is_folder or member.link:
                    problems.append(f"{member.name}: not a member name of a shard")
                    continue
                file.seek(member.offset)
                yield _Part(name["key"], name["kind"], member.offset, file.read(member.size))
    except ValueError as error:
        problems.append(str(error))


def _take(parts: list[_Part], number: int, classes: int, decode_images: bool, scan: Scan) -> None:
    """Add the sample that consists of `parts` to `scan`, or what is wrong with it."""
    key = parts[0].key
    try:
        image, label, extra = _read_parts(parts)
    except ValueError as error:
        scan.problems.append(f"{key}: {error}")
        return
    problem = label_problem(label, classes, extra.unlabelled)
    problem = problem or (image_problem(image.data, extra.region) if decode_images else None)
    if problem is not None:
        scan.problems.append(f"{key}: {problem}")
        return
    place = (image.offset, len(image.data), zlib.crc32(image.data))
    scan.samples.append((number, label, *place, extra.group, extra.region or NO_REGION))
    scan.keys.append(key)
    scan.image_kinds[image.kind] += 1


def _read_parts(parts: list[_Part]) -> tuple[_Part, int, _Extra]:
    """(image, label, .json) of a sample. Raises ValueError where a part is missing, doubled or unreadable."""
    by_kind = {part.kind: part for part in parts}
    images = [part for part in parts if part.kind in (*EXTENSIONS, VECTOR)]
    if len(by_kind) < len(parts) or len(images) > 1:
        raise ValueError("a member occurs twice")
    if not images:
        raise ValueError("no image beside " + ", ".join(f".{kind}" for kind in by_kind))
    if "cls" not in by_kind:
        raise ValueError("no label (.cls) beside the image")
    text = by_kind["cls"].data
    if not re.fullmatch(rb"-?\d{1,9}", text):
        raise ValueError(f"label {text[:20]!r} is not a whole number")
    return images[0], int(text), _read_extra(by_kind["json"].data) if "json" in by_kind else _Extra()


def _read_extra(data: bytes) -> _Extra:
    """The content of a sample's .json. Raises ValueError where it holds anything else."""
    try:
        extra = json.loads(data)
    except RecursionError:
        raise ValueError(".json is nested too deeply") from None
    if not isinstance(extra, dict) or not extra.keys() <= _EXTRA_FIELDS:
        raise ValueError(f".json may hold only {', '.join(sorted(_EXTRA_FIELDS))}")
    group, region, name = extra.get("group", -1), extra.get("roi"), extra.get("name", "")
    unlabelled = extra.get("unlabelled", False)
    if not isinstance(name, str) or not isinstance(unlabelled, bool):
        raise ValueError(f"name {name!r} is not a word, or unlabelled {unlabelled!r} not true")
    if type(group) is not int or not -1 <= group < 2**31:
        raise ValueError(f"group {group!r} is not a whole number")
    if region is None:
        return _Extra(group, None, name, unlabelled)
    if not (isinstance(region, list) and len(region) == 4 and all(type(side) is int for side in region)):
        raise ValueError(f"region {region!r} is not four whole numbers")
    x1, y1, x2, y2 = region
    return _Extra(group, (x1, y1, x2, y2), name, unlabelled)
