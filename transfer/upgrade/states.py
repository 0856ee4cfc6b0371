"""States of upgrades and migrations, and every legal move between them, as data.

The tables are the single source: `advance.py` refuses what they don't list, and the diagrams in
docs/states.md are generated from them. A migration has no `paused` state of its own: pausing
belongs to the upgrade, and a migration keeps the state in which it will go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)
"""A state enumeration."""
E = TypeVar("E", bound=StrEnum)
"""Its event enumeration."""


class UpgradeState(StrEnum):
    """Where a whole upgrade is; values are the lower-case names of lorebase.v1.UpgradeState."""

    STARTING_ENGINE = "starting_engine"
    MIGRATING = "migrating"
    PAUSED = "paused"
    COMPLETED = "completed"
    FINISHED = "finished"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class UpgradeEvent(StrEnum):
    """What can happen to an upgrade."""

    ENGINE_READY = "engine_ready"
    ENGINE_FAILED = "engine_failed"
    MIGRATIONS_ENDED = "migrations_ended"
    PAUSE = "pause"
    RESUME = "resume"
    REOPEN = "reopen"
    FINISH = "finish"
    ABORT = "abort"
    ROLLBACK = "rollback"


class MigrationState(StrEnum):
    """Where one adapter's migration is."""

    PENDING = "pending"
    PLANNED = "planned"
    SYNTHESIZING = "synthesizing"
    FILTERING = "filtering"
    LABELING = "labeling"
    DISTILLING = "distilling"
    EVALUATING = "evaluating"
    SHADOWING = "shadowing"
    READY = "ready"
    PROMOTED = "promoted"
    RETIRED = "retired"
    RETRYING = "retrying"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    FAILED = "failed"


class MigrationEvent(StrEnum):
    """What can happen to a migration."""

    PLANNED = "planned"
    KEPT = "kept"
    INFEASIBLE = "infeasible"
    STARTED = "started"
    FINISHED = "finished"
    STARVED = "starved"
    GATE_PROMOTE = "gate_promote"
    GATE_RETRY = "gate_retry"
    GATE_REJECT = "gate_reject"
    SWAPPED = "swapped"
    OPERATOR_PROMOTE = "operator_promote"
    ROLLBACK = "rollback"
    RETIRE = "retire"
    FAIL = "fail"
    RESUME = "resume"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Transition(Generic[S, E]):
    """One legal move. Where an event has several targets, `advance` picks by the record."""

    source: S
    event: E
    target: S


_U, _UE = UpgradeState, UpgradeEvent
_M, _ME = MigrationState, MigrationEvent

STAGE_STATES: dict[str, MigrationState] = {
    "synthesize": _M.SYNTHESIZING,
    "filter": _M.FILTERING,
    "label": _M.LABELING,
    "distill": _M.DISTILLING,
    "evaluate": _M.EVALUATING,
    "shadow": _M.SHADOWING,
    "promote": _M.READY,
}
"""Stage that runs in each working state, in order. `plan` runs in `pending`."""

STAGES: tuple[str, ...] = tuple(STAGE_STATES)

ACTIVE_STATES = frozenset(
    {_M.PENDING, _M.PLANNED, _M.RETRYING, *STAGE_STATES.values()},
)
"""The controller has something to do here."""

ENDED_STATES = frozenset(_M) - ACTIVE_STATES
"""Nothing happens here unless an operator asks for it."""

FINAL_UPGRADE_STATES = frozenset({_U.FINISHED, _U.ABORTED, _U.ROLLED_BACK})
"""No way leads out of these."""

RESTING_UPGRADE_STATES = FINAL_UPGRADE_STATES | {_U.COMPLETED, _U.FAILED}
"""The controller moves on from these only when an operator asks; a watch ends here."""


def _upgrade_rows() -> list[Transition[UpgradeState, UpgradeEvent]]:
    open_states = (_U.STARTING_ENGINE, _U.MIGRATING, _U.PAUSED, _U.FAILED)
    return [
        Transition(_U.STARTING_ENGINE, _UE.ENGINE_READY, _U.MIGRATING),
        Transition(_U.STARTING_ENGINE, _UE.ENGINE_FAILED, _U.FAILED),
        Transition(_U.STARTING_ENGINE, _UE.PAUSE, _U.PAUSED),
        Transition(_U.MIGRATING, _UE.PAUSE, _U.PAUSED),
        Transition(_U.MIGRATING, _UE.MIGRATIONS_ENDED, _U.COMPLETED),
        # Starting the engine again is a no-op when it runs, so resuming always goes through it.
        Transition(_U.PAUSED, _UE.RESUME, _U.STARTING_ENGINE),
        Transition(_U.FAILED, _UE.RESUME, _U.STARTING_ENGINE),
        # Failed migrations are taken up again, or an operator promotes a rejected one.
        Transition(_U.COMPLETED, _UE.REOPEN, _U.STARTING_ENGINE),
        Transition(_U.COMPLETED, _UE.FINISH, _U.FINISHED),
        *(Transition(s, _UE.ABORT, _U.ABORTED) for s in open_states),
        *(Transition(s, _UE.ROLLBACK, _U.ROLLED_BACK) for s in (*open_states, _U.COMPLETED)),
    ]


def _migration_rows() -> list[Transition[MigrationState, MigrationEvent]]:
    working = tuple(STAGE_STATES.values())
    return [
        Transition(_M.PENDING, _ME.PLANNED, _M.PLANNED),
        # Already on the target base: nothing of it is left on the old one.
        Transition(_M.PENDING, _ME.KEPT, _M.RETIRED),
        Transition(_M.PENDING, _ME.INFEASIBLE, _M.REJECTED),
        Transition(_M.PLANNED, _ME.STARTED, _M.SYNTHESIZING),
        Transition(_M.SYNTHESIZING, _ME.FINISHED, _M.FILTERING),
        Transition(_M.FILTERING, _ME.FINISHED, _M.LABELING),
        Transition(_M.LABELING, _ME.FINISHED, _M.DISTILLING),
        Transition(_M.DISTILLING, _ME.FINISHED, _M.EVALUATING),
        Transition(_M.EVALUATING, _ME.GATE_PROMOTE, _M.SHADOWING),
        Transition(_M.EVALUATING, _ME.GATE_RETRY, _M.RETRYING),
        Transition(_M.EVALUATING, _ME.GATE_RETRY, _M.REJECTED),  # no attempt is left
        Transition(_M.EVALUATING, _ME.GATE_REJECT, _M.REJECTED),
        # Too few usable samples: another attempt draws more.
        *(
            Transition(s, _ME.STARVED, t)
            for s in (_M.SYNTHESIZING, _M.FILTERING, _M.LABELING)
            for t in (_M.RETRYING, _M.REJECTED)
        ),
        Transition(_M.RETRYING, _ME.STARTED, _M.SYNTHESIZING),
        Transition(_M.SHADOWING, _ME.FINISHED, _M.READY),
        Transition(_M.READY, _ME.SWAPPED, _M.PROMOTED),
        Transition(_M.PROMOTED, _ME.RETIRE, _M.RETIRED),
        Transition(_M.PROMOTED, _ME.ROLLBACK, _M.ROLLED_BACK),
        Transition(_M.REJECTED, _ME.OPERATOR_PROMOTE, _M.SHADOWING),
        Transition(_M.ROLLED_BACK, _ME.OPERATOR_PROMOTE, _M.SHADOWING),
        *(Transition(s, _ME.FAIL, _M.FAILED) for s in (_M.PENDING, _M.PLANNED, *working)),
        # Goes on with the first stage that has no artifact yet.
        *(Transition(_M.FAILED, _ME.RESUME, s) for s in (_M.PENDING, *working)),
        *(Transition(s, _ME.ABORT, _M.ABORTED) for s in MigrationState if s in ACTIVE_STATES),
        Transition(_M.FAILED, _ME.ABORT, _M.ABORTED),
    ]


UPGRADE_TABLE = tuple(_upgrade_rows())
MIGRATION_TABLE = tuple(_migration_rows())


def targets(table: Sequence[Transition[S, E]], source: S, event: E) -> tuple[S, ...]:
    """Returns the states that `event` may lead to from `source`; empty if it is illegal."""
    return tuple(row.target for row in table if row.source == source and row.event == event)


def mermaid(table: Sequence[Transition[S, E]], initial: S, final: frozenset[S]) -> str:
    """Returns a Mermaid state diagram of a table; events between the same two states share a row.

    Args:
        table: the transitions.
        initial: the state that a new record has.
        final: states that nothing leads out of.
    """
    arrows: dict[tuple[S, S], list[str]] = {}
    for row in table:
        arrows.setdefault((row.source, row.target), []).append(row.event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {initial.value}"]
    lines += [f"    {s.value} --> {t.value}: {', '.join(e)}" for (s, t), e in arrows.items()]
    lines += [f"    {state.value} --> [*]" for state in sorted(final)]
    return "\n".join(lines)


def states_page() -> str:
    """Returns docs/states.md; write it with `python -m lorebase.transfer.upgrade.states`."""
    migration_final = frozenset(
        s for s in MigrationState if not any(row.source == s for row in MIGRATION_TABLE)
    )
    upgrade = mermaid(UPGRADE_TABLE, _U.STARTING_ENGINE, FINAL_UPGRADE_STATES)
    migration = mermaid(MIGRATION_TABLE, _M.PENDING, migration_final)
    return _PAGE.format(upgrade=upgrade, migration=migration)


_PAGE = """\
# States of an upgrade

Generated from the tables in `transfer/upgrade/states.py` by
`python -m lorebase.transfer.upgrade.states > docs/states.md`; don't edit by hand.

## Upgrade

```mermaid
{upgrade}
```

`completed` means that every migration has ended and the rollback window is open; `finish` closes
it. `failed` and `paused` are left with `resume`.

## Migration (one adapter of an upgrade)

```mermaid
{migration}
```

`rejected`: the old version keeps answering, and an operator decides. `failed`: infrastructure
trouble that outlived its retries; `resume` goes on with the first stage that has no artifact.
Pausing belongs to the upgrade: a migration keeps its state meanwhile.
"""

if __name__ == "__main__":
    print(states_page(), end="")
