"""Seeded sampling on CPU when prompts are computed in parts."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorebase.serving.engine import Sampling, complete
from tests.integration.engine_world import (
    World,
    kept_environment,
    make_world,
    request,
    running,
    settings,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM and what it imports warn of each other

PROMPT = "Input: " + "the moon is 7 and the sun is 9 " * 6 + "\nOutput:"
COUNT = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(Path(tmp_path_factory.mktemp("world")), "llama", adapters=1)


async def texts(world: World, budget: int) -> list[tuple[int, ...]]:
    """Samples with fixed seeds, all at once, in an engine with so many tokens a step."""
    async with running(settings(world, max_batched_tokens=budget)) as engine:
        completions = await asyncio.gather(
            *(
                complete(
                    engine,
                    request(
                        f"{PROMPT} {number}",
                        request_id=f"r-{number}",
                        sampling=Sampling(
                            max_tokens=8, temperature=1.0, seed=number, ignore_eos=True
                        ),
                    ),
                )
                for number in range(COUNT)
            )
        )
        await engine.check_health()
    assert not [one.error for one in completions if one.error]
    return [one.token_ids for one in completions]


async def test_prompts_in_parts_neither_kill_the_engine_nor_change_seeded_samples(
    world: World,
) -> None:
    whole = await texts(world, 2048)
    assert len(set(whole)) > 1
    assert await texts(world, 32) == whole
