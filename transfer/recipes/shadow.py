"""Trains the shadow adapter as a recipe says: score, select, weigh, train, correct.

Runs where torch is: in a training worker of an upgrade, in the benchmark, in tests.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lorebase.serving.errors import InvalidArgumentError

from ..distill.batches import TokenPair, encode_all, fits
from ..distill.distill import training_pairs
from ..distill.likelihood import answer_spans
from ..distill.signals import (
    ScoredAnswer,
    best_samples,
    confidence_weights,
    informative_tokens,
    with_chunks,
    with_mask,
    with_weight,
)
from ..distill.train import train_tokens
from ..ports import Checkpoint, Example, no_checkpoint
from .models import LoadTeacher, Pairs, Shadow
from .on_policy import correct
from .recipe import Recipe
from .warm_start import warm_start


def train_shadow(
    recipe: Recipe,
    shadow: Shadow,
    examples: Sequence[Example],
    *,
    teacher: LoadTeacher,
    out_dir: Path,
    seed: int,
    save_every: int = 0,
    checkpoint: Checkpoint = no_checkpoint,
) -> dict[str, Any]:
    """Trains a shadow adapter on labelled inputs and writes its PEFT directory.

    Must not be called from a running event loop.

    Args:
        recipe: how.
        shadow: the next base and the adapter's shape.
        examples: inputs with the teacher's answers.
        teacher: loads the teacher.
        out_dir: gets the adapter.
        seed: of initial weights, batches and on-policy answers.
        save_every: steps between resume points of the main training; 0 writes none.
        checkpoint: called before every step.

    Returns:
        Figures for people, JSON: `train` (see `TrainSummary`), `selection`, `on_policy`, and
        `warm_start` where one was asked for.

    Raises:
        InvalidArgumentError: no usable examples, no such modules, no fast tokenizer.
        FloatingPointError: the loss is not finite.
    """
    training = replace(recipe.training, seed=seed, save_every=save_every)
    pairs = training_pairs(examples, shadow.format)
    encoded = encode_all(shadow.tokenizer, pairs)
    usable = [n for n, one in enumerate(encoded) if fits(one, training.max_tokens)]
    if not usable:
        raise InvalidArgumentError(
            f"got {len(pairs)} examples, all empty or longer than {training.max_tokens} tokens; "
            "expected at least one to train on"
        )
    pairs, tokens = [pairs[n] for n in usable], [encoded[n] for n in usable]
    loaded = teacher() if recipe.needs_teacher else None
    selection: dict[str, Any] = {"usable": len(usable)}
    if loaded is not None:
        by_excess = recipe.selection is not None and recipe.selection.by == "excess"
        scored = loaded.score(pairs, bare=by_excess)
        numbers, tokens = signalled(recipe, tokens, pairs, scored, shadow.tokenizer)
        pairs = [pairs[n] for n in numbers]
        selection |= {"selected": len(numbers), **_figures(scored, tokens)}
    rounds = recipe.on_policy
    # Share of the whole work that the main training is.
    main = 1.0 / (1.0 + rounds.rounds * rounds.step_share) if rounds else 1.0
    start, warmth = warm_start(shadow, tokens) if recipe.lora.warm_start else (None, {})
    summary = train_tokens(
        model=shadow.model,
        examples=tokens,
        lora=shadow.lora,
        recipe=training,
        out_dir=out_dir,
        base_id=shadow.base_id,
        start_from=start,
        checkpoint=lambda progress: checkpoint(progress * main),
    )
    corrections: list[dict[str, Any]] = []
    if rounds is not None and loaded is not None:
        corrections = correct(
            rounds,
            shadow,
            loaded,
            pairs,
            training=training,
            steps=summary.steps,
            adapter=out_dir,
            checkpoint=lambda progress: checkpoint(main + progress * (1.0 - main)),
        )
    checkpoint(1.0)
    train = asdict(replace(summary, skipped_examples=len(examples) - len(usable)))
    told = {"train": train, "selection": selection, "on_policy": corrections}
    return told | ({"warm_start": warmth} if warmth else {})


def signalled(
    recipe: Recipe,
    tokens: Sequence[TokenPair],
    pairs: Pairs,
    scored: Sequence[ScoredAnswer],
    tokenizer: Any,
) -> tuple[list[int], list[TokenPair]]:
    """Selects examples and gives them masks, weights and chunks.

    Returns:
        Numbers of the selected examples and the examples themselves.
    """
    numbers = list(range(len(tokens)))
    selection = recipe.selection
    if selection is not None:
        keep = max(1, round(len(tokens) * selection.samples))
        by_excess = selection.by == "excess"
        values = [
            one.mean_excess if by_excess else min(one.confidence, selection.sure) for one in scored
        ]
        numbers = best_samples(values, keep)
    chosen = [tokens[n] for n in numbers]
    answers = [scored[n] for n in numbers]
    spans = answer_spans(tokenizer, [pairs[n][1] for n in numbers])
    if selection is not None and selection.tokens < 1.0:
        masks = informative_tokens(answers, spans, share=selection.tokens, group=selection.group)
        chosen = [with_mask(one, mask) for one, mask in zip(chosen, masks, strict=True)]
    if recipe.weigh_by_confidence:
        weights = confidence_weights(answers)
        chosen = [with_weight(one, weight) for one, weight in zip(chosen, weights, strict=True)]
    if recipe.training.soft_share > 0:
        chosen = [with_chunks(*one) for one in zip(chosen, answers, spans, strict=True)]
    return numbers, chosen


def _figures(scored: Sequence[ScoredAnswer], tokens: Sequence[TokenPair]) -> dict[str, Any]:
    confidences = sorted(one.confidence for one in scored)
    counted = sum(weight > 0 for one in tokens for weight in one.weights)
    total = sum(len(one.answer_ids) for one in tokens)
    return {
        "confidence_median": round(confidences[len(confidences) // 2], 4),
        "confidence_lowest_tenth": round(confidences[len(confidences) // 10], 4),
        "token_share": round(counted / total, 4) if any(one.weights for one in tokens) else 1.0,
    }
