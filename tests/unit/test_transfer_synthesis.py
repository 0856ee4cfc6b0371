from dataclasses import replace

import pytest

from lorebase.serving.engine.protocol import Completion
from lorebase.serving.errors import UnavailableError
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example, StageCancelledError
from lorebase.transfer.synthesis import DrawSettings, inputs_to_draw, synthesize
from lorebase.transfer.synthesis.draw import sampling_seed, seed_orders

from .transfer_fakes import KIT, MODEL, SEEDS, Script, done


async def test_synthesis_draws_until_enough_different_inputs_are_there() -> None:
    script = Script(lambda _, n: done(f" input number {n // 2}"))
    result = await synthesize(script, MODEL, KIT, count=100, seed=1)
    assert len(result.inputs) == len(set(result.inputs)) == 100
    assert result.stats["complete"]
    assert result.stats["dropped"]["duplicate"] >= 90
    assert result.stats["drawn"] == script.count


async def test_every_cause_of_a_drop_is_counted() -> None:
    faulty = [
        Completion(text="half", finish_reason="length"),
        Completion(error="engine gone"),
        done("   "),
        done("x" * 31),
        done("a\nInput: b"),
        done("Seed  3"),
    ]
    script = Script(lambda _, n: faulty[n] if n < len(faulty) else done(f"good {n}"))
    result = await synthesize(script, MODEL, KIT, count=10, seed=1)
    assert len(result.inputs) == 10
    assert {k: v for k, v in result.stats["dropped"].items() if k != "surplus"} == {
        "unfinished": 1,
        "failed": 1,
        "empty": 1,
        "too_long": 1,
        "malformed": 1,
        "duplicate": 1,
    }


async def test_synthesis_ends_with_fewer_inputs_at_the_cap_and_says_so() -> None:
    script = Script(lambda _, n: done("always the same"))
    settings = DrawSettings(max_draw_factor=3.0, min_draws=1, batch_size=32)
    result = await synthesize(script, MODEL, KIT, count=50, seed=1, settings=settings)
    assert result.inputs == ["always the same"]
    assert script.count == result.stats["drawn"] == 150
    assert not result.stats["complete"]


async def test_synthesis_ends_when_hardly_anything_new_comes() -> None:
    """The base knows forty inputs; six samples for each of 400 wanted would be 2,400."""
    script = Script(lambda _, n: done(f"one of few: {'abcdefghij'[n % 10] * (n % 4 + 1)}"))
    result = await synthesize(script, MODEL, KIT, count=400, seed=1)
    assert result.stats["dry"]
    assert len(result.inputs) == 20
    assert script.count < 500
    stubborn = DrawSettings(least_yield=0.0)
    script = Script(lambda _, n: done("always the same"))
    result = await synthesize(script, MODEL, KIT, count=100, seed=1, settings=stubborn)
    assert (script.count, result.stats["dry"]) == (600, False)


async def test_a_slow_flow_of_new_inputs_is_not_dry() -> None:
    script = Script(lambda _, n: done(f"number {n // 20}"))
    result = await synthesize(script, MODEL, KIT, count=100, seed=1)
    assert script.count == 600
    assert len(result.inputs) == 30
    assert not result.stats["dry"]


async def test_synthesis_of_nothing_asks_nothing() -> None:
    script = Script(lambda _, n: done("x"))
    result = await synthesize(script, MODEL, KIT, count=0, seed=1)
    assert result.inputs == []
    assert script.calls == []


async def test_samples_get_different_orders_and_seeds_that_depend_on_their_number_only() -> None:
    script = Script(lambda _, n: done(f"input {n}"))
    settings = DrawSettings(batch_size=16)
    await synthesize(script, MODEL, KIT, count=60, seed=7, settings=settings)
    prompts = [prompt for _, batch, _ in script.calls for prompt in batch]
    assert len(set(prompts)) == settings.distinct_orders
    assert all(all(f"Input: {seed.input}\n" in prompt for seed in SEEDS) for prompt in prompts)
    first = 0
    for _, batch, sampling in script.calls:
        assert sampling.seed == sampling_seed(7, first)
        assert sampling.temperature == 1.0
        assert sampling.stop == ("\nOutput",)
        first += len(batch)


def test_seed_orders_are_different_bounded_and_fixed_by_the_seed() -> None:
    assert len(seed_orders(SEEDS, 32, 1)) == 32
    assert seed_orders(SEEDS, 32, 1) == seed_orders(SEEDS, 32, 1)
    assert seed_orders(SEEDS, 32, 1) != seed_orders(SEEDS, 32, 2)
    assert len(seed_orders(SEEDS[:2], 32, 1)) == 2


async def test_a_batch_that_fails_as_a_whole_is_an_infrastructure_error() -> None:
    script = Script(lambda _, n: Completion(error="engine gone"))
    with pytest.raises(UnavailableError, match="engine gone"):
        await synthesize(script, MODEL, KIT, count=10, seed=1)


async def test_the_checkpoint_sees_progress_and_can_cancel() -> None:
    script = Script(lambda _, n: done(f"input {n}"))
    seen: list[float] = []

    def checkpoint(progress: float) -> None:
        seen.append(progress)
        if progress >= 0.5:
            raise StageCancelledError

    settings = DrawSettings(batch_size=8)
    with pytest.raises(StageCancelledError):
        await synthesize(
            script, MODEL, KIT, count=40, seed=1, settings=settings, checkpoint=checkpoint
        )
    assert seen == sorted(seen)
    assert script.count < 40


async def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected count >= 0"):
        await synthesize(Script(lambda _, n: done("x")), MODEL, KIT, count=-1, seed=1)


def test_more_is_drawn_where_the_filter_takes_more_but_never_without_bound() -> None:
    assert inputs_to_draw(KIT, 100) == 275
    assert inputs_to_draw(KIT, 100, pass_rate=1.0) == 111
    assert inputs_to_draw(replace(KIT, fake_pass_rate=0.0), 100) == 600
    assert inputs_to_draw(replace(KIT, discriminator_auc=0.5), 100) == 100


def test_document_markers_are_what_ends_an_example() -> None:
    assert all(marker.startswith("\n") for marker in DOCUMENT.markers)


def test_extra_seeds_stand_beside_the_real_ones_and_make_no_prompt_longer() -> None:
    extra = [Example(input=f"extra {n}", target="x") for n in range(9)]
    orders = seed_orders(SEEDS, 32, 1, extra)
    assert len(set(orders)) == 32
    for order in orders:
        assert len(set(order)) == len(SEEDS) == 5
        assert len(set(order) & set(SEEDS)) == 3, "most of what is shown is real"
    assert {item for order in orders for item in order} == {*SEEDS, *extra}
    assert all(SEEDS[0] in order for order in seed_orders(SEEDS[:1], 4, 1, extra))
    assert seed_orders(SEEDS, 32, 1, ()) == seed_orders(SEEDS, 32, 1)


async def test_an_extra_seed_is_not_written_again() -> None:
    script = Script(lambda _, n: done("extra 1" if n < 5 else f"new {n}"))
    extra = [Example(input="extra 1", target="x")]
    result = await synthesize(script, MODEL, KIT, count=10, seed=1, extra_seeds=extra)
    assert "extra 1" not in result.inputs
    assert any("Input: extra 1" in prompt for _, prompts, _ in script.calls for prompt in prompts)
