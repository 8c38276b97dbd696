"""The worlds that all distributed tests share: starting processes is what costs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds import World


@pytest.fixture(scope="session")
def worlds() -> Iterator[dict[int, World]]:
    """Worlds by size; a world starts with its first case."""
    by_size = {size: World(size) for size in (1, 2, 3, 4)}
    yield by_size
    for world in by_size.values():
        world.close()
