"""Packs a working tree for a cluster: the files that git lists, or all but hidden, built or downloaded ones."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_dist.errors import UserError

SHIPPED_BYTES = 100 * 2**20
"""The largest package that Ray's job server accepts; for a larger one it only answers 413."""

LEFT_OUT = ("__pycache__", "venv", "node_modules")
LEFT_OUT_AT_TOP = ("runs", "data", "shared", "build", "dist")
"""Left out only at the top of the tree: moe_dist/data is code."""


def pack_tree(root: Path, folder: Path, extra: Mapping[str, str]) -> Path:
    """Zip the files to ship below `root`, and the text files `extra` by name, into a file in `folder`.

    Raises UserError if they are too large.
    """
    files = shipped_files(root)
    require_small(root, files)
    archive = folder / "tree.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        for file in files:
            packed.write(root / file, file)
        for name, text in extra.items():
            packed.writestr(name, text)
    return archive


def shipped_files(root: Path) -> list[Path]:
    """The files to ship, relative to `root`: those that git does not ignore, or without git, chosen by name."""
    listed = _listed_by_git(root)
    files = _listed_by_name(root) if listed is None else listed
    return sorted(file for file in files if (root / file).is_file())


def require_small(root: Path, files: Sequence[Path]) -> None:
    """Raise UserError, which names the largest parts, if the files exceed what Ray's job server accepts."""
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.parts[0]] += (root / file).stat().st_size
    total = sizes.total()
    if total > SHIPPED_BYTES:
        largest = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for name, size in sizes.most_common(3))
        raise UserError(
            f"{root} holds {total / 2**20:.0f} MiB to ship and Ray takes {SHIPPED_BYTES / 2**20:.0f} MiB: keep data "
            f"outside it, or name it in .gitignore; largest: {largest}"
        )


def _listed_by_git(root: Path) -> list[Path] | None:
    """The files that git lists below `root`, or None without a repository or without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [Path(os.fsdecode(name)) for name in answer.stdout.split(b"\0") if name]


def _listed_by_name(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        left_out = (*LEFT_OUT, *LEFT_OUT_AT_TOP) if here == root else LEFT_OUT
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        files += [(here / name).relative_to(root) for name in names if not name.startswith(".")]
    return files
