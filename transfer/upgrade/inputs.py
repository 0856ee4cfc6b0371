"""The stages that make an attempt's training data: synthesize, filter, label."""

from dataclasses import asdict

from lorebase.serving.catalog import version_id
from lorebase.serving.engine.protocol import VersionRef
from lorebase.transfer.kit import TransferKit, discriminator_dir
from lorebase.transfer.ports import ModelSpec
from lorebase.transfer.synthesis import (
    Gatherers,
    SynthesisResult,
    cap_answers,
    gather_inputs,
    hold_out,
    label_inputs,
    synthesize,
)

from .amounts import held_out_inputs, samples_to_write, wanted_inputs
from .carry import (
    carried_examples,
    carried_inputs,
    extra_seeds,
    former_labels,
    merge_examples,
)
from .keys import seed_of
from .lora_shape import lora_shape
from .stages import StageContext, StageResult, StarvedError

EXTRA_SEEDS = 2
"""For each seed of the kit, this many accepted inputs of the former attempt are shown, too."""


async def run_synthesize(context: StageContext) -> StageResult:
    """The next base, or whom the recipe names, writes inputs like the kit's seeds."""
    kit = context.kit()
    former = former_labels(context.migration, context.store)
    pass_rate = None if former is None else former["pass_rate"]
    who = _gatherers(context, kit)
    missing = _wanted(context, kit) - len(real_inputs(context, kit))
    result = await synthesize(
        context.generator,
        who.writer,
        kit,
        count=samples_to_write(context.settings, kit, missing, pass_rate),
        seed=context.seed,
        settings=who.draw,
        known=_known(context, kit),
        extra_seeds=who.extra_seeds,
        checkpoint=context.checkpoint,
    )
    if missing and not result.inputs:
        writer = "next base" if context.recipe.writer == "next-base" else "source adapter"
        raise StarvedError(f"the {writer} wrote no usable input: {result.stats}")
    digest = context.store.put_json({"inputs": result.inputs, "stats": result.stats})
    return StageResult(artifact=digest, summary=result.stats)


async def run_filter(context: StageContext) -> StageResult:
    """The source base with the kit's discriminator keeps what looks like the client's data.

    Where too little of what was written passes, more is written and filtered: as the benchmark
    does it, up to the configured number of rounds.
    """
    kit = context.kit()
    real = real_inputs(context, kit)
    wanted = _wanted(context, kit)
    gathered = await gather_inputs(
        context.generator,
        kit,
        _gatherers(context, kit),
        wanted=wanted - len(real),
        seed=context.seed,
        written=SynthesisResult(**context.artifact("synthesize")),
        known=_known(context, kit),
        max_rounds=context.settings.choices.gather_rounds,
        until_collapse=not context.entrusted,
        checkpoint=context.checkpoint,
    )
    result = gathered.result
    carried = carried_inputs(context.migration, context.store)
    kept = list(dict.fromkeys((*carried, *real, *result.kept)))
    stats = {
        **result.stats,
        "wanted": wanted,
        "real_inputs": len(real),
        "rounds": gathered.rounds,
    }
    digest = context.store.put_json(
        {
            "inputs": gathered.inputs,
            "kept": kept,
            "real": real,
            "scores": result.scores,
            "stats": stats,
        }
    )
    # A collapsed filter may pick odd inputs. True answers would show that, labels would not.
    blind = result.stats["collapsed"] and not context.entrusted
    if blind or len(kept) < context.settings.min_training_inputs:
        raise StarvedError(str(result.stats["reason"]), digest)
    return StageResult(artifact=digest, summary=stats)


async def run_label(context: StageContext) -> StageResult:
    """The source adapter answers the inputs; a part is held out where the gate needs it."""
    kit = context.kit()
    filtered = context.artifact("filter")
    kept = filtered["kept"]
    result = await label_inputs(
        context.generator, context.teacher, kit, kept, checkpoint=context.checkpoint
    )
    examples = merge_examples(carried_examples(context.migration, context.store), result.examples)
    wanted = held_out_inputs(context.settings, entrusted=context.entrusted)
    training, held_out = hold_out(examples, wanted, seed=context.seed) if wanted else (examples, [])
    training = cap_answers(training, context.recipe.answer_share)
    if len(training) < context.settings.min_training_inputs:
        raise StarvedError(
            f"{len(training)} labelled inputs are left to train on of {len(kept)} that passed the "
            f"filter, expected at least {context.settings.min_training_inputs}: {result.stats}"
        )
    digest = context.store.put_json(
        {
            "training": [asdict(example) for example in training],
            "held_out": [asdict(example) for example in held_out],
            "pass_rate": filtered["stats"].get("pass_rate"),
            "stats": result.stats,
        }
    )
    summary = {**result.stats, "training": len(training), "held_out": len(held_out)}
    return StageResult(artifact=digest, summary=summary)


def real_inputs(context: StageContext, kit: TransferKit) -> list[str]:
    """Returns the kit's real inputs that this attempt adds: those that none before has used."""
    known = {example.input for example in carried_examples(context.migration, context.store)}
    known.update(carried_inputs(context.migration, context.store))
    fresh = [text for text in kit.real_inputs if text not in known]
    return fresh[: _wanted(context, kit)]


def _known(context: StageContext, kit: TransferKit) -> list[str]:
    """Returns all inputs that need not be written again."""
    former = carried_examples(context.migration, context.store)
    return [
        *(example.input for example in former),
        *carried_inputs(context.migration, context.store),
        *kit.real_inputs,
    ]


def _wanted(context: StageContext, kit: TransferKit) -> int:
    return wanted_inputs(
        context.settings, kit, attempt=context.run.attempt, entrusted=context.entrusted
    )


def _gatherers(context: StageContext, kit: TransferKit) -> Gatherers:
    recipe = context.recipe
    # Of the attempt, not of the stage: both stages that write show the same examples.
    seed = seed_of(f"{context.migration.id}/{context.run.attempt}", context.settings.choices.seed)
    source = ModelSpec(base_id=kit.base_id, version=_discriminator(context, kit))
    return Gatherers(
        writer=context.next_model if recipe.writer == "next-base" else context.teacher,
        discriminator=source,
        draw=recipe.draw,
        policy=recipe.filter,
        extra_seeds=tuple(
            extra_seeds(context.migration, context.store, EXTRA_SEEDS * len(kit.seeds), seed)
        ),
    )


def _discriminator(context: StageContext, kit: TransferKit) -> VersionRef | None:
    if not kit.discriminator:
        return None
    path = discriminator_dir(context.store.path(context.kit_digest))
    return VersionRef(
        id=version_id(f"{context.adapter.name}#discriminator", kit.base_id, context.kit_digest),
        base_id=kit.base_id,
        digest=context.kit_digest,
        path=str(path),
        rank=lora_shape(path).rank,
    )
