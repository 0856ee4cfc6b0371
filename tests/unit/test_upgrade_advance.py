"""`advance` keeps its promises whatever happens, in whatever order, with crashes in between."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorebase.serving.catalog.records import Migration
from lorebase.serving.errors import FailedPreconditionError
from lorebase.transfer.upgrade.advance import (
    CARRIED,
    CARRIED_INPUTS,
    OPERATOR,
    Effect,
    Happened,
    RunStage,
    SetRoute,
    StaleEventError,
    advance,
    advance_upgrade,
    automatic,
    due,
)
from lorebase.transfer.upgrade.states import (
    ACTIVE_STATES,
    MIGRATION_TABLE,
    STAGES,
    MigrationEvent,
    MigrationState,
    UpgradeEvent,
    UpgradeState,
)

from .upgrade_samples import sample_migration, sample_upgrade

MAX_ATTEMPTS = 3
E, S = MigrationEvent, MigrationState
GATE = {"promote": E.GATE_PROMOTE, "retry": E.GATE_RETRY, "reject": E.GATE_REJECT}


def made_by(run: RunStage) -> str:
    """What a stage makes: a function of its key, as in the real ones."""
    return "sha256:" + hashlib.sha256(run.key.encode()).hexdigest()


def outcome(run: RunStage, event: MigrationEvent = E.FINISHED, **changes: object) -> Happened:
    made = made_by(run)
    values: dict[str, object] = {
        "event": event,
        "at": 1.0,
        "stage": run.stage,
        "attempt": run.attempt,
        "artifact": made,
    }
    if run.stage == "distill":
        values["shadow_version"] = "v-" + made[7:19]
    if run.stage == "evaluate":
        verdict = next(name for name, gate in GATE.items() if gate is event)
        values["decision"] = {"verdict": verdict, "n": 100}
    return Happened(**(values | changes))  # type: ignore[arg-type]


def go(record: Migration, happened: Happened) -> tuple[Migration, tuple[Effect, ...]]:
    return advance(record, happened, max_attempts=MAX_ATTEMPTS)


def run_of(record: Migration) -> RunStage:
    run = due(record)
    assert run is not None
    return run


def walk(record: Migration, *verdicts: str) -> Migration:
    """Runs all stages with good outcomes; the gate says `verdicts`, one an attempt."""
    words = list(verdicts)
    while MigrationState(record.state) in ACTIVE_STATES:
        event = automatic(record)
        if event is not None:
            record, _ = go(record, Happened(event=event, at=1.0))
            continue
        run = run_of(record)
        if run.stage == "plan":
            happened = Happened(event=E.PLANNED, at=1.0, path="distill")
        elif run.stage == "evaluate":
            happened = outcome(run, GATE[words.pop(0)])
        elif run.stage == "promote":
            happened = outcome(run, E.SWAPPED, artifact=None)
        else:
            happened = outcome(run)
        record, _ = go(record, happened)
    return record


def test_a_good_migration_ends_promoted_with_every_artifact() -> None:
    record = walk(sample_migration(), "promote")
    assert record.state == S.PROMOTED
    assert set(record.artifacts) == set(STAGES) - {"promote"}
    assert record.attempt == 1
    assert record.shadow_version is not None


def test_swap_and_rollback_set_the_route_in_the_records_transaction() -> None:
    record = walk(sample_migration(), "promote")
    ready = replace(record, state=S.READY.value)
    _, effects = go(ready, outcome(run_of(ready), E.SWAPPED, artifact=None))
    assert effects == (SetRoute(version_id=str(record.shadow_version), reason="promote"),)
    back, effects = go(record, Happened(event=E.ROLLBACK, at=2.0))
    assert back.state == S.ROLLED_BACK
    assert effects == (SetRoute(version_id="v-source", reason="rollback"),)


def test_a_retry_raises_the_attempt_and_carries_the_labels_over() -> None:
    first = walk(sample_migration(), "retry", "promote")
    assert first.state == S.PROMOTED
    assert first.attempt == 2
    label_of_first = made_by(RunStage(migration_id="m-1", stage="label", attempt=1))
    assert first.artifacts[CARRIED] == label_of_first
    assert first.artifacts["label"] != label_of_first


def test_retries_are_bounded_and_end_in_a_rejection_with_the_reason() -> None:
    record = walk(sample_migration(), *["retry"] * MAX_ATTEMPTS)
    assert record.state == S.REJECTED
    assert record.attempt == MAX_ATTEMPTS
    assert record.source_version == "v-source"


def test_a_starved_stage_tries_again_without_artifacts_to_carry() -> None:
    record = sample_migration(state="filtering", artifacts={"synthesize": "sha256:1"})
    record, _ = go(record, outcome(run_of(record), E.STARVED, artifact=None, reason="too few"))
    assert (record.state, record.error) == (S.RETRYING, "too few")
    record, _ = go(record, Happened(event=E.STARTED, at=1.0))
    assert (record.state, record.attempt, dict(record.artifacts)) == (S.SYNTHESIZING, 2, {})


def test_filtered_inputs_outlive_an_attempt_that_starved_before_labels() -> None:
    record = sample_migration(state="filtering", artifacts={"synthesize": "sha256:1"})
    starved = outcome(run_of(record), E.STARVED, artifact="sha256:kept", reason="too few")
    record, _ = go(record, starved)
    record, _ = go(record, Happened(event=E.STARTED, at=1.0))
    assert dict(record.artifacts) == {CARRIED_INPUTS: "sha256:kept"}
    # Once they are labelled, the labels are all that is needed.
    record = replace(
        record, state=S.RETRYING.value, artifacts={**record.artifacts, "label": "sha256:l"}
    )
    record, _ = go(record, Happened(event=E.STARTED, at=1.0))
    assert dict(record.artifacts) == {CARRIED: "sha256:l"}


def test_an_outcome_of_another_stage_or_attempt_is_stale() -> None:
    record = sample_migration(state="labeling", attempt=2)
    for stale in (
        RunStage(migration_id="m-1", stage="label", attempt=1),
        RunStage(migration_id="m-1", stage="filter", attempt=2),
    ):
        with pytest.raises(StaleEventError, match="labeling"):
            go(record, outcome(stale))


def test_an_illegal_event_names_what_is_possible() -> None:
    with pytest.raises(FailedPreconditionError, match=r"possible: .*planned"):
        go(sample_migration(), Happened(event=E.ROLLBACK, at=0.0))


def test_an_operator_can_promote_a_rejected_shadow_but_not_a_missing_one() -> None:
    rejected = walk(sample_migration(), "reject")
    record, _ = go(rejected, Happened(event=E.OPERATOR_PROMOTE, at=1.0))
    assert record.state == S.SHADOWING
    assert record.decision == {**(rejected.decision or {}), OPERATOR: True}
    infeasible = sample_migration(state="rejected", error="no transfer kit")
    with pytest.raises(FailedPreconditionError, match="no transfer kit"):
        go(infeasible, Happened(event=E.OPERATOR_PROMOTE, at=1.0))


@pytest.mark.parametrize("stage", STAGES)
def test_a_failed_migration_resumes_at_the_first_unfinished_stage(stage: str) -> None:
    done = {one: f"sha256:{one}" for one in STAGES[: STAGES.index(stage)]}
    running = sample_migration(
        state={
            "synthesize": "synthesizing",
            "filter": "filtering",
            "label": "labeling",
            "distill": "distilling",
            "evaluate": "evaluating",
            "shadow": "shadowing",
            "promote": "ready",
        }[stage],
        artifacts=done,
    )
    failed, effects = go(running, Happened(event=E.FAIL, at=1.0, reason="disk full"))
    assert (failed.state, failed.error, effects) == (S.FAILED, "disk full", ())
    resumed, _ = go(failed, Happened(event=E.RESUME, at=2.0))
    assert resumed.error is None
    expected = "plan" if stage == "synthesize" else stage
    assert run_of(resumed).stage == expected
    assert dict(resumed.artifacts) == done


@given(
    crash_after=st.sets(st.integers(0, 40)),
    verdicts=st.lists(st.sampled_from(["retry", "promote", "reject"]), min_size=3, max_size=3),
)
def test_crashes_anywhere_change_nothing_about_the_result(
    crash_after: set[int], verdicts: list[str]
) -> None:
    """A crash loses an outcome that was not saved: the stage runs again, with the same key."""
    smooth = walk(sample_migration(), *verdicts)
    record, words, step = sample_migration(), list(verdicts), 0
    runs: list[str] = []
    while MigrationState(record.state) in ACTIVE_STATES:
        step += 1
        event = automatic(record)
        if event is not None:
            record, _ = go(record, Happened(event=event, at=1.0))
            continue
        run = run_of(record)
        runs.append(run.key)
        if step in crash_after:
            continue  # killed before the record was saved: nothing but the store has changed
        if run.stage == "plan":
            happened = Happened(event=E.PLANNED, at=1.0, path="distill")
        elif run.stage == "evaluate":
            happened = outcome(run, GATE[words[run.attempt - 1]])
        elif run.stage == "promote":
            happened = outcome(run, E.SWAPPED, artifact=None)
        else:
            happened = outcome(run)
        record, _ = go(record, happened)
    assert record == smooth
    # Only a stage that was running at a crash ran twice.
    assert len(runs) - len(set(runs)) <= len(crash_after)


class MigrationMachine(RuleBasedStateMachine):
    """Any event at any time, from stages, operators and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.record = sample_migration()
        self.route = "v-source"
        self.history: list[tuple[MigrationState, MigrationState]] = []

    def apply(self, happened: Happened) -> bool:
        before = self.record
        try:
            after, effects = go(before, happened)
        except (FailedPreconditionError, StaleEventError):
            return False
        self.record = after
        self.history.append((MigrationState(before.state), MigrationState(after.state)))
        for effect in effects:
            if isinstance(effect, SetRoute):
                self.route = effect.version_id
        return True

    @rule(
        event=st.sampled_from(list(MigrationEvent)),
        stage=st.sampled_from([*STAGES, None]),
        attempt=st.integers(1, MAX_ATTEMPTS + 1),
    )
    def anything(self, event: MigrationEvent, stage: str | None, attempt: int) -> None:
        if event in (E.GATE_PROMOTE, E.GATE_RETRY, E.GATE_REJECT):
            return  # the gate's words come with a decision, below
        if event is E.FINISHED and stage == "distill":
            return  # so does a version
        self.apply(Happened(event=event, at=1.0, stage=stage, attempt=attempt, artifact="sha256:x"))

    @precondition(lambda self: due(self.record) is not None)
    @rule(verdict=st.sampled_from(["promote", "retry", "reject"]))
    def stage_ends_well(self, verdict: str) -> None:
        run = run_of(self.record)
        if run.stage == "plan":
            assert self.apply(Happened(event=E.PLANNED, at=1.0, path="distill"))
        elif run.stage == "evaluate":
            assert self.apply(outcome(run, GATE[verdict]))
        elif run.stage == "promote":
            assert self.apply(outcome(run, E.SWAPPED, artifact=None))
        else:
            assert self.apply(outcome(run))

    @precondition(lambda self: automatic(self.record) is not None)
    @rule()
    def goes_on_by_itself(self) -> None:
        event = automatic(self.record)
        assert event is not None
        assert self.apply(Happened(event=event, at=1.0))

    @precondition(lambda self: self.record.state == S.FAILED)
    @rule()
    def operator_resumes(self) -> None:
        assert self.apply(Happened(event=E.RESUME, at=1.0))

    @invariant()
    def every_move_is_in_the_table(self) -> None:
        legal = {(row.source, row.target) for row in MIGRATION_TABLE}
        assert set(self.history) <= legal

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert 1 <= self.record.attempt <= MAX_ATTEMPTS

    @invariant()
    def an_active_record_always_has_something_to_do(self) -> None:
        active = MigrationState(self.record.state) in ACTIVE_STATES
        has_work = due(self.record) is not None or automatic(self.record) is not None
        assert active == has_work

    @invariant()
    def promotion_has_a_warrant(self) -> None:
        if self.record.state in (S.PROMOTED, S.READY, S.SHADOWING):
            decision = self.record.decision or {}
            assert decision.get("verdict") == "promote" or decision.get(OPERATOR) is True

    @invariant()
    def the_route_follows_the_state(self) -> None:
        if self.record.state == S.PROMOTED:
            assert self.route == self.record.shadow_version
        elif self.record.state != S.RETIRED:
            assert self.route == self.record.source_version


TestMigrationMachine = MigrationMachine.TestCase
TestMigrationMachine.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much],
)


def test_upgrades_end_once_and_say_when() -> None:
    done = advance_upgrade(sample_upgrade(), UpgradeEvent.MIGRATIONS_ENDED, at=5.0)
    assert (done.state, done.ended_at) == (UpgradeState.COMPLETED, None)
    finished = advance_upgrade(done, UpgradeEvent.FINISH, at=9.0, error="engine kept")
    assert (finished.state, finished.ended_at, finished.error) == ("finished", 9.0, "engine kept")
    with pytest.raises(FailedPreconditionError, match="it has ended"):
        advance_upgrade(finished, UpgradeEvent.ROLLBACK, at=10.0)


def test_a_failed_upgrade_can_be_resumed_and_is_open_again() -> None:
    failed = advance_upgrade(
        sample_upgrade(state="starting_engine"), UpgradeEvent.ENGINE_FAILED, at=5.0, error="oom"
    )
    assert (failed.state, failed.ended_at, failed.error) == ("failed", 5.0, "oom")
    again = advance_upgrade(failed, UpgradeEvent.RESUME, at=6.0)
    assert (again.state, again.ended_at, again.error) == ("starting_engine", None, None)
