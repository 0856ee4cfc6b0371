"""What several files of integration tests begin with."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .upgrade_world import World

MakeWorld = Callable[..., "World"]


@pytest.fixture
async def make_world(tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Makes worlds of upgrades that are taken down afterwards."""
    from .upgrade_world import World  # which most tests of this folder can do without

    made: list[World] = []

    def make(*adapters: str, **settings: object) -> World:
        made.append(World(tmp_path, adapters, **settings))
        return made[-1]

    yield make
    for world in made:
        if world.task is not None:
            await world.kill()
        world.catalog.close()
