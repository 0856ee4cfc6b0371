"""Background generation keeps order and seeds, waits for leases, and outlives restarts."""

import asyncio

import pytest

from lorebase.serving.engine.protocol import (
    BACKGROUND_PRIORITY,
    Completion,
    GenerationRequest,
    Sampling,
)
from lorebase.serving.errors import InvalidArgumentError, UnavailableError
from lorebase.transfer.governor import Capacity, LeaseTable
from lorebase.transfer.ports import ModelSpec
from lorebase.transfer.upgrade import leased_generator
from lorebase.transfer.upgrade.leased_generator import LeasedGenerator

MODEL = ModelSpec(base_id="next")


class FakeEngine:
    """Echoes prompts; may fail first."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.batches: list[list[GenerationRequest]] = []
        self.failures = failures
        self.error = error or UnavailableError("restarting")

    async def __call__(self, base_id: str, batch: list[GenerationRequest]) -> list[Completion]:
        assert base_id == "next"
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise self.error
        self.batches.append(batch)
        return [Completion(text=f"{r.prompt}!", finish_reason="stop") for r in batch]


def table(batches: int = 2, size: int = 8) -> LeaseTable:
    leases = LeaseTable()
    leases.set_capacity(Capacity(workers=0, batches=batches, batch_size=size))
    return leases


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased_generator, "RETRY_WAIT_S", (0.0, 0.001))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
async def test_answers_come_in_the_order_of_the_prompts(count: int) -> None:
    engine, busy = FakeEngine(), []
    generator = LeasedGenerator(table(), "m/label/1", busy.append, engine)
    prompts = [str(n) for n in range(count)]
    answers = await generator.complete(MODEL, prompts, Sampling())
    assert [one.text for one in answers] == [f"{prompt}!" for prompt in prompts]
    assert all(len(batch) <= 8 for batch in engine.batches)
    assert len(busy) == len(engine.batches)


async def test_seeds_follow_the_prompt_not_the_batch() -> None:
    seeds = []
    for size in (3, 64):
        engine = FakeEngine()
        generator = LeasedGenerator(table(size=size), "m", lambda s: None, engine)
        await generator.complete(MODEL, ["x"] * 10, Sampling(seed=100))
        requests = [request for batch in engine.batches for request in batch]
        seeds.append(sorted(request.sampling.seed or 0 for request in requests))
        assert {request.priority for request in requests} == {BACKGROUND_PRIORITY}
        assert len({request.request_id for request in requests}) == 10
    assert seeds[0] == seeds[1] == list(range(100, 110))


async def test_nothing_is_sent_without_a_lease() -> None:
    engine, leases = FakeEngine(), LeaseTable()
    generator = LeasedGenerator(leases, "m", lambda s: None, engine)
    task = asyncio.create_task(generator.complete(MODEL, ["a"] * 20, Sampling()))
    await asyncio.sleep(0.05)
    assert not engine.batches
    leases.set_capacity(Capacity(workers=0, batches=1, batch_size=4))
    answers = await asyncio.wait_for(task, 5)
    assert len(answers) == 20
    assert max(len(batch) for batch in engine.batches) == 4


async def test_a_restarting_engine_is_waited_for() -> None:
    engine = FakeEngine(failures=5)
    generator = LeasedGenerator(table(batches=1), "m", lambda s: None, engine)
    answers = await generator.complete(MODEL, ["a"], Sampling())
    assert [one.text for one in answers] == ["a!"]


async def test_an_engine_that_stays_away_is_given_up_and_its_leases_come_back() -> None:
    engine, leases = FakeEngine(failures=10_000), table()
    generator = LeasedGenerator(leases, "m", lambda s: None, engine)
    with pytest.raises(UnavailableError, match="restarting"):
        await generator.complete(MODEL, ["a"] * 50, Sampling())
    assert leases.granted("generate") == leases.waiting("generate") == 0
    # Two lanes, each bounded.
    assert 10_000 - engine.failures <= 2 * leased_generator.ATTEMPTS


async def test_an_error_that_no_retry_cures_is_raised_at_once() -> None:
    engine = FakeEngine(failures=10, error=InvalidArgumentError("rank too high"))
    generator = LeasedGenerator(table(batches=1), "m", lambda s: None, engine)
    with pytest.raises(InvalidArgumentError, match="rank too high"):
        await generator.complete(MODEL, ["a"], Sampling())
    assert engine.failures == 9
