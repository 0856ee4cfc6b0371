"""Going on after an engine's death: nothing lost, nothing sent twice, stop strings still found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorebase.serving.engine.protocol import Chunk, GenerationRequest, Sampling
from lorebase.serving.gateway.resume import Trimmer, continuation

from .gateway_fakes import LetterCodec


def request(max_tokens: int = 10, **fields: object) -> GenerationRequest:
    sampling = Sampling(max_tokens=max_tokens)
    return GenerationRequest(request_id="r", sampling=sampling, **{"prompt": "ab", **fields})


def ids(text: str) -> tuple[int, ...]:
    return LetterCodec().encode(text)


def test_before_the_first_token_the_request_is_repeated_as_it_was() -> None:
    first = request()
    plan = continuation(first, (), "", LetterCodec())
    assert plan.request == first
    assert (plan.skip_tokens, plan.skip_chars, plan.prompt_growth) == (0, 0, 0)


def test_sent_tokens_become_part_of_the_prompt() -> None:
    plan = continuation(request(), ids("xyz"), "xyz", LetterCodec())
    assert plan.request is not None
    assert plan.request.prompt is None
    assert plan.request.prompt_token_ids == ids("abxyz")
    assert plan.request.sampling.max_tokens == 7
    assert (plan.skip_tokens, plan.skip_chars, plan.prompt_growth) == (0, 0, 3)


def test_a_prompt_of_token_ids_is_not_tokenized_again() -> None:
    plan = continuation(
        request(prompt=None, prompt_token_ids=ids("qq")), ids("x"), "x", LetterCodec()
    )
    assert plan.request is not None
    assert plan.request.prompt_token_ids == ids("qqx")


def test_tokens_whose_text_was_held_back_are_generated_again() -> None:
    plan = continuation(request(), ids("xyz"), "x", LetterCodec())
    assert plan.request is not None
    assert plan.request.prompt_token_ids == ids("abx")
    assert plan.request.sampling.max_tokens == 9
    assert (plan.skip_tokens, plan.skip_chars) == (2, 0)


def test_text_ahead_of_whole_tokens_is_skipped_too() -> None:
    class Pairs(LetterCodec):
        """Every token is two characters."""

        def decode(self, token_ids: tuple[int, ...]) -> str:
            return "".join(chr(token) * 2 for token in token_ids)

    # Of three tokens "xxyyzz", "xxy" was sent: only the first is complete.
    plan = continuation(request(prompt=None, prompt_token_ids=ids("a")), ids("xyz"), "xxy", Pairs())
    assert plan.request is not None
    assert plan.request.prompt_token_ids == ids("ax")
    assert (plan.skip_tokens, plan.skip_chars) == (2, 1)


def test_nothing_is_asked_when_all_tokens_were_sent() -> None:
    assert continuation(request(3), ids("xyz"), "xyz", LetterCodec()).request is None


@given(
    answer=st.text(alphabet="xyz", min_size=1, max_size=8),
    data=st.data(),
)
def test_client_gets_the_whole_answer_once_wherever_the_engine_died(
    answer: str, data: st.DataObject
) -> None:
    died = data.draw(st.integers(0, len(answer)))
    shown = data.draw(st.integers(0, died))
    plan = continuation(request(len(answer)), ids(answer[:died]), answer[:shown], LetterCodec())
    if plan.request is None:
        assert died == len(answer)
        return
    kept = plan.prompt_growth
    trimmer = Trimmer(plan)
    got_text, got_ids = answer[:shown], ids(answer[:died])
    for letter in answer[kept:]:
        new = trimmer.trim(Chunk(text=letter, token_ids=ids(letter), prompt_tokens=2 + kept))
        got_text += new.text
        got_ids += new.token_ids
        assert new.prompt_tokens == 2
    assert got_text == answer
    assert got_ids == ids(answer)
    assert plan.request.sampling.max_tokens == len(answer) - kept


def test_trimmer_cuts_across_chunks() -> None:
    trimmer = Trimmer(continuation(request(), ids("xyz"), "x", LetterCodec()))
    parts = [Chunk(text="y", token_ids=ids("y")), Chunk(text="zw", token_ids=ids("zw"))]
    out = [trimmer.trim(part) for part in parts]
    assert [part.token_ids for part in out] == [(), ids("w")]
    assert [part.text for part in out] == ["y", "zw"]


@pytest.mark.parametrize("text", ["", "x"])
def test_usage_never_goes_below_zero(text: str) -> None:
    trimmer = Trimmer(continuation(request(), ids("x"), text, LetterCodec()))
    assert trimmer.trim(Chunk(text="", token_ids=(), prompt_tokens=0)).prompt_tokens == 0
