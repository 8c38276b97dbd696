"""The terminal that commands print to."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

console = Console(highlight=False)


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
