"""On-policy rounds: the shadow answers, the teacher corrects."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorebase.serving.engine.protocol import Sampling

from ..distill.batches import TokenPair, encode_all, fits
from ..distill.likelihood import answer_spans
from ..distill.settings import DistillRecipe
from ..distill.signals import with_chunks, with_mask
from ..distill.train import train_tokens
from ..hf_generator import HfGenerator
from ..ports import Checkpoint, ModelSpec
from .models import Pairs, Shadow, Teacher, version_at
from .recipe import OnPolicy


def correct(
    rounds: OnPolicy,
    shadow: Shadow,
    teacher: Teacher,
    pairs: Pairs,
    *,
    training: DistillRecipe,
    steps: int,
    adapter: Path,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Runs the rounds; the adapter is replaced after each.

    Must not be called from a running event loop.

    Args:
        rounds: how many and how long.
        shadow: the next base and the adapter's shape.
        teacher: gives the likelihood of the shadow's answers.
        pairs: prompts with the teacher's answers.
        training: of the main training; a round is shorter and gentler.
        steps: of the main training.
        adapter: its PEFT directory.
        checkpoint: called before every step with the progress of all rounds.

    Returns:
        For each round: asked, mistakes and, if there were any, steps and last_loss.
    """
    done: list[dict[str, Any]] = []
    recipe = replace(
        training,
        steps=max(1, round(steps * rounds.step_share)),
        epochs=None,
        learning_rate=training.learning_rate * rounds.learning_rate_share,
        soft_share=rounds.soft_share,
        save_every=0,
    )
    for number in range(rounds.rounds):
        seed = training.seed + 7919 * (number + 1)
        mistakes = find_mistakes(rounds, shadow, pairs, adapter, seed)
        done.append({"asked": len(pairs), "mistakes": len(mistakes)})
        if not mistakes:
            break
        examples = lessons(shadow, teacher, pairs, mistakes, seed)
        summary = train_tokens(
            model=shadow.model,
            examples=[one for one in examples if fits(one, training.max_tokens)],
            lora=shadow.lora,
            recipe=replace(recipe, seed=seed),
            out_dir=adapter,
            base_id=shadow.base_id,
            start_from=adapter,
            checkpoint=_part(checkpoint, number, rounds.rounds),
        )
        done[-1] |= {"steps": summary.steps, "last_loss": summary.last_loss}
    return done


def find_mistakes(
    rounds: OnPolicy, shadow: Shadow, pairs: Pairs, adapter: Path, seed: int
) -> dict[int, str]:
    """Returns the shadow's answers that differ from the teacher's, by number of the pair.

    Unfinished answers have no end that could be learned from and are left out.
    """
    generator = HfGenerator({shadow.base_id: (shadow.model, shadow.tokenizer)}, max_adapted=1)
    model = ModelSpec(base_id=shadow.base_id, version=version_at(adapter, "shadow", shadow.base_id))
    sampling = Sampling(
        max_tokens=shadow.max_answer_tokens,
        temperature=rounds.temperature,
        stop=(shadow.format.stop,),
        seed=seed,
    )
    answers = asyncio.run(generator.complete(model, [prompt for prompt, _ in pairs], sampling))
    found = {}
    for number, (answer, (_, wanted)) in enumerate(zip(answers, pairs, strict=True)):
        written = shadow.format.answer(answer.text.strip())
        if answer.finish_reason == "stop" and written != wanted:
            found[number] = written
    return found


def lessons(
    shadow: Shadow, teacher: Teacher, pairs: Pairs, mistakes: dict[int, str], seed: int
) -> list[TokenPair]:
    """Returns what to learn from mistakes.

    The mistakes with the teacher's likelihood of them, the teacher's answers to the same inputs,
    and as many of its other answers, so that those are not forgotten.
    """
    wrong = [(pairs[number][0], answer) for number, answer in mistakes.items()]
    scored = teacher.score(wrong)
    spans = answer_spans(shadow.tokenizer, [answer for _, answer in wrong])
    encoded = encode_all(shadow.tokenizer, wrong)
    own = [
        with_chunks(with_mask(one, [False] * len(one.answer_ids)), answer, mine)
        for one, answer, mine in zip(encoded, scored, spans, strict=True)
    ]
    others = [number for number in range(len(pairs)) if number not in mistakes]
    kept = random.Random(f"replay|{seed}").sample(others, min(len(others), len(mistakes)))
    return [*own, *encode_all(shadow.tokenizer, [pairs[n] for n in (*mistakes, *kept)])]


def _part(checkpoint: Checkpoint, number: int, of: int) -> Checkpoint:
    def report(progress: float) -> None:
        checkpoint((number + progress) / of)

    return report
