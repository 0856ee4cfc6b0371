"""The transition tables are complete, and the diagram in the docs is the tables'."""

import itertools
from pathlib import Path

import pytest

from lorebase.serving.catalog import ENDED_UPGRADE_STATES
from lorebase.transfer.upgrade.states import (
    ACTIVE_STATES,
    ENDED_STATES,
    FINAL_UPGRADE_STATES,
    MIGRATION_TABLE,
    STAGE_STATES,
    UPGRADE_TABLE,
    MigrationEvent,
    MigrationState,
    UpgradeEvent,
    UpgradeState,
    states_page,
    targets,
)
from lorebase.v1 import upgrade_pb2

ROOT = Path(__file__).parents[2]


def test_the_page_in_the_docs_is_up_to_date() -> None:
    page = ROOT / "docs" / "states.md"
    assert page.read_text() == states_page(), (
        "run `python -m lorebase.transfer.upgrade.states > docs/states.md`"
    )


def test_upgrade_states_are_those_of_the_proto() -> None:
    prefix = "UPGRADE_STATE_"
    in_proto = {name.removeprefix(prefix).lower() for name in list(upgrade_pb2.UpgradeState.keys())}
    assert in_proto - {"unspecified"} == {state.value for state in UpgradeState}


def test_every_state_and_event_is_used() -> None:
    assert {row.event for row in MIGRATION_TABLE} == set(MigrationEvent)
    assert {row.event for row in UPGRADE_TABLE} == set(UpgradeEvent)
    reached = {row.target for row in MIGRATION_TABLE} | {MigrationState.PENDING}
    assert reached == set(MigrationState)
    assert {row.target for row in UPGRADE_TABLE} == set(UpgradeState)


def test_no_way_leads_out_of_final_states() -> None:
    for table, final in ((UPGRADE_TABLE, FINAL_UPGRADE_STATES),):
        assert not {row.source for row in table} & final
    for state in (MigrationState.RETIRED, MigrationState.ABORTED):
        assert not [row for row in MIGRATION_TABLE if row.source is state]


def test_the_catalog_agrees_which_upgrades_have_ended() -> None:
    assert {s.value for s in FINAL_UPGRADE_STATES} | {"failed"} == set(ENDED_UPGRADE_STATES)


@pytest.mark.parametrize("state", sorted(ACTIVE_STATES))
def test_every_active_migration_can_be_aborted_and_can_reach_an_end(state: MigrationState) -> None:
    assert targets(MIGRATION_TABLE, state, MigrationEvent.ABORT) == (MigrationState.ABORTED,)
    seen, waiting = {state}, [state]
    while waiting:
        at = waiting.pop()
        new = {row.target for row in MIGRATION_TABLE if row.source is at} - seen
        seen |= new
        waiting += new
    assert seen & ENDED_STATES


def test_promotion_is_only_reached_through_warm_up_and_a_verdict() -> None:
    into = {row.source for row in MIGRATION_TABLE if row.target is MigrationState.PROMOTED}
    assert into == {MigrationState.READY}
    into = {row.event for row in MIGRATION_TABLE if row.target is MigrationState.SHADOWING}
    assert into == {
        MigrationEvent.GATE_PROMOTE,
        MigrationEvent.OPERATOR_PROMOTE,
        MigrationEvent.RESUME,
    }


def test_stages_follow_each_other_in_the_order_of_their_states() -> None:
    order = list(STAGE_STATES.values())
    for here, there in itertools.pairwise(order):
        assert [r for r in MIGRATION_TABLE if r.source is here and r.target is there]
