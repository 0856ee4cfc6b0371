"""Draws new inputs from a base: rejection sampling with a hard cap."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorebase.serving.engine.protocol import Completion, Sampling
from lorebase.serving.errors import InvalidArgumentError, UnavailableError

from ..kit.format import TaskFormat
from ..ports import Checkpoint, Example, ModelSpec, TextGenerator, no_checkpoint
from .dedupe import DuplicateIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """How inputs are drawn."""

    temperature: float = 1.0
    """1 samples the base's own distribution."""
    top_p: float = 1.0
    batch_size: int = 64
    """Samples between two checkpoints."""
    max_draw_factor: float = 6.0
    """Hard cap: at most this many samples for each input wanted."""
    min_draws: int = 64
    """The cap is never lower than this."""
    dry_draws: int = 256
    """Samples over which the yield is watched."""
    least_yield: float = 0.02
    """When a smaller share of the latest `dry_draws` samples was new and fit, drawing ends: the
    base has written all it will, or can't write such inputs. 0 draws up to the cap."""
    distinct_orders: int = 32
    """Orders of the seeds in use. Samples that share an order share the cost of its prompt."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise InvalidArgumentError(
                f"got temperature {self.temperature} and top_p {self.top_p}, expected a "
                "temperature above 0 and a top_p above 0, at most 1"
            )
        counts = ("batch_size", "max_draw_factor", "min_draws", "dry_draws", "distinct_orders")
        for name in counts:
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"got {name} {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisResult:
    """New inputs and how they came about."""

    inputs: list[str]
    stats: dict[str, Any]
    """wanted, drawn, accepted, acceptance_rate, complete, dry and the dropped ones by cause."""


def seed_orders(
    seeds: Sequence[Example], count: int, seed: int, extra: Sequence[Example] = ()
) -> list[tuple[Example, ...]]:
    """Returns at most `count` different random orders of the seeds, fixed by `seed`.

    With extra seeds, half of an order (the larger one) are seeds and the rest extra ones, so that
    prompts stay as long as they were while showing more of the task.
    """
    rng = random.Random(f"orders|{seed}")
    orders: dict[tuple[Example, ...], None] = {}
    # 20 tries an order: enough to find all the orders of few seeds, and bounded.
    for _ in range(20 * count):
        if len(orders) >= count:
            break
        order = list(seeds)
        if extra:
            others = min(len(seeds) // 2, len(extra))
            order = [
                *rng.sample(order, len(seeds) - others),
                *rng.sample(list(extra), others),
            ]
        rng.shuffle(order)
        orders.setdefault(tuple(order))
    return list(orders)


def sampling_seed(seed: int, first: int) -> int:
    """Returns the sampling seed of sample number `first` of stream `seed`.

    Streams lie far apart, so that sample i of one attempt never repeats one of another.
    """
    return (seed * 1_000_003 + first) % (1 << 31)


async def draw_inputs(
    generator: TextGenerator,
    model: ModelSpec,
    *,
    format: TaskFormat,
    seeds: Sequence[Example],
    count: int,
    seed: int,
    max_input_chars: int,
    max_input_tokens: int,
    settings: DrawSettings | None = None,
    known: Sequence[str] = (),
    extra_seeds: Sequence[Example] = (),
    checkpoint: Checkpoint = no_checkpoint,
) -> SynthesisResult:
    """Lets a base write up to `count` different new inputs after the seeds.

    Args:
        generator: Where text comes from.
        model: The base that writes.
        format: Wording of the prompt.
        seeds: Real examples to go on from.
        count: Inputs wanted. Fewer come back when the cap on samples is reached first, or nothing
            new comes any more; the statistics then say `complete: False` and `dry`.
        seed: Fixes the seeds' orders and the sampling.
        max_input_chars: Longer inputs are dropped.
        max_input_tokens: Budget of a sample; what is unfinished then is dropped.
        settings: Temperature, batch size, cap.
        known: Inputs that are there already; what repeats them counts as a duplicate.
        extra_seeds: Further examples to go on from, less to be trusted; see `seed_orders`.
        checkpoint: Called between batches.

    Raises:
        ValueError: `count` is negative or there are no seeds.
        UnavailableError: a whole batch failed.
    """
    if count < 0 or not seeds:
        raise ValueError(f"got count={count} and {len(seeds)} seeds, expected count >= 0 and seeds")
    settings = settings or DrawSettings()
    orders = seed_orders(seeds, settings.distinct_orders, seed, extra_seeds)
    prompts = [format.synthesis_prompt(order) for order in orders]
    stop = format.synthesis_stop(len(seeds))
    shown = (*seeds, *extra_seeds)
    index = DuplicateIndex((*(example.input for example in shown), *known))
    inputs: list[str] = []
    dropped: Counter[str] = Counter()
    drawn = 0
    fit = [(0, 0)]
    cap = max(settings.min_draws, int(settings.max_draw_factor * count)) if count else 0
    while len(inputs) < count and drawn < cap and not _is_dry(fit, settings):
        checkpoint(len(inputs) / count)
        size = _batch_size(settings, count - len(inputs), drawn, len(inputs), cap)
        completions = await generator.complete(
            model,
            [prompts[number % len(prompts)] for number in range(drawn, drawn + size)],
            Sampling(
                max_tokens=max_input_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                stop=(stop,),
                seed=sampling_seed(seed, drawn),
            ),
        )
        drawn += size
        require_some(completions, model)
        for text, fault in _judge(completions, format, max_input_chars):
            if fault or not index.add(text):
                dropped[fault or "duplicate"] += 1
            elif len(inputs) < count:
                inputs.append(text)
            else:
                dropped["surplus"] += 1
        fit.append((drawn, len(inputs)))
    checkpoint(1.0)
    stats = _statistics(count, drawn, len(inputs), len(orders), dropped)
    stats["dry"] = len(inputs) < count and _is_dry(fit, settings)
    return SynthesisResult(inputs=inputs, stats=stats)


def _is_dry(fit: Sequence[tuple[int, int]], settings: DrawSettings) -> bool:
    """Tells whether the latest samples were hardly ever new and fit.

    Args:
        fit: (samples drawn, inputs accepted) after each batch, from (0, 0) on.
        settings: what "latest" and "hardly ever" mean.
    """
    drawn, accepted = fit[-1]
    before = [one for one in fit if drawn - one[0] >= settings.dry_draws]
    if not before:
        return False
    since, had = before[-1]
    return accepted - had < settings.least_yield * (drawn - since)


def _batch_size(settings: DrawSettings, missing: int, drawn: int, accepted: int, cap: int) -> int:
    """Samples of the next batch: what the acceptance so far makes necessary, and a bit more."""
    acceptance = max(0.1, accepted / drawn) if drawn else 0.8
    return max(1, min(settings.batch_size, int(missing / acceptance * 1.1) + 1, cap - drawn))


def require_some(completions: Sequence[Completion], model: ModelSpec) -> None:
    """Raises UnavailableError if every completion of a batch failed: that is no bad luck."""
    errors = [item.error for item in completions if item.error is not None]
    if errors and len(errors) == len(completions):
        raise UnavailableError(
            f"all {len(errors)} prompts of a batch failed on base {model.base_id!r}, the first "
            f"with: {errors[0]}",
            reason="GENERATION_FAILED",
        )


def _judge(
    completions: Sequence[Completion], format: TaskFormat, max_chars: int
) -> Iterator[tuple[str, str]]:
    """Yields each sample's text and why it is unfit ("" if it is fit)."""
    for item in completions:
        text = item.text.strip()
        if item.error is not None:
            yield "", "failed"
        elif item.finish_reason != "stop":
            yield text, "unfinished"
        elif not text:
            yield text, "empty"
        elif len(text) > max_chars:
            yield text, "too_long"
        elif any(marker in text for marker in format.markers):
            yield text, "malformed"
        else:
            yield text, ""


def _statistics(
    wanted: int, drawn: int, accepted: int, orders: int, dropped: Counter[str]
) -> dict[str, Any]:
    fit = accepted + dropped["surplus"]
    return {
        "wanted": wanted,
        "drawn": drawn,
        "accepted": accepted,
        "acceptance_rate": round(fit / drawn, 4) if drawn else 0.0,
        "complete": accepted >= wanted,
        "seed_orders": orders,
        "dropped": dict(sorted(dropped.items())),
    }
