"""Text from transformers models in this process: for kit building, tests and examples.

Serving engines do the same at scale. Legend of shape suffixes: B rows, T tokens, V vocabulary.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorebase.serving.engine.protocol import Completion, FinishReason, Sampling
from lorebase.serving.errors import InvalidArgumentError, NotFoundError

from .hf_adapted import AdaptedModel, adapted_model, merged_copy
from .ports import ModelSpec

__all__ = ["HfGenerator", "choice_tokens", "merged_copy"]


@dataclass(slots=True)
class _Row:
    """One prompt on its way."""

    prompt: int
    """Index in the caller's list."""
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None


class HfGenerator:
    """A TextGenerator over models in this process. Calls run one at a time, on a thread."""

    def __init__(
        self, bases: dict[str, tuple[Any, Any]], *, batch_size: int = 64, max_adapted: int = 2
    ) -> None:
        """Serves `bases`: id to (model, tokenizer).

        Args:
            bases: transformers causal language models in evaluation mode, and their tokenizers.
            batch_size: prompts that go through a model together.
            max_adapted: models with an adapter that are kept; most are a copy of their base.
        """
        self._bases = dict(bases)
        self._batch_size = batch_size
        self._max_adapted = max_adapted
        self._adapted: OrderedDict[tuple[str, str], AdaptedModel] = OrderedDict()
        self._lock = asyncio.Lock()

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        """Completes every prompt, in order; see TextGenerator.

        Raises:
            NotFoundError: unknown base.
            InvalidArgumentError: a choice that is not one token, or unfit adapter files.
        """
        async with self._lock:
            return await asyncio.to_thread(self._complete, model, list(prompts), sampling)

    def _complete(
        self, spec: ModelSpec, prompts: list[str], sampling: Sampling
    ) -> list[Completion]:
        if spec.base_id not in self._bases:
            raise NotFoundError(
                f"unknown base {spec.base_id!r}: this process has {', '.join(self._bases)}"
            )
        model = self._model(spec)
        tokenizer = self._bases[spec.base_id][1]
        ids = [tuple(tokens) for tokens in tokenizer(prompts)["input_ids"]] if prompts else []
        # Prompts of like length share a batch, equal ones share their prefill.
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
        results: list[Completion] = [Completion()] * len(ids)
        with torch.inference_mode():
            for first in range(0, len(order), self._batch_size):
                batch = order[first : first + self._batch_size]
                if sampling.choices:
                    done = _choose(model, tokenizer, ids, batch, sampling.choices)
                else:
                    done = _generate(model, tokenizer, ids, batch, sampling)
                for index, completion in zip(batch, done, strict=True):
                    results[index] = completion
        return results

    def _model(self, spec: ModelSpec) -> AdaptedModel:
        base = self._bases[spec.base_id][0]
        if spec.version is None:
            return AdaptedModel(model=base)
        key = (spec.base_id, spec.version.id)
        if key not in self._adapted:
            while len(self._adapted) >= self._max_adapted:
                self._adapted.popitem(last=False)
            self._adapted[key] = adapted_model(base, spec.version)
        self._adapted.move_to_end(key)
        return self._adapted[key]


def _choose(
    model: AdaptedModel,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    batch: Sequence[int],
    choices: Sequence[str],
) -> list[Completion]:
    """Returns log p of each choice, normalised over the choices."""
    tokens = choice_tokens(tokenizer, choices)
    logits_BV, _, _ = model.prefill([ids[index] for index in batch])
    logprobs_BC = logits_BV[:, tokens].log_softmax(-1)
    return [
        Completion(
            text=choices[int(row.argmax())],
            token_ids=(tokens[int(row.argmax())],),
            finish_reason="length",
            prompt_tokens=len(ids[index]),
            choice_logprobs=tuple(row.tolist()),
        )
        for index, row in zip(batch, logprobs_BC, strict=True)
    ]


def choice_tokens(tokenizer: Any, choices: Sequence[str]) -> list[int]:
    """Returns the token of each choice.

    Raises:
        InvalidArgumentError: a choice is not exactly one token, or two share one.
    """
    encoded = [tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    if any(len(tokens) != 1 for tokens in encoded) or len(set(map(tuple, encoded))) < len(choices):
        counts = ", ".join(f"{c!r}: {t}" for c, t in zip(choices, encoded, strict=True))
        raise InvalidArgumentError(
            f"every choice must be one token of its own, got token ids {counts}; use other words "
            "in the task format"
        )
    return [tokens[0] for tokens in encoded]


def _generate(
    model: AdaptedModel,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    batch: Sequence[int],
    sampling: Sampling,
) -> list[Completion]:
    rows = [_Row(prompt=index, generator=_rng(sampling, index)) for index in batch]
    unique = list(dict.fromkeys(tuple(ids[index]) for index in batch))
    place = {tokens: row for row, tokens in enumerate(unique)}
    logits_BV, cache, mask_BT = model.prefill(unique)
    spread = torch.tensor([place[tuple(ids[index])] for index in batch], device=mask_BT.device)
    logits_BV, mask_BT = logits_BV[spread], mask_BT[spread]
    cache.batch_select_indices(spread)
    ends = set() if sampling.ignore_eos else _end_tokens(model, tokenizer)
    running = list(range(len(rows)))
    for step in range(sampling.max_tokens):
        next_B = _sample(logits_BV, [rows[i].generator for i in running], sampling)
        for row, token in zip((rows[i] for i in running), next_B.tolist(), strict=True):
            _advance(row, token, tokenizer, sampling, ends)
        alive = [at for at, i in enumerate(running) if rows[i].finish_reason is None]
        if not alive or step + 1 == sampling.max_tokens:
            break
        if len(alive) < len(running):
            chosen = torch.tensor(alive, device=mask_BT.device)
            cache.batch_select_indices(chosen)
            next_B, mask_BT = next_B[chosen], mask_BT[chosen]
            running = [running[at] for at in alive]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(running), 1)], dim=1)
        output = model(
            input_ids=next_B[:, None],
            attention_mask=mask_BT,
            position_ids=mask_BT.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits_BV = output.logits[:, -1].float()
    return [_completion(row, tokenizer, len(ids[row.prompt])) for row in rows]


def _rng(sampling: Sampling, index: int) -> torch.Generator | None:
    if sampling.temperature == 0.0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed + index)
    return generator


def _sample(
    logits_BV: torch.Tensor, generators: Sequence[torch.Generator | None], sampling: Sampling
) -> torch.Tensor:
    """Returns one token a row [B], greedy or by the Gumbel-max trick with the row's own noise."""
    if sampling.temperature == 0.0:
        return logits_BV.argmax(-1)
    scores_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth_B1 = scores_BV.topk(min(sampling.top_k, scores_BV.shape[-1])).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < kth_B1, -torch.inf)
    if sampling.top_p < 1.0:
        sorted_BV, order_BV = scores_BV.sort(-1, descending=True)
        before_BV = sorted_BV.softmax(-1).cumsum(-1) - sorted_BV.softmax(-1)
        cut_BV = torch.zeros_like(scores_BV, dtype=torch.bool)
        cut_BV.scatter_(1, order_BV, before_BV >= sampling.top_p)
        scores_BV = scores_BV.masked_fill(cut_BV, -torch.inf)
    # Noise is drawn on the CPU: the same seed then gives the same text on every device.
    noise_BV = torch.empty(scores_BV.shape)
    for row, generator in enumerate(generators):
        noise_BV[row].exponential_(generator=generator)
    return (scores_BV - noise_BV.to(scores_BV.device).log()).argmax(-1)


def _advance(row: _Row, token: int, tokenizer: Any, sampling: Sampling, ends: set[int]) -> None:
    """Adds a token to a row and decides whether it ends there."""
    row.tokens.append(token)
    if token in ends:
        row.finish_reason = "stop"
        row.text = tokenizer.decode(row.tokens[:-1], skip_special_tokens=True)
        return
    # A token is at least a byte, so a stop that ends here began within this many tokens.
    reach = max((len(stop.encode()) for stop in sampling.stop), default=0)
    tail = tokenizer.decode(row.tokens[-reach:], skip_special_tokens=True) if reach else ""
    if any(stop in tail for stop in sampling.stop):
        text = tokenizer.decode(row.tokens, skip_special_tokens=True)
        places = [text.find(stop) for stop in sampling.stop if stop in text]
        row.text = text[: min(places)] if places else text
        row.finish_reason = "stop"


def _completion(row: _Row, tokenizer: Any, prompt_tokens: int) -> Completion:
    finished = row.finish_reason is not None
    return Completion(
        text=row.text if finished else tokenizer.decode(row.tokens, skip_special_tokens=True),
        token_ids=tuple(row.tokens),
        finish_reason=row.finish_reason or "length",
        prompt_tokens=prompt_tokens,
    )


def _end_tokens(model: AdaptedModel, tokenizer: Any) -> set[int]:
    """Returns the ids that end a text, from the generation config and the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
