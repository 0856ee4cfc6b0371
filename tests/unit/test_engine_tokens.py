"""Prompts and choices to token ids."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorebase.serving.engine.tokens import INLINE_CHARS, TokenEncoder
from lorebase.serving.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["[UNK]", "yes", "no", "a", "b"])}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.enable_truncation(4)  # as some tokenizer.json files have it
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> TokenEncoder:
    return TokenEncoder(tokenizer, vocab_size=5)


async def test_prompts_are_never_truncated_however_long(encoder: TokenEncoder) -> None:
    assert await encoder.encode("a b " * 10) == [3, 4] * 10
    count = INLINE_CHARS
    assert await encoder.encode("a b " * count) == [3, 4] * count


def test_ids_outside_the_vocabulary_are_refused(encoder: TokenEncoder) -> None:
    assert encoder.check_ids((0, 4)) == [0, 4]
    for bad in (-1, 5):
        with pytest.raises(InvalidArgumentError, match=f"holds {bad}"):
            encoder.check_ids((0, bad))


def test_choices_must_be_single_different_tokens(encoder: TokenEncoder) -> None:
    assert encoder.choice_ids(("yes", "no")) == [1, 2]
    assert encoder.choice_ids(()) == []
    with pytest.raises(InvalidArgumentError, match="'a b' is 2 tokens"):
        encoder.choice_ids(("yes", "a b"))
    with pytest.raises(InvalidArgumentError, match="'' is 0 tokens"):
        encoder.choice_ids(("yes", ""))
    with pytest.raises(InvalidArgumentError, match="a different token for each"):
        encoder.choice_ids(("maybe", "perhaps"))


def test_encoding_survives_another_thread_using_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, encoder: TokenEncoder
) -> None:
    def engine() -> None:
        for _ in range(200):
            tokenizer("a b a b a b", truncation=True, max_length=2)

    async def client() -> None:
        for _ in range(200):
            assert await encoder.encode("a b a b a b") == [3, 4] * 3

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(engine)
        asyncio.run(client())
        other.result()


class SlowTokenizer:
    """A tokenizer without a fast core."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return ([1] if add_special_tokens else []) + [ord(c) - ord("a") for c in text]


async def test_a_tokenizer_without_fast_core_works_too() -> None:
    encoder = TokenEncoder(SlowTokenizer(), vocab_size=26)
    assert await encoder.encode("abc") == [1, 0, 1, 2]
    assert encoder.choice_ids(("a", "b")) == [0, 1]
