"""What is to be predicted: single images, folders and tars of them, tables of vectors; here, or under a URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from moe_dist.data.datasets.samples import is_image
from moe_dist.data.datasets.source import open_tree
from moe_dist.data.datasets.vectors import UNLABELLED, VectorContents, open_vectors
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.data.image.vectors import decode_vector
from moe_dist.data.storage.store import get_bytes, get_file, is_url, join, shown, walk
from moe_dist.errors import UserError
from moe_dist.use.preprocess import Preprocessing

TABLES = (".csv", ".npz", ".npy")
TARS = (".tar", ".tgz", ".gz", ".bz2", ".xz")
"""Compressed ones are refused with a sentence when they are opened."""
NAMED = 5
"""Folders that a notice names."""


class Source(Protocol):
    """Where samples come from. It can be pickled, so that workers can read it."""

    def read(self, key: Any) -> Any:
        """A sample as `Preprocessing.sample` takes it. Raises UserError or OSError where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: its name in the output, where it is read, and its class where a folder or table tells it."""

    name: str
    source: Source
    key: Any
    label: str | None = None

    def read(self) -> Any:
        """The sample, as `Preprocessing.sample` takes it."""
        return self.source.read(self.key)


@dataclass
class Inputs:
    """All samples, each name once; passed_over: the number of files that are no images by their name, by extension.

    notices: what the user should know, a sentence each.
    """

    items: list[Item] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    notices: list[str] = field(default_factory=list)


def open_inputs(
    places: Sequence[Path | str], preprocessing: Preprocessing, classes: Sequence[str], fetched: Path
) -> Inputs:
    """The samples of images, folders, tars and tables, in order, without those named twice.

    classes: the names of the training's classes; a folder whose subfolders are called so tells the class of its images.
    fetched: a folder for tars and tables that are under a URL; images there are read one by one.
    Raises UserError for a missing or damaged input, or one that the model does not take.
    """
    found = Inputs()
    for number, place in enumerate(places):
        suffix = PurePosixPath(urlsplit(str(place)).path if is_url(place) else place).suffix.lower()
        if not is_url(place) and not Path(place).exists():
            raise UserError(f"{place}: no such image, folder, tar or table")
        table = suffix in TABLES
        if table != bool(preprocessing.vector_size):
            raise UserError(f"{shown(place)}: {_takes(preprocessing)}")
        path = _here(place, fetched / f"{number}{suffix}") if suffix in TABLES + TARS else Path(str(place))
        if table:
            found.items += _rows(path, shown(place))
        elif suffix in TARS or (not is_url(place) and path.is_dir()):
            tree = open_tree(path)
            found.items += _images(tree.files, tree.reader, shown(place), classes, found)
        elif is_url(place) and suffix.removeprefix(".") not in EXTENSIONS:
            found.items += _images([*walk(str(place))], _Store(str(place)), shown(place), classes, found)
        else:
            found.items.append(Item(shown(place), _FILES, place if is_url(place) else path.absolute()))
    found.items = list({item.name: item for item in reversed(found.items)}.values())[::-1]
    if found.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.passed_over.most_common(5))
        total = found.passed_over.total()
        found.notices.append(f"{total} files passed over, which are not {', '.join(EXTENSIONS)} by their name: {kinds}")
    if not found.items:
        raise UserError(f"{', '.join(map(shown, places))}: no images there ({', '.join(EXTENSIONS)})")
    return found


def _here(place: Path | str, copy: Path) -> Path:
    """The file at `place` on this machine: a file under a URL is fetched to `copy`."""
    if not is_url(place):
        return Path(place)
    get_file(str(place), copy)
    return copy


def _takes(preprocessing: Preprocessing) -> str:
    """What the model takes, for a refusal."""
    if preprocessing.vector_size:
        return f"the model takes vectors of {preprocessing.vector_size} numbers; give a .csv, .npz or .npy file"
    return "the model takes images; give images, folders or tars of them"


class _Files:
    """Files of this machine, or under a URL, each by itself."""

    def read(self, key: Path | str) -> bytes:
        return get_bytes(key)


_FILES = _Files()


@dataclass(frozen=True)
class _Store:
    """The files below a URL."""

    url: str

    def read(self, key: str) -> bytes:
        return get_bytes(join(self.url, key))


@dataclass(frozen=True)
class _Table:
    """The rows of a table of vectors."""

    contents: VectorContents

    def read(self, key: int) -> Any:
        return decode_vector(self.contents.sample("test", key).image)


def _images(files: Sequence[str], source: Source, where: str, classes: Sequence[str], found: Inputs) -> Iterator[Item]:
    """The images among the files of a folder or tar, with their class where its subfolders are the classes."""
    images = [name for name in files if is_image(name)]
    others = (PurePosixPath(name).suffix or "without extension" for name in files if not is_image(name))
    found.passed_over.update(others)
    labelled = _are_classes(where, images, classes, found)
    for name in images:
        yield Item(f"{where}/{name}", source, name, name.partition("/")[0] if labelled else None)


def _are_classes(where: str, images: Sequence[str], classes: Sequence[str], found: Inputs) -> bool:
    """Whether every image lies in a subfolder that is called as a class. Where only some do, or none, a notice says so.

    Of folders that are numbers (GTSRB's 00000, 00001, ...) nobody knows which class each one is.
    """
    tops = {name.partition("/")[0] if "/" in name else "" for name in images}
    other = tops - set(classes)
    if not other:
        return bool(tops)
    named = ", ".join(sorted(top or "the folder itself" for top in other)[:NAMED])
    if tops & set(classes):
        found.notices.append(f"{where}: not scored, as images also lie in {named}, which is no class")
    elif len(tops) > 1 and "" not in tops:
        known = ", ".join(classes[:NAMED]) + (", ..." if len(classes) > NAMED else "")
        found.notices.append(
            f"{where}: not scored, as its subfolders ({named}{', ...' if len(tops) > NAMED else ''}) are not called as "
            f"the model's classes ({known}); rename them to know how many are right"
        )
    return False


def _rows(path: Path, where: str) -> Iterator[Item]:
    """The rows of a table; of an .npz with a test split, of that."""
    contents = open_vectors(path)
    labels = contents.labels("test").tolist()
    names = [None] if contents.class_names == (UNLABELLED,) else contents.class_names
    source = _Table(contents)
    for number, label in enumerate(labels):
        yield Item(f"{where}: row {number + 1}", source, number, names[label])
