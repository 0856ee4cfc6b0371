"""The controller sweeps the store, and takes nothing that is still named."""

import os
import time
from pathlib import Path

from .upgrade_world import World

DAY_S = 86_400.0


def make_old(world: World) -> None:
    """Dates everything in the store two days back."""
    past = time.time() - 2 * DAY_S
    for path in (world.root / "store" / "objects").glob("??/*"):
        os.utime(path, (past, past))


async def test_a_sweep_takes_what_nothing_names_and_spares_what_an_upgrade_made(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, ["a/one"], garbage_every_s=0.01)
    try:
        world.commands.start("next", [], "")
        world.boot()
        await world.completed()
        orphan = world.store.put_json({"of": "a deleted adapter"})
        young = world.store.put_json({"of": "an upload under way"})
        make_old(world)
        os.utime(world.store.path(young))
        await world.until(lambda: not world.store.exists(orphan))
        kept = world.catalog.referenced_digests()
        assert len(kept) >= 6, "source, kit, shadow and the stages' artifacts"
        assert all(world.store.exists(digest) for digest in kept | {young})
    finally:
        await world.kill()
        world.catalog.close()


async def test_no_sweep_before_its_time(tmp_path: Path) -> None:
    world = World(tmp_path, [], garbage_every_s=3600.0)
    try:
        orphan = world.store.put_json({"of": "nobody"})
        make_old(world)
        world.boot()
        await world.until(lambda: world.controller is not None)
        assert await world.controller._garbage.collect_if_due() == []
        assert world.store.exists(orphan)
    finally:
        await world.kill()
        world.catalog.close()
