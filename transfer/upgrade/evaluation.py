"""The evaluate stage: source, shadow, bare and few-shot next base on the same inputs, judged."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from lorebase.serving.errors import InvalidArgumentError, UnavailableError
from lorebase.transfer.evaluate import (
    Decision,
    Evidence,
    GatePolicy,
    decide,
    entrusted_evidence,
    label_free_evidence,
    score,
)
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.ports import Example, ModelSpec

from .keys import seed_of
from .lineage import drift, hop
from .settings import UpgradeSettings
from .stages import StageContext, StageResult, ref_of
from .states import MigrationEvent

EVALUATION_FILE = "evaluation.jsonl"

_EVENTS = {
    "promote": MigrationEvent.GATE_PROMOTE,
    "retry": MigrationEvent.GATE_RETRY,
    "reject": MigrationEvent.GATE_REJECT,
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What each system answered to the same inputs, in the same order."""

    items: list[Example]
    """Inputs; targets are true answers if entrusted, the source's labels otherwise."""
    source: list[str]
    shadow: list[str]
    bare: list[str]
    few_shot: list[str]
    """Empty if the prompts did not fit."""
    entrusted: bool


def gate_policy(settings: UpgradeSettings) -> GatePolicy:
    """Returns what a promotion takes, from the configuration's figures."""
    choices = settings.choices
    return GatePolicy(
        margin=choices.margin,
        label_free_margin=choices.label_free_margin or choices.margin,
        confidence=choices.confidence,
        attempts=settings.max_attempts,
        negative_flip_budget=choices.negative_flip_budget,
        min_examples=choices.min_examples,
    )


def evidence_of(answers: Answers) -> Evidence:
    """Returns the judgements that the gate decides on."""
    if answers.entrusted:
        targets = [item.target for item in answers.items]
        return entrusted_evidence(
            targets, answers.source, answers.shadow, answers.bare, answers.few_shot
        )
    return label_free_evidence(answers.source, answers.shadow, answers.bare, answers.few_shot)


async def run_evaluate(context: StageContext) -> StageResult:
    """Asks all systems and lets the gate decide. Real test data is used only if entrusted."""
    kit = context.kit()
    answers = await _ask(context, kit)
    decision = decide(
        evidence_of(answers),
        gate_policy(context.settings),
        attempts_left=context.settings.max_attempts - context.run.attempt,
    )
    told = _told(context, decision)
    digest = context.store.put_json(
        {
            "decision": told,
            "inputs": [item.input for item in answers.items],
            "targets": [item.target for item in answers.items],
            "source": answers.source,
            "shadow": answers.shadow,
            "bare": answers.bare,
            "few_shot": answers.few_shot,
        }
    )
    return StageResult(
        artifact=digest,
        event=_EVENTS[decision.verdict],
        summary=_summary(told),
        decision=told,
        reason=told["reason"],
    )


def _told(context: StageContext, decision: Decision) -> dict[str, Any]:
    """Returns the decision with the hops before this one: each gate sees its own hop only."""
    assert context.shadow is not None, "distilled, so it exists"
    told = decision.as_dict()
    if context.lineage:
        hops = [*context.lineage, hop(context.shadow, context.source.base_id, told)]
        told |= {"hops": hops, "reason": f"{told['reason']}; {drift(hops)}"}
    return told


def _summary(told: dict[str, Any]) -> dict[str, Any]:
    wanted = ("verdict", "evidence", "n", "source_score", "shadow_score", "bare_score", "hops")
    return {name: told[name] for name in wanted if name in told}


async def _ask(context: StageContext, kit: TransferKit) -> Answers:
    assert context.shadow is not None, "distilled, so it exists"
    entrusted = context.adapter.evaluation_digest is not None
    if entrusted:
        items = entrusted_items(context)
        source = await _score(context, kit, context.teacher, items, 0)
    else:
        # Labels are the source's own answers; only the seeds are still to be answered.
        held_out = [Example(**item) for item in context.artifact("label")["held_out"]]
        seeds = await _score(context, kit, context.teacher, kit.seeds, 0)
        items = [
            *held_out,
            *(
                Example(input=seed.input, target=answer)
                for seed, answer in zip(kit.seeds, seeds, strict=True)
            ),
        ]
        source = [item.target for item in items]
    shadow_model = ModelSpec(
        base_id=context.next_base.id, version=ref_of(context.shadow, context.store)
    )
    return Answers(
        items=items,
        source=source,
        shadow=await _score(context, kit, shadow_model, items, 1),
        bare=await _score(context, kit, context.next_model, items, 2),
        few_shot=await _few_shot(context, kit, items),
        entrusted=entrusted,
    )


async def _score(
    context: StageContext,
    kit: TransferKit,
    model: ModelSpec,
    items: Sequence[Example],
    quarter: int,
    few_shot: Sequence[Example] = (),
) -> list[str]:
    return await score(
        context.generator,
        model,
        items,
        kit.format,
        few_shot=few_shot,
        max_tokens=kit.max_answer_tokens,
        checkpoint=lambda progress: context.checkpoint((quarter + progress) / 4),
    )


async def _few_shot(context: StageContext, kit: TransferKit, items: Sequence[Example]) -> list[str]:
    try:
        return await _score(context, kit, context.next_model, items, 3, few_shot=kit.seeds)
    except UnavailableError as error:
        # Reported only, and the long prompts may not fit the next base: never a reason to fail.
        _log.warning("few_shot_left_out", migration=context.migration.id, error=str(error))
        return []


def entrusted_items(context: StageContext) -> list[Example]:
    """Returns the adapter's evaluation set, bounded; the same items in every attempt."""
    digest = context.adapter.evaluation_digest
    assert digest is not None, "the caller asked"
    items = read_evaluation_set(context.store.path(digest) / EVALUATION_FILE)
    if len(items) <= context.settings.max_evaluation_inputs:
        return items
    rng = random.Random(seed_of(context.migration.id, context.settings.choices.seed))
    return rng.sample(items, context.settings.max_evaluation_inputs)


def read_evaluation_set(path: Path) -> list[Example]:
    """Reads one {"input", "target"} object a line.

    Raises:
        InvalidArgumentError: no items, or a line that is not such an object.
    """
    items: list[Example] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            items.append(Example(input=str(row["input"]), target=str(row["target"])))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidArgumentError(
                f'{path.name} line {number} is not an {{"input", "target"}} object: {error!r}',
                reason="EVALUATION_INVALID",
            ) from error
    if not items:
        raise InvalidArgumentError(
            f"{path.name} holds no items; expected at least one", reason="EVALUATION_INVALID"
        )
    return items
