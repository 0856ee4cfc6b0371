from dataclasses import replace

import pytest

from lorebase.serving.engine.protocol import Completion
from lorebase.serving.errors import UnavailableError
from lorebase.transfer.evaluate import score
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example
from lorebase.transfer.synthesis import (
    FilterPolicy,
    cap_answers,
    filter_inputs,
    hold_out,
    label_inputs,
)

from .transfer_fakes import KIT, MODEL, SEEDS, Script, done


def verdict(difference: float) -> Completion:
    return Completion(choice_logprobs=(difference / 2, -difference / 2), finish_reason="length")


async def test_the_filter_keeps_what_is_above_the_calibrated_threshold_in_order() -> None:
    script = Script(lambda _, n: verdict(float(n - 3)))
    inputs = [f"input {n}" for n in range(6)]
    result = await filter_inputs(script, MODEL, KIT, inputs)
    assert result.kept == ["input 3", "input 4", "input 5"]
    assert result.scores == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]
    assert result.stats["pass_rate"] == 0.5
    assert not result.stats["collapsed"]
    _, prompts, sampling = script.calls[0]
    assert prompts[0] == "Input: input 0\nReal:"
    assert sampling.choices == (" yes", " no")


async def test_a_discriminator_that_cant_discriminate_filters_nothing_and_says_so() -> None:
    script = Script(lambda _, n: verdict(-9.0))
    result = await filter_inputs(script, MODEL, replace(KIT, discriminator_auc=0.6), ["a", "b"])
    assert result.kept == ["a", "b"]
    assert script.calls == []
    assert not result.stats["filtered"]
    assert "AUC 0.60" in result.stats["reason"]


async def test_a_discriminator_that_knows_the_source_bases_style_only_filters_nothing() -> None:
    """The next base's inputs score like real ones: cutting would remove good inputs."""
    kit = replace(KIT, real_score_quantiles=(-2.0, -1.0, 0.0, 1.0, 2.0))
    inputs = [f"input {n}" for n in range(5)]
    alike = await filter_inputs(Script(lambda _, n: verdict(n - 2.0)), MODEL, kit, inputs)
    assert (alike.kept, alike.stats["filtered"]) == (inputs, False)
    assert "this base's synthetic inputs (AUC 0.50)" in alike.stats["reason"]
    apart = await filter_inputs(Script(lambda _, n: verdict(n - 5.0)), MODEL, kit, inputs)
    assert (apart.kept, apart.stats["filtered"]) == ([], True)
    assert apart.stats["auc"] > 0.9
    stubborn = FilterPolicy(least_auc=0.0)
    cut = await filter_inputs(
        Script(lambda _, n: verdict(n - 2.0)), MODEL, kit, inputs, policy=stubborn
    )
    assert cut.kept == ["input 2", "input 3", "input 4"]


async def test_the_papers_policy_cuts_at_zero_and_another_uses_no_discriminator() -> None:
    inputs = [f"input {n}" for n in range(4)]
    script = Script(lambda _, n: verdict(n - 1.25))
    paper = FilterPolicy(calibrated=False, least_auc=0.0)
    assert (await filter_inputs(script, MODEL, KIT, inputs, policy=paper)).kept == inputs[2:]
    script = Script(lambda _, n: verdict(-9.0))
    without = FilterPolicy(discriminator=False)
    assert (await filter_inputs(script, MODEL, KIT, inputs, policy=without)).kept == inputs
    assert script.calls == []


async def test_a_filter_that_rejects_nearly_all_is_reported_and_nothing_is_put_back() -> None:
    script = Script(lambda _, n: verdict(1.0 if n == 0 else -9.0))
    result = await filter_inputs(script, MODEL, KIT, [f"input {n}" for n in range(100)])
    assert result.kept == ["input 0"]
    assert result.stats["collapsed"]
    assert "does not carry over" in result.stats["reason"]


async def test_a_low_pass_rate_is_no_collapse_where_few_of_the_sources_inputs_passed_too() -> None:
    script = Script(lambda _, n: verdict(1.0 if n % 40 == 0 else -9.0))
    skewed = replace(KIT, fake_pass_rate=0.05)
    result = await filter_inputs(script, MODEL, skewed, [f"input {n}" for n in range(400)])
    assert len(result.kept) == 10
    assert not result.stats["collapsed"]


async def test_a_filter_that_keeps_nothing_has_collapsed() -> None:
    script = Script(lambda _, n: verdict(-9.0))
    result = await filter_inputs(script, MODEL, replace(KIT, fake_pass_rate=0.0), ["a", "b"])
    assert (result.kept, result.stats["collapsed"]) == ([], True)


async def test_filtering_nothing_gives_nothing() -> None:
    result = await filter_inputs(Script(lambda _, n: verdict(0.0)), MODEL, KIT, [])
    assert (result.kept, result.scores, result.stats["collapsed"]) == ([], [], False)


@pytest.mark.parametrize(
    "broken", [Completion(error="boom"), Completion(text="x", finish_reason="stop")]
)
async def test_an_input_without_a_score_is_an_infrastructure_error(broken: Completion) -> None:
    script = Script(lambda _, n: broken if n == 1 else verdict(1.0))
    with pytest.raises(UnavailableError, match="no score"):
        await filter_inputs(script, MODEL, KIT, ["a", "b"])


async def test_labels_are_greedy_answers_and_unusable_ones_are_dropped() -> None:
    answers = [
        done(" 42 "),
        done(""),
        Completion(text="for ever", finish_reason="length"),
        Completion(error="x"),
        done("42"),
    ]
    script = Script(lambda _, n: answers[n])
    result = await label_inputs(script, MODEL, KIT, ["a", "b", "c", "d", "e"])
    assert result.examples == [
        Example(input="a", target="42"),
        Example(input="e", target="42"),
    ]
    assert result.stats["dropped"] == {"empty": 1, "failed": 1, "unfinished": 1}
    assert result.stats["top_answer_share"] == 1.0
    _, prompts, sampling = script.calls[0]
    assert prompts[0] == "Input: a\nOutput:"
    assert (sampling.temperature, sampling.stop, sampling.max_tokens) == (0.0, ("\n",), 8)


async def test_labelling_fails_when_a_whole_batch_fails() -> None:
    with pytest.raises(UnavailableError):
        await label_inputs(Script(lambda _, n: Completion(error="x")), MODEL, KIT, ["a"])


def test_hold_out_splits_without_loss_and_leaves_at_least_half_to_train_on() -> None:
    examples = [Example(input=str(n), target="x") for n in range(20)]
    training, held = hold_out(examples, 6, seed=1)
    assert (len(training), len(held)) == (14, 6)
    assert sorted([*training, *held], key=lambda e: int(e.input)) == examples
    assert hold_out(examples, 6, seed=1) == (training, held)
    assert hold_out(examples, 6, seed=2) != (training, held)
    assert [len(part) for part in hold_out(examples, 100, seed=1)] == [10, 10]
    assert hold_out([], 5, seed=1) == ([], [])


def test_no_answer_keeps_more_than_its_share_of_the_examples() -> None:
    targets = "aaaaaabbcc"
    examples = [Example(input=str(n), target=target) for n, target in enumerate(targets)]
    assert cap_answers(examples, 1.0) == examples
    kept = cap_answers(examples, 0.3)
    assert [item.target for item in kept] == list("aaabbcc")
    assert [item.input for item in kept[:3]] == ["0", "1", "2"], "the first drawn stay"
    assert cap_answers([], 0.3) == []


async def test_scores_come_in_order_with_seeds_before_every_input() -> None:
    script = Script(lambda prompt, n: done(f" {prompt.count('Input:')}"))
    items = [Example(input=str(n), target="?") for n in range(130)]
    plain = await score(script, MODEL, items, DOCUMENT, max_tokens=8)
    assert plain == ["1"] * 130
    shots = await score(script, MODEL, items, DOCUMENT, few_shot=SEEDS, max_tokens=8)
    assert shots == ["6"] * 130


async def test_a_failed_answer_is_not_a_wrong_answer() -> None:
    script = Script(lambda _, n: Completion(error="gone") if n == 1 else done("x"))
    items = [Example(input=str(n), target="x") for n in range(3)]
    with pytest.raises(UnavailableError, match="input 1 of 3"):
        await score(script, MODEL, items, DOCUMENT, max_tokens=8)
