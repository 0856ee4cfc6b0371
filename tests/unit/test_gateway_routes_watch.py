"""A gateway's table: newest wins, the hub may vanish, a table takes effect in one step."""

import asyncio
from contextlib import suppress

import pytest

from lorebase.serving.errors import UnavailableError
from lorebase.serving.gateway.metrics import GatewayMetrics
from lorebase.serving.gateway.routes_watch import RoutesWatch
from lorebase.serving.routing.table import RouteTable

from .gateway_fakes import table


class ScriptedHub:
    """Gives out its answers in order, then keeps the caller waiting."""

    def __init__(self, *answers: RouteTable | Exception | None) -> None:
        self.answers = list(answers)
        self.polls: list[int] = []
        self.idle = asyncio.Event()

    async def poll(self, gateway_id: str, have: int) -> tuple[int, RouteTable | None]:
        self.polls.append(have)
        if not self.answers:
            self.idle.set()
            await asyncio.sleep(3600)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return (have, None) if answer is None else (answer.revision, answer)

    async def leave(self, gateway_id: str) -> None:
        raise UnavailableError("gone")


async def watch_until_idle(hub: ScriptedHub) -> tuple[RoutesWatch, list[int]]:
    prepared: list[int] = []
    metrics = GatewayMetrics()
    watch = RoutesWatch(
        gateway_id="g", hub=hub, metrics=metrics, on_table=lambda t: prepared.append(t.revision)
    )
    task = asyncio.create_task(watch.run())
    await asyncio.wait_for(hub.idle.wait(), 5)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return watch, prepared


@pytest.fixture(autouse=True)
def _quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorebase.serving.gateway.routes_watch.RETRY_S", 0.0)


async def test_each_poll_acknowledges_what_the_gateway_uses() -> None:
    hub = ScriptedHub(table(3), None, table(5))
    watch, prepared = await watch_until_idle(hub)
    assert hub.polls == [-1, 3, 3, 5]
    assert prepared == [3, 5]
    assert watch.table is not None
    assert watch.table.revision == 5


async def test_last_table_stays_while_the_hub_is_gone() -> None:
    hub = ScriptedHub(table(3), UnavailableError("gone"), RuntimeError("odd"), table(4))
    watch, _ = await watch_until_idle(hub)
    assert hub.polls == [-1, 3, 3, 3, 4]
    assert watch.table is not None
    assert watch.table.revision == 4


async def test_restarted_hub_with_an_older_table_changes_nothing() -> None:
    watch, prepared = await watch_until_idle(ScriptedHub(table(5), table(4)))
    assert watch.table is not None
    assert watch.table.revision == 5
    assert prepared == [5]


async def test_leaving_a_dead_hub_is_no_error() -> None:
    watch, _ = await watch_until_idle(ScriptedHub(table(1)))
    await watch.leave()
