"""Teacher likelihoods and weighted training on real (tiny, random) models."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorebase.serving.engine.protocol import VersionRef
from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.distill import DistillRecipe, LoraSettings
from lorebase.transfer.distill.batches import TokenPair, encode_pairs
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.distill.likelihood import answer_logprobs, answer_spans
from lorebase.transfer.distill.signals import ScoredAnswer, with_chunks, with_mask
from lorebase.transfer.distill.train import TrainSummary, train_tokens
from lorebase.transfer.hf_generator import merged_copy

from .tiny_models import make_tiny_base

torch.set_num_threads(1)

PAIRS = [(f"Input: item {n}\nOutput:", f" \u00e9{n % 7} yes\n") for n in range(40)]
LORA = LoraSettings(rank=4, alpha=8)
RECIPE = DistillRecipe(steps=12, batch_size=8, learning_rate=1e-2, seed=3, weights_dtype="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load_base(make_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def examples(base: tuple[Any, Any]) -> list[TokenPair]:
    return encode_pairs(base[1], PAIRS, max_tokens=100)[0]


def train(
    base: tuple[Any, Any], examples: list[TokenPair], out: Path, **changes: Any
) -> TrainSummary:
    settings = {"recipe": RECIPE} | changes
    return train_tokens(model=base[0], examples=examples, lora=LORA, out_dir=out, **settings)


def version(folder: Path) -> VersionRef:
    return VersionRef(id="v", base_id="tiny", digest="", path=str(folder), rank=4)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_likelihoods_are_those_of_one_answer_at_a_time(
    base: tuple[Any, Any], examples: list[TokenPair]
) -> None:
    found = answer_logprobs(base[0], examples)
    for example, logprobs in zip(examples, found, strict=True):
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        with torch.no_grad():
            rows = base[0](input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.prompt_ids)
        naive = [float(rows[start - 1 + n, token]) for n, token in enumerate(example.answer_ids)]
        assert logprobs == pytest.approx(naive, abs=1e-4)


def test_spans_cover_the_answer_in_order(base: tuple[Any, Any], examples: list[TokenPair]) -> None:
    answers = [answer for _, answer in PAIRS]
    for answer, spans, example in zip(
        answers, answer_spans(base[1], answers), examples, strict=True
    ):
        assert len(spans) == len(example.answer_ids)
        assert (spans[0][0], spans[-1][1]) == (0, len(answer))
        pieces = dict.fromkeys(spans)  # tokens of one character share its span
        assert "".join(answer[a:b] for a, b in pieces) == answer


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="fast tokenizer"):
        answer_spans(object(), ["a"])


def test_masked_tokens_teach_nothing(
    base: tuple[Any, Any], examples: list[TokenPair], tmp_path: Path
) -> None:
    """The last token is masked and may be anything: nothing depends on it."""
    masks = [[True] * (len(one.answer_ids) - 1) + [False] for one in examples]
    right = [with_mask(one, mask) for one, mask in zip(examples, masks, strict=True)]
    wrong = [replace(one, answer_ids=(*one.answer_ids[:-1], 7)) for one in right]
    train(base, right, tmp_path / "right")
    train(base, wrong, tmp_path / "wrong")
    train(base, examples, tmp_path / "whole")
    assert weights(tmp_path / "right") == weights(tmp_path / "wrong")
    assert weights(tmp_path / "right") != weights(tmp_path / "whole")


def test_weights_of_one_train_like_no_weights(
    base: tuple[Any, Any], examples: list[TokenPair], tmp_path: Path
) -> None:
    weighted = [with_mask(one, [True] * len(one.answer_ids)) for one in examples]
    one = train(base, examples, tmp_path / "plain")
    other = train(base, weighted, tmp_path / "weighted")
    assert other.last_loss == pytest.approx(one.last_loss, rel=1e-3)


def test_the_chunk_loss_brings_the_student_to_the_teachers_doubt(
    base: tuple[Any, Any], tmp_path: Path
) -> None:
    """The teacher gives every first character 30 %, so a good student does, too."""
    model, tokenizer = base
    answers = [answer for _, answer in PAIRS]
    spans = answer_spans(tokenizer, answers)
    examples, _ = encode_pairs(tokenizer, PAIRS, max_tokens=100)
    soft = []
    for example, mine in zip(examples, spans, strict=True):
        logprobs = [-1.2, *[0.0] * (len(mine) - 1)]
        scored = ScoredAnswer(spans=mine, logprobs=tuple(logprobs))
        soft.append(with_chunks(example, scored, mine))
    recipe = replace(RECIPE, steps=60, soft_share=1.0)
    train(base, soft, tmp_path / "soft", recipe=recipe)
    train(base, examples, tmp_path / "hard", recipe=replace(RECIPE, steps=60))

    def first_token(folder: str) -> float:
        adapted = merged_copy(model, version(tmp_path / folder))
        found = answer_logprobs(adapted, examples[:16])
        return sum(math.exp(one[0]) for one in found) / len(found)

    assert first_token("soft") == pytest.approx(0.3, abs=0.1)
    assert first_token("hard") > 0.8


def test_training_goes_on_from_another_adapter(
    base: tuple[Any, Any], examples: list[TokenPair], tmp_path: Path
) -> None:
    first = train(base, examples, tmp_path / "first", recipe=replace(RECIPE, steps=40))
    after = train(base, examples, tmp_path / "after", start_from=tmp_path / "first")
    assert after.first_loss < 0.6 * first.first_loss
    other = replace(LORA, target_modules=("q_proj",))
    with pytest.raises(InvalidArgumentError, match="same shape"):
        train_tokens(
            model=base[0],
            examples=examples,
            lora=other,
            recipe=RECIPE,
            out_dir=tmp_path / "x",
            start_from=tmp_path / "first",
        )
    with pytest.raises(InvalidArgumentError, match="can't start from"):
        train(base, examples, tmp_path / "y", start_from=tmp_path / "nothing")
