"""The terminal that commands print to."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

LOG_COLUMNS = 120
"""Width of what is printed into a file or a pipe: with 80 the cells of a search's table are cut."""

console = Console(highlight=False)
if not console.is_terminal:
    console.width = LOG_COLUMNS


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
