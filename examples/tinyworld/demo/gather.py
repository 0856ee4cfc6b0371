"""From what was recorded to facts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.charts import Phase
from benchmarks.load import Acknowledgement, RouteHistory, wrong_version
from benchmarks.load.records import RequestRecord
from benchmarks.processes import MemorySample
from benchmarks.upgrades import (
    OperatorMove,
    acknowledgements,
    rollback_acknowledgements,
    route_steps,
    state_name,
)
from lorebase.v1 import adapter_pb2, upgrade_pb2

from .facts import AdapterFacts, DemoFacts, Swap
from .judge import compare_texts, difference, scores
from .settings import DemoSettings
from .watch import gate_word, migration_seconds, stage_rows
from .world import TenantAdapter

Answers = dict[str, dict[str, list[RequestRecord]]]
"""The judge's answers, by adapter and condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Everything that a run recorded."""

    started: float
    ended: float
    settings: DemoSettings
    adapters: Sequence[TenantAdapter]
    upgrade: upgrade_pb2.Upgrade
    """As it was at the very end."""
    completed: upgrade_pb2.Upgrade
    """As it was when the last migration had ended, before anybody touched it by hand."""
    changes: Sequence[adapter_pb2.RouteChange]
    records: Sequence[RequestRecord]
    answers: Answers
    last_word: dict[str, RequestRecord]
    """The last answer to each adapter's plain name."""
    moves: list[OperatorMove]
    phases: list[Phase]
    memory: Sequence[MemorySample]
    retired_bases: list[str]
    environment: dict[str, Any]


def gather(told: Told) -> DemoFacts:
    """Returns the facts of a run."""
    steps = route_steps(told.changes)
    # Promoting again by hand replaces the first promotion's record, so both views count.
    acks = [
        *acknowledgements(told.completed),
        *acknowledgements(told.upgrade),
        *rollback_acknowledgements(told.moves, steps),
    ]
    history = RouteHistory(steps, acks)
    live = [record for record in told.records if record.kind == "foreground"]
    return DemoFacts(
        started=told.started,
        ended=told.ended,
        old_base=told.settings.old_base,
        next_base=told.settings.next_base,
        upgrade_state=state_name(told.upgrade.state),
        upgrade_error=told.upgrade.error,
        adapters=_adapters(told),
        records=told.records,
        wrong=[(r, why) for r in told.records if (why := wrong_version(r, history))],
        text_check=compare_texts(live, told.answers),
        swaps=_swaps(history, acks),
        moves=told.moves,
        phases=told.phases,
        stages=stage_rows(told.completed, told.started),
        memory=told.memory,
        background_busy_s=told.upgrade.background_busy_seconds,
        retired_bases=told.retired_bases,
        environment=told.environment,
        clients=told.settings.load.clients,
        think_s=told.settings.load.think_s,
    )


def _swaps(history: RouteHistory, acks: list[Acknowledgement]) -> list[Swap]:
    acked_at = {ack.revision: ack.at for ack in acks}
    return [
        Swap(
            adapter=step.adapter,
            revision=step.revision,
            at=step.at,
            reason=step.reason,
            to_base=step.base,
            propagation_s=acked_at[step.revision] - step.at if step.revision in acked_at else None,
        )
        for step in history.swaps()
    ]


def _adapters(told: Told) -> list[AdapterFacts]:
    by_name = {one.adapter: one for one in told.completed.migrations}
    at_end = {one.adapter: one for one in told.upgrade.migrations}
    found = []
    for adapter in told.adapters:
        one, last = by_name[adapter.name], told.last_word[adapter.name]
        answers = told.answers[adapter.name]
        found.append(
            AdapterFacts(
                name=adapter.name,
                family=adapter.family,
                benchmark=adapter.benchmark,
                peft_type=adapter.peft_type,
                rank=adapter.rank,
                skewed=adapter.skewed,
                scores=scores(answers),
                n=len(adapter.held_out),
                difference=difference(answers),
                gate=gate_word(one.decision),
                state=at_end[adapter.name].state,
                attempts=one.attempt,
                error=one.error,
                migration_s=migration_seconds(one),
                answers_from=last.base,
                answering_version=last.version,
            )
        )
    return found
