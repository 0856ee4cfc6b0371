"""In-process generation against transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lorebase.serving.engine.protocol import Completion, Sampling, VersionRef
from lorebase.serving.errors import InvalidArgumentError, NotFoundError
from lorebase.transfer.distill.distill import load_base
from lorebase.transfer.hf_generator import HfGenerator
from lorebase.transfer.ports import ModelSpec

from .tiny_models import claim_rank, make_tiny_adapter, make_tiny_base, spoil_shapes

# Threads that wait for each other make tiny models crawl on a busy machine.
torch.set_num_threads(1)

PROMPTS = ["Input: one\nOutput:", "Input: a much longer second input\nOutput:", "x"]
BARE = ModelSpec(base_id="tiny")
PLAIN = Sampling(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp(request.param), arch=request.param)


@pytest.fixture(scope="module")
def base(base_dir: Path) -> tuple[Any, Any]:
    return load_base(base_dir)


@pytest.fixture
def generator(base: tuple[Any, Any]) -> HfGenerator:
    return HfGenerator({"tiny": base}, batch_size=8)


def reference(model: Any, tokenizer: Any, prompt: str, tokens: int) -> list[int]:
    """Greedy tokens by whole forward passes, without cache, batch or padding."""
    ids = list(tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def version(path: Path, name: str = "v-1") -> ModelSpec:
    ref = VersionRef(id=name, base_id="tiny", digest="", path=str(path), rank=4)
    return ModelSpec(base_id="tiny", version=ref)


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


async def test_greedy_text_is_that_of_whole_forward_passes(
    generator: HfGenerator, base: tuple[Any, Any]
) -> None:
    done = await generator.complete(BARE, PROMPTS, PLAIN)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        assert list(completion.token_ids) == reference(*base, prompt, 12)
        assert completion.finish_reason == "length"
        assert completion.prompt_tokens == len(base[1](prompt)["input_ids"])


async def test_an_adapter_changes_its_own_requests_only(
    generator: HfGenerator, base: tuple[Any, Any], base_dir: Path, tmp_path: Path
) -> None:
    path = make_tiny_adapter(tmp_path / "adapter", base_dir)
    bare = await generator.complete(BARE, PROMPTS, PLAIN)
    adapted = await generator.complete(version(path), PROMPTS, PLAIN)
    assert texts(adapted) != texts(bare)
    assert texts(await generator.complete(BARE, PROMPTS, PLAIN)) == texts(bare)
    model = PeftModel.from_pretrained(load_base(base_dir)[0], str(path)).eval()
    assert list(adapted[0].token_ids) == reference(model, base[1], PROMPTS[0], 12)


async def test_a_seeded_sample_depends_on_its_seed_and_not_on_its_batch(
    generator: HfGenerator, base: tuple[Any, Any]
) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0, seed=5, ignore_eos=True)
    prompts = [PROMPTS[n % 2] for n in range(20)]
    whole = texts(await generator.complete(BARE, prompts, sampling))
    assert len(set(whole)) > 15
    alone = HfGenerator({"tiny": base}, batch_size=1)
    assert texts(await alone.complete(BARE, prompts, sampling)) == whole
    later = Sampling(max_tokens=10, temperature=1.0, seed=5 + 6, ignore_eos=True)
    assert texts(await generator.complete(BARE, prompts[6:], later)) == whole[6:]


async def test_samples_follow_the_models_distribution(
    generator: HfGenerator, base: tuple[Any, Any]
) -> None:
    model, tokenizer = base
    with torch.no_grad():
        ids = torch.tensor([tokenizer("x")["input_ids"]])
        wanted = model(input_ids=ids).logits[0, -1].softmax(-1)
    sampling = Sampling(max_tokens=1, temperature=1.0, seed=1, ignore_eos=True)
    done = await HfGenerator({"tiny": base}, batch_size=500).complete(BARE, ["x"] * 2000, sampling)
    seen = torch.bincount(torch.tensor([c.token_ids[0] for c in done]), minlength=len(wanted))
    assert float((seen / 2000 - wanted).abs().sum()) < 0.45
    top = int(wanted.argmax())
    assert float(seen[top]) / 2000 == pytest.approx(float(wanted[top]), abs=0.05)


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}])
async def test_the_narrowest_sampling_is_greedy(
    generator: HfGenerator, cut: dict[str, Any]
) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, seed=9, ignore_eos=True, **cut)
    greedy = Sampling(max_tokens=8, ignore_eos=True)
    assert texts(await generator.complete(BARE, PROMPTS, sampling)) == texts(
        await generator.complete(BARE, PROMPTS, greedy)
    )


async def test_text_ends_before_the_first_stop(generator: HfGenerator) -> None:
    whole = (await generator.complete(BARE, PROMPTS[:1], PLAIN))[0].text
    stop = whole[4:7]
    sampling = Sampling(max_tokens=12, ignore_eos=True, stop=("never there", stop))
    done = (await generator.complete(BARE, PROMPTS[:1], sampling))[0]
    assert done.text == whole[: whole.index(stop)]
    assert done.finish_reason == "stop"
    assert len(done.token_ids) < 12


async def test_choices_are_normalised_over_themselves(
    generator: HfGenerator, base: tuple[Any, Any]
) -> None:
    model, tokenizer = base
    done = await generator.complete(BARE, PROMPTS, Sampling(choices=(" yes", " no")))
    pair = [tokenizer.encode(c, add_special_tokens=False)[0] for c in (" yes", " no")]
    for prompt, completion in zip(PROMPTS, done, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            wanted = model(input_ids=ids).logits[0, -1, pair].log_softmax(-1)
        assert completion.choice_logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        assert completion.text in (" yes", " no")


async def test_choices_of_several_tokens_are_refused(generator: HfGenerator) -> None:
    with pytest.raises(InvalidArgumentError, match="one token"):
        await generator.complete(BARE, ["x"], Sampling(choices=(" perhaps", " no")))


async def test_no_prompts_give_no_completions(generator: HfGenerator) -> None:
    assert await generator.complete(BARE, [], PLAIN) == []


async def test_unknown_bases_and_unfit_adapters_are_told(
    generator: HfGenerator, base_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="other"):
        await generator.complete(ModelSpec(base_id="other"), ["x"], PLAIN)
    with pytest.raises(InvalidArgumentError, match=r"no adapter_model\.safetensors"):
        await generator.complete(version(tmp_path / "nowhere", "v-2"), ["x"], PLAIN)
    wrong = make_tiny_adapter(tmp_path / "wrong", base_dir)
    spoil_shapes(wrong)
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        await generator.complete(version(wrong, "v-3"), ["x"], PLAIN)
    lying = make_tiny_adapter(tmp_path / "lying", base_dir)
    claim_rank(lying, 8)
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        await generator.complete(version(lying, "v-4"), ["x"], PLAIN)


async def test_only_a_few_adapted_copies_are_kept(
    base: tuple[Any, Any], base_dir: Path, tmp_path: Path
) -> None:
    generator = HfGenerator({"tiny": base}, max_adapted=2)
    for number in range(4):
        path = make_tiny_adapter(tmp_path / str(number), base_dir, seed=number)
        await generator.complete(version(path, f"v-{number}"), ["x"], PLAIN)
    assert len(generator._adapted) == 2
