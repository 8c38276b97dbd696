"""What is shipped of a working tree: the files git would list, or all but hidden, built and downloaded ones."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_dist.errors import UserError

SHIPPED_BYTES = 100 * 2**20
"""What Ray's job server accepts in one request; a larger package gets a bare 413."""

LEFT_OUT = ("__pycache__", "venv", "node_modules")
LEFT_OUT_AT_TOP = ("runs", "data", "shared", "build", "dist")
"""Not below the top: moe_dist/data is code."""


def pack_tree(root: Path, folder: Path, extra: Mapping[str, str]) -> Path:
    """Zip what is shipped of `root`, and text files `extra` by name, into `folder`.

    Raises UserError where that is too much.
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
    """The files to ship, relative to `root`: tracked and new but not ignored ones; without git, by their names."""
    listed = _listed_by_git(root)
    files = _listed_by_name(root) if listed is None else listed
    return sorted(file for file in files if (root / file).is_file())


def require_small(root: Path, files: Sequence[Path]) -> None:
    """Raise UserError, naming what is large, where the files together are more than the job server takes."""
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
    """What git lists below `root`, or None where there is no repository or no git."""
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
