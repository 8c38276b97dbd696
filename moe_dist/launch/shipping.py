"""Packs a working tree for a cluster: the files that git lists, or all but hidden, built or downloaded ones.

Folders that are links, submodules and repositories inside the tree are shipped with what they hold, each real folder
once. Files that look like secrets stay here unless git tracks them: on the nodes, everyone could read them. What is not
shipped is named. A tree without moe_dist/ gets the installed package: no other version may run.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import moe_dist
from moe_dist.errors import UserError
from moe_dist.launch.secret_files import is_secret

SHIPPED_BYTES = 100 * 2**20
"""The largest package that Ray's job server accepts; for a larger one it only answers 413."""

LEFT_OUT = ("__pycache__", "venv", "node_modules")
LEFT_OUT_AT_TOP = ("runs", "data", "shared", "build", "dist")
"""Left out only at the top of the tree: moe_dist/data is code."""
NAMED = 5
"""How many files of a kind are named; the rest is counted."""
PACKAGE = Path(moe_dist.__file__).parent


@dataclass
class Shipment:
    """What is shipped of a tree.

    files: its name in the package -> the file. left_out: sentences about what is not shipped and may be missed.
    secrets: the names of what looks like a secret and stays here, and tracked_secrets, of what is shipped nevertheless.
    """

    root: Path
    files: dict[Path, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    secrets: list[Path] = field(default_factory=list)
    tracked_secrets: list[Path] = field(default_factory=list)
    _bytes: Counter[str] = field(default_factory=Counter)
    _walked: set[Path] = field(default_factory=set)

    def add(self, name: Path, path: Path) -> None:
        """Add the file at `path`."""
        self.files[name] = path
        self._bytes[name.parts[0]] += path.stat().st_size

    def require_small(self) -> None:
        """Raise UserError, which names the largest parts, if the files so far exceed what Ray's job server accepts."""
        total = self._bytes.total()
        if total > SHIPPED_BYTES:
            largest = ", ".join(f"{part} ({size / 2**20:.0f} MiB)" for part, size in self._bytes.most_common(3))
            raise UserError(
                f"{self.root} holds {total / 2**20:.0f} MiB to ship and Ray takes {SHIPPED_BYTES / 2**20:.0f} MiB: "
                f"keep data outside it, or name it in .gitignore; largest: {largest}"
            )

    def add_tree(self, folder: Path, name: Path = Path()) -> None:
        """Add the tree in `folder`, called `name` in the package."""
        self._walked.add(folder.resolve())
        listed = _listed_by_git(folder)
        if listed is None:
            listed = dict.fromkeys(_listed_by_name(folder, is_top=name == Path()), False)
        inner = []
        for entry, is_tracked in listed.items():
            path = folder / entry
            if path.is_dir():
                inner.append(entry)
            elif path.is_file():
                self._add_file(name / entry, path, is_tracked)
            elif os.path.lexists(path):  # a tracked file may have been deleted
                self.left_out.append(f"{name / entry}: neither a file nor a folder, or a link to what is not there")
            if name != Path():
                self.require_small()  # at once: a link may lead to millions of images
        self.require_small()
        for entry in inner:
            self._add_inner(folder / entry, name / entry)

    def _add_file(self, name: Path, path: Path, is_tracked: bool) -> None:
        """Add the file at `path`, unless it looks like a secret and git does not track it."""
        if is_secret(name, path):
            (self.tracked_secrets if is_tracked else self.secrets).append(name)
            if not is_tracked:
                return
        self.add(name, path)

    def sentences(self) -> Iterator[str]:
        """What the user should know: what is not shipped and may be missed, and which secrets are."""
        yield from (f"not shipped: {sentence}" for sentence in self.left_out)
        if self.secrets:
            yield (
                f"not shipped: {_named(self.secrets)}: holds a secret by its name or content, which all users of the "
                "nodes could read; if the job needs it, let git track it, or put it on the nodes"
            )
        if self.tracked_secrets:
            yield (
                f"shipped, since git tracks it: {_named(self.tracked_secrets)}: holds a secret by its name or content, "
                "which all users of the nodes can read"
            )

    def _add_inner(self, folder: Path, name: Path) -> None:
        """Add a folder that is a link, a submodule or a repository by itself, or say why not."""
        before = len(self.files)
        if name.parts[0] in LEFT_OUT_AT_TOP:
            self.left_out.append(f"{name}: a folder of this name is taken for data")
        elif folder.resolve() in self._walked or self.root.resolve().is_relative_to(folder.resolve()):
            self.left_out.append(f"{name}: a link to a folder that is shipped already, or to one above")
        else:
            self.add_tree(folder, name)
            if len(self.files) == before:
                self.left_out.append(f"{name}: holds nothing to ship (a submodule? `git submodule update --init`)")


def pack_tree(root: Path, folder: Path, extra: Mapping[str, str], tell: Callable[[str], None] | None = None) -> Path:
    """Zip the files to ship below `root`, and the text files `extra` by name, into a file in `folder`.

    tell: is called with a sentence for each thing that is left out and may be missed, or is secret; default: print it.
    Raises UserError if the files are too large.
    """
    shipment = shipment_of(root)
    for sentence in shipment.sentences():
        (tell or print)(f"! {sentence}")
    archive = folder / "tree.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        for name, path in sorted(shipment.files.items()):
            packed.write(path, name)
        for extra_name, text in extra.items():
            packed.writestr(extra_name, text)
    return archive


def shipment_of(root: Path) -> Shipment:
    """What is shipped of the tree in `root`, with the installed package where the tree has none."""
    shipment = Shipment(root)
    shipment.add_tree(root)
    if not any(name.parts[0] == PACKAGE.name for name in shipment.files):
        for entry in _listed_by_name(PACKAGE, is_top=False):
            shipment.add(PACKAGE.name / entry, PACKAGE / entry)
        shipment.require_small()
    return shipment


def _listed_by_git(root: Path) -> dict[Path, bool] | None:
    """What git lists in `root`, and whether it tracks it; None without a repository or without git.

    Of a submodule or a repository inside, its folder is listed.
    """
    listed: dict[Path, bool] = {}
    for which, are_tracked in (("--cached",), True), (("--others", "--exclude-standard"), False):
        try:
            answer = subprocess.run(["git", "ls-files", "-z", *which], cwd=root, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        listed |= {Path(os.fsdecode(name)): are_tracked for name in answer.stdout.split(b"\0")}
    listed.pop(Path(), None)  # after the last name; and of a submodule that is not there git lists the folder itself
    return listed


def _listed_by_name(root: Path, *, is_top: bool) -> Iterator[Path]:
    """The files below `root`, and the folders that are links, without what is hidden, built or data."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        left_out = (*LEFT_OUT, *LEFT_OUT_AT_TOP) if here == root and is_top else LEFT_OUT
        kept = [name for name in folders if name not in left_out and not name.startswith(".")]
        links = [name for name in kept if (here / name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        yield from ((here / name).relative_to(root) for name in links)
        yield from ((here / name).relative_to(root) for name in names if not name.startswith("."))


def _named(names: list[Path]) -> str:
    """The first few of the names."""
    return ", ".join(map(str, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
