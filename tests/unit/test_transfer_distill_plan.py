from collections import Counter

import pytest

from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill import DistillRecipe, LoraSettings, present_modules
from lorebase.transfer.distill.batches import encode_pairs, plan_batches


class ByteTokenizer:
    """One token a byte, with token 1 before a text if special tokens are wanted."""

    def __call__(
        self, texts: list[str], add_special_tokens: bool = True
    ) -> dict[str, list[list[int]]]:
        start = [1] if add_special_tokens else []
        return {"input_ids": [start + list(text.encode()) for text in texts]}


def test_every_example_is_seen_once_a_pass() -> None:
    batches = plan_batches([5] * 40, batch_size=8, steps=5, seed=1)
    assert Counter(i for batch in batches for i in batch) == dict.fromkeys(range(40), 1)


def test_a_pass_that_does_not_divide_is_filled_up() -> None:
    batches = plan_batches([5] * 10, batch_size=4, steps=3, seed=1)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert {i for batch in batches for i in batch} == set(range(10))


def test_batches_hold_examples_of_like_length() -> None:
    lengths = [n % 50 + 1 for n in range(400)]
    batches = plan_batches(lengths, batch_size=8, steps=50, seed=1)
    padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)
    assert padding / sum(lengths) < 0.15


def test_batches_depend_on_the_seed_only_and_a_longer_run_begins_alike() -> None:
    short = plan_batches([3] * 30, batch_size=4, steps=10, seed=1)
    assert plan_batches([3] * 30, batch_size=4, steps=40, seed=1)[:10] == short
    assert plan_batches([3] * 30, batch_size=4, steps=10, seed=2) != short


def test_fewer_examples_than_a_batch_make_small_batches() -> None:
    assert [sorted(b) for b in plan_batches([1, 1], batch_size=8, steps=2, seed=1)] == [[0, 1]] * 2
    with pytest.raises(ValueError, match="no examples"):
        plan_batches([], batch_size=8, steps=2, seed=1)


def test_only_the_prompt_gets_special_tokens_and_long_or_empty_pairs_are_left_out() -> None:
    pairs = [("ab", "c"), ("abcdef", "ghij"), ("a", "")]
    kept, skipped = encode_pairs(ByteTokenizer(), pairs, max_tokens=8)
    assert skipped == 2
    assert kept[0].prompt_ids == (1, 97, 98)
    assert kept[0].answer_ids == (99,)
    assert len(kept[0]) == 4


def test_the_learning_rate_warms_up_and_decays_linearly() -> None:
    recipe = DistillRecipe(
        steps=100, learning_rate=1.0, warmup_steps=10, final_learning_rate_share=0.0
    )
    rates = [recipe.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.01)


def test_the_longer_of_two_warm_ups_counts() -> None:
    recipe = DistillRecipe(steps=100, learning_rate=1.0, warmup_steps=2, warmup_share=0.1)
    assert recipe.learning_rate_at(0, 100) == pytest.approx(0.1)
    assert recipe.learning_rate_at(0, 10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DistillRecipe(),
        lambda: DistillRecipe(steps=1, epochs=1.0),
        lambda: DistillRecipe(steps=0),
        lambda: DistillRecipe(steps=1, batch_size=0),
        lambda: LoraSettings(rank=0, alpha=1.0),
        lambda: LoraSettings(rank=1, alpha=1.0, target_modules=()),
        lambda: LoraSettings(rank=1, alpha=1.0, dropout=1.0),
        lambda: DistillRecipe(steps=1, soft_share=1.5),
        lambda: DistillRecipe(steps=1, soft_temperature=0.0),
    ],
)
def test_senseless_settings_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgumentError):
        make()


def test_target_modules_that_the_next_base_lacks_fall_back_to_all_linear() -> None:
    llama = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]
    assert present_modules(["q_proj", "v_proj"], llama) == ("q_proj",)
    assert present_modules(["query_key_value"], llama) == ("all-linear",)
