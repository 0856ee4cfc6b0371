"""The pool's side of a training: Ray's calls are stood in for, its module is real."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorebase.serving.errors import LorebaseError
from lorebase.transfer.governor.leases import Lease
from lorebase.transfer.recipes import recipe_named
from lorebase.transfer.upgrade.ports import DistillJob

pytestmark = [
    # Ray warns while it is imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Method:
    def __init__(self, answer: Callable[..., object]) -> None:
        self._answer = answer

    def remote(self, *arguments: object) -> object:
        answer = self._answer(*arguments)
        made: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        made.set_result(answer)
        return made


class Worker:
    """A worker whose training never ends by itself."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.run = Method(lambda job: None)
        self.poll = Method(lambda key, granted: 0.5)
        self.cancel = Method(self.cancelled.append)


def a_job(root: Path) -> DistillJob:
    return DistillJob(
        key="m/distill/1",
        store_root=root,
        work_root=root,
        base_id="next",
        base_dir=root,
        examples_digest="",
        kit_digest="",
        source_digest="",
        source_base_dir=root,
        recipe=recipe_named("lorebase"),
        seed=0,
    )


async def test_trouble_of_the_controller_ends_the_training_that_it_can_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorebase.transfer import ray_workers

    killed: list[Any] = []
    worker = Worker()
    monkeypatch.setattr(ray_workers.ray, "wait", lambda refs, timeout: ([], refs))
    monkeypatch.setattr(ray_workers.ray, "kill", lambda actor, no_restart: killed.append(actor))
    pool = ray_workers.RayWorkerPool(threads=1, idle_s=60.0)
    monkeypatch.setattr(pool, "_start", lambda: worker)

    def broken(progress: float) -> None:
        raise LorebaseError("the catalog's database failed")

    with pytest.raises(LorebaseError, match="database failed"):
        await pool.distill(a_job(tmp_path), Lease(1, "train", "m"), broken)
    assert worker.cancelled == ["m/distill/1"]
    assert killed == [worker]
