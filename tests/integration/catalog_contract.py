"""What a catalog promises on every database; run on SQLite and on Postgres.

Subclasses provide a `catalog` fixture with an empty catalog.
"""

from dataclasses import replace

import pytest

from lorebase.serving.catalog import Catalog, NewEvent
from lorebase.serving.catalog.records import NEXT_KIT
from lorebase.serving.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.integration.catalog_samples import (
    adapter,
    base,
    digest,
    migration,
    two_bases,
    upgrade,
    version,
)

NAME = "acme/triage"


def _with_adapter(catalog: Catalog, name: str = NAME) -> None:
    two_bases(catalog)
    catalog.create_adapter(adapter(name), version(name))


class BasesContract:
    def test_a_base_comes_back_as_it_was_put(self, catalog: Catalog) -> None:
        catalog.put_base(base("old"))
        assert catalog.get_base("old") == base("old")
        assert catalog.list_bases() == [base("old")]

    def test_putting_the_same_revision_again_only_moves_its_path(self, catalog: Catalog) -> None:
        catalog.put_base(base("old"))
        catalog.put_base(replace(base("old"), path="/elsewhere", created_at=99.0))
        assert catalog.get_base("old") == replace(base("old"), path="/elsewhere")

    def test_other_weights_under_a_known_base_id_are_refused(self, catalog: Catalog) -> None:
        catalog.put_base(base("old"))
        with pytest.raises(AlreadyExistsError, match="registered with revision r1, got r2"):
            catalog.put_base(base("old", revision="r2"))

    def test_an_unknown_base_is_named_with_those_that_exist(self, catalog: Catalog) -> None:
        catalog.put_base(base("old"))
        with pytest.raises(NotFoundError, match=r"unknown base 'nope': registered are old"):
            catalog.get_base("nope")

    def test_current_and_serving_bases_show_in_the_route_table(self, catalog: Catalog) -> None:
        assert catalog.current_base() is None
        assert catalog.serving_bases() == ()
        two_bases(catalog)
        table = catalog.route_table(str)
        assert (catalog.current_base(), catalog.serving_bases()) == ("old", ("old", "new"))
        assert (table.current_base, table.serving_bases) == ("old", ("old", "new"))

    def test_each_change_of_the_serving_bases_is_a_new_revision(self, catalog: Catalog) -> None:
        two_bases(catalog)
        before = catalog.route_revision()
        assert catalog.set_serving("new", False) == before + 1
        assert catalog.route_revision() == before + 1
        catalog.set_current_base("new")
        assert catalog.route_revision() == before + 2

    def test_a_base_with_routes_can_not_stop_serving(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        before = catalog.route_revision()
        with pytest.raises(FailedPreconditionError, match="1 adapters are routed to it"):
            catalog.set_serving("old", False)
        assert catalog.serving_bases() == ("old", "new")
        assert catalog.route_revision() == before


class AdaptersContract:
    def test_creating_an_adapter_makes_adapter_version_and_route(self, catalog: Catalog) -> None:
        two_bases(catalog)
        revision = catalog.create_adapter(adapter(NAME, kit_digest=digest("kit")), version(NAME))
        assert catalog.get_adapter(NAME) == adapter(NAME, kit_digest=digest("kit"))
        assert catalog.versions_of(NAME) == [version(NAME)]
        assert catalog.get_version(version(NAME).id) == version(NAME)
        table = catalog.route_table(lambda of: f"/store/{of[-4:]}")
        assert table.revision == revision
        assert table.routes[NAME].stable == version(NAME).id
        assert table.versions[version(NAME).id].path == f"/store/{version(NAME).digest[-4:]}"
        (change,) = catalog.route_changes()
        assert (change.revision, change.adapter, change.reason) == (revision, NAME, "create")
        assert (change.version_id, change.base_id) == (version(NAME).id, "old")

    def test_a_taken_name_is_refused_and_nothing_changes(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        before = catalog.route_table(str)
        with pytest.raises(AlreadyExistsError, match="'acme/triage' exists already"):
            catalog.create_adapter(adapter(NAME), version(NAME, content="other"))
        assert catalog.route_table(str) == before

    def test_a_repeated_request_returns_the_first_result(self, catalog: Catalog) -> None:
        two_bases(catalog)
        first = catalog.create_adapter(adapter(NAME), version(NAME), request_id="q1")
        again = catalog.create_adapter(adapter(NAME), version(NAME), request_id="q1")
        assert (again, catalog.route_revision()) == (first, first)
        assert catalog.find_request("q1") == NAME
        assert catalog.find_request("q2") is None

    def test_a_request_id_is_not_good_for_another_name(self, catalog: Catalog) -> None:
        two_bases(catalog)
        catalog.create_adapter(adapter(NAME), version(NAME), request_id="q1")
        with pytest.raises(AlreadyExistsError, match="was used to create 'acme/triage'"):
            catalog.create_adapter(adapter("acme/b"), version("acme/b"), request_id="q1")

    def test_an_unknown_base_leaves_no_adapter_behind(self, catalog: Catalog) -> None:
        two_bases(catalog)
        with pytest.raises(NotFoundError, match="unknown base 'third'"):
            catalog.create_adapter(adapter(NAME), version(NAME, "third"))
        with pytest.raises(NotFoundError):
            catalog.get_adapter(NAME)
        assert catalog.route_changes() == []

    @pytest.mark.parametrize("name", ["triage", "Acme/x", "a/b/c", "acme/", "acme/x@y", "a/" * 70])
    def test_bad_names_are_refused(self, catalog: Catalog, name: str) -> None:
        two_bases(catalog)
        with pytest.raises(InvalidArgumentError, match="adapter name"):
            catalog.create_adapter(adapter(name), version(name))

    def test_the_tenant_must_be_the_names_own(self, catalog: Catalog) -> None:
        two_bases(catalog)
        with pytest.raises(InvalidArgumentError, match="expected 'acme'"):
            catalog.create_adapter(adapter(NAME, tenant="evil"), version(NAME))

    def test_a_version_id_that_does_not_follow_from_content_is_refused(
        self, catalog: Catalog
    ) -> None:
        _with_adapter(catalog)
        forged = replace(version(NAME, content="other"), id=version(NAME).id)
        with pytest.raises(InvalidArgumentError, match="must follow from content"):
            catalog.add_version(forged)
        assert catalog.get_version(version(NAME).id) == version(NAME)

    def test_adding_a_version_is_idempotent_and_seen_by_gateways(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        before = catalog.route_revision()
        shadow = version(NAME, "new")
        catalog.add_version(shadow)
        catalog.add_version(shadow)
        assert catalog.versions_of(NAME) == [version(NAME), shadow]
        table = catalog.route_table(str)
        assert table.revision == before + 1
        assert table.versions_of[NAME] == (version(NAME).id, shadow.id)
        assert table.routes[NAME].stable == version(NAME).id

    def test_a_version_needs_its_adapter(self, catalog: Catalog) -> None:
        two_bases(catalog)
        with pytest.raises(NotFoundError, match="unknown adapter"):
            catalog.add_version(version(NAME))
        with pytest.raises(NotFoundError, match="unknown adapter"):
            catalog.versions_of(NAME)
        with pytest.raises(NotFoundError, match="unknown adapter version"):
            catalog.get_version(version(NAME).id)

    def test_kit_and_evaluation_set_are_attached_one_by_one(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        catalog.set_kit(NAME, kit_digest=digest("kit"), evaluation_digest=None)
        got = catalog.set_kit(NAME, kit_digest=None, evaluation_digest=digest("eval"))
        assert (got.kit_digest, got.evaluation_digest) == (digest("kit"), digest("eval"))
        assert got.record_version == 3
        with pytest.raises(NotFoundError):
            catalog.set_kit("acme/none", kit_digest=digest("kit"), evaluation_digest=None)

    def test_pages_go_through_all_adapters_by_name(self, catalog: Catalog) -> None:
        two_bases(catalog)
        names = ["acme/a", "acme/b", "acme/c", "zeta/a"]
        for name in reversed(names):
            catalog.create_adapter(adapter(name), version(name))
        assert [one.name for one in catalog.list_adapters(limit=2)] == names[:2]
        assert [one.name for one in catalog.list_adapters(after="acme/b")] == names[2:]
        assert [one.name for one in catalog.list_adapters(tenant="zeta")] == ["zeta/a"]
        with pytest.raises(InvalidArgumentError, match="page size 0"):
            catalog.list_adapters(limit=0)

    def test_a_deleted_adapter_leaves_only_history_and_its_name_is_free(
        self, catalog: Catalog
    ) -> None:
        _with_adapter(catalog)
        catalog.add_version(version(NAME, "new"))
        revision = catalog.delete_adapter(NAME)
        table = catalog.route_table(str)
        assert (table.revision, dict(table.routes), dict(table.versions)) == (revision, {}, {})
        with pytest.raises(NotFoundError):
            catalog.get_adapter(NAME)
        catalog.create_adapter(adapter(NAME), version(NAME))
        changes = catalog.route_changes(adapter=NAME)
        assert [change.reason for change in changes] == ["create", "delete", "create"]
        assert changes[1].version_id is None

    def test_deleting_checks_the_record_version(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        with pytest.raises(ConflictError, match="at record version 1, expected 7"):
            catalog.delete_adapter(NAME, record_version=7)
        catalog.delete_adapter(NAME, record_version=1)
        with pytest.raises(NotFoundError):
            catalog.delete_adapter(NAME)

    def test_all_that_rows_name_is_kept_from_garbage_collection(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        catalog.set_kit(NAME, kit_digest=digest("kit"), evaluation_digest=digest("eval"))
        artifacts = {"filter": digest("kept"), "note": "no digest"}
        catalog.create_upgrade(upgrade(), [migration(NAME, artifacts=artifacts)])
        moved = replace(
            version(NAME, content="moved"),
            provenance={NEXT_KIT: digest("next kit"), "seed": 1, "base_revision": digest("other")},
        )
        catalog.add_version(moved)
        expected = {version(NAME).digest, digest("kit"), digest("eval"), digest("kept")}
        assert catalog.referenced_digests() == expected | {moved.digest, digest("next kit")}


class UpgradesContract:
    def test_an_upgrade_comes_back_with_its_migrations_and_first_event(
        self, catalog: Catalog
    ) -> None:
        two_bases(catalog)
        shares = [migration("acme/b"), migration("acme/a", artifacts={"plan": digest("p")})]
        stored = catalog.create_upgrade(upgrade(), shares)
        assert stored == upgrade()
        assert catalog.get_upgrade("up-1") == catalog.get_upgrade(None) == stored
        assert catalog.migrations_of("up-1") == shares
        (event,) = catalog.events("up-1")
        assert (event.kind, event.data) == ("upgrade_state", {"from": None, "to": "migrating"})

    def test_a_second_active_upgrade_is_refused_until_the_first_ends(
        self, catalog: Catalog
    ) -> None:
        two_bases(catalog)
        first = catalog.create_upgrade(upgrade(), [])
        with pytest.raises(FailedPreconditionError, match="'up-1' to 'new' is migrating"):
            catalog.create_upgrade(upgrade("up-2"), [])
        assert catalog.active_upgrade() == first
        for number, state in enumerate(["finished", "aborted", "rolled_back", "failed"], 1):
            running = catalog.active_upgrade()
            assert running is not None
            ended = catalog.save_upgrade(replace(running, state=state))
            assert ended.ended_at is not None
            assert catalog.active_upgrade() is None
            catalog.create_upgrade(upgrade(f"next-{number}"), [])

    def test_an_ended_upgrade_can_not_come_back_beside_another(self, catalog: Catalog) -> None:
        two_bases(catalog)
        ended = catalog.create_upgrade(upgrade(state="failed"), [])
        catalog.create_upgrade(upgrade("up-2"), [])
        with pytest.raises(FailedPreconditionError, match="only one upgrade may run"):
            catalog.save_upgrade(replace(ended, state="migrating"))

    def test_a_repeated_request_returns_the_first_upgrade(self, catalog: Catalog) -> None:
        two_bases(catalog)
        first = catalog.create_upgrade(upgrade(request_id="q"), [migration("acme/a")])
        again = catalog.create_upgrade(upgrade("up-2", request_id="q"), [])
        assert again == first
        assert [one.id for one in catalog.list_upgrades()] == ["up-1"]

    def test_malformed_upgrades_are_refused(self, catalog: Catalog) -> None:
        two_bases(catalog)
        with pytest.raises(InvalidArgumentError, match="to itself"):
            catalog.create_upgrade(upgrade(to_base="old"), [])
        with pytest.raises(InvalidArgumentError, match="belong to another upgrade"):
            catalog.create_upgrade(upgrade(), [migration("acme/a", upgrade_id="up-9")])
        twice = [migration("acme/a"), migration("acme/a", id="m2")]
        with pytest.raises(InvalidArgumentError, match="two migrations"):
            catalog.create_upgrade(upgrade(), twice)
        with pytest.raises(NotFoundError, match="unknown base"):
            catalog.create_upgrade(upgrade(to_base="third"), [])
        assert catalog.list_upgrades() == []

    def test_upgrades_are_listed_newest_first_in_pages(self, catalog: Catalog) -> None:
        two_bases(catalog)
        for number in range(5):
            catalog.create_upgrade(upgrade(f"up-{number}", state="finished"), [])
        page = catalog.list_upgrades(limit=2)
        assert [one.id for one in page] == ["up-4", "up-3"]
        rest = catalog.list_upgrades(after="up-3")
        assert [one.id for one in rest] == ["up-2", "up-1", "up-0"]

    def test_saving_is_compare_and_set(self, catalog: Catalog) -> None:
        two_bases(catalog)
        stored = catalog.create_upgrade(upgrade(), [])
        event = NewEvent(upgrade_id="up-1", kind="upgrade_state", data={"to": "paused"})
        saved = catalog.save_upgrade(replace(stored, state="paused"), event=event)
        assert (saved.state, saved.record_version) == ("paused", 2)
        with pytest.raises(ConflictError, match="at record version 2, expected 1"):
            catalog.save_upgrade(replace(stored, state="aborted"), event=event)
        assert catalog.get_upgrade("up-1") == saved
        assert len(catalog.events("up-1")) == 2
        with pytest.raises(NotFoundError, match="unknown upgrade 'up-9'"):
            catalog.save_upgrade(replace(stored, id="up-9", state="aborted"))

    def test_busy_seconds_add_up_beside_saves_of_older_records(self, catalog: Catalog) -> None:
        two_bases(catalog)
        stored = catalog.create_upgrade(upgrade(), [])
        catalog.add_busy_seconds("up-1", 1.5)
        saved = catalog.save_upgrade(replace(stored, error="late"))
        catalog.add_busy_seconds("up-1", 2.0)
        assert saved.background_busy_s == 1.5
        assert catalog.get_upgrade("up-1").background_busy_s == 3.5
        assert catalog.get_upgrade("up-1").record_version == saved.record_version
        with pytest.raises(NotFoundError):
            catalog.add_busy_seconds("up-9", 1.0)

    def test_events_come_after_a_mark_in_order(self, catalog: Catalog) -> None:
        two_bases(catalog)
        catalog.create_upgrade(upgrade(), [])
        for number in range(4):
            catalog.append_event(NewEvent(upgrade_id="up-1", kind="note", data={"n": number}))
        first, *rest = catalog.events("up-1")
        assert catalog.events("up-1", after=first.id) == rest
        assert [event.data["n"] for event in rest] == [0, 1, 2, 3]
        assert [event.id for event in rest] == sorted(event.id for event in rest)
        assert catalog.events("up-1", limit=2) == [first, rest[0]]
        with pytest.raises(NotFoundError, match="unknown upgrade 'up-9'"):
            catalog.append_event(NewEvent(upgrade_id="up-9", kind="note"))

    def test_values_that_json_can_not_hold_are_refused_whole(self, catalog: Catalog) -> None:
        two_bases(catalog)
        stored = catalog.create_upgrade(upgrade(), [])
        bad = NewEvent(upgrade_id="up-1", kind="note", data={"score": float("nan")})
        with pytest.raises(InvalidArgumentError, match="can't be stored"):
            catalog.save_upgrade(replace(stored, state="paused"), event=bad)
        assert catalog.get_upgrade("up-1") == stored


class SwapContract:
    def _migrating(self, catalog: Catalog) -> None:
        _with_adapter(catalog)
        catalog.add_version(version(NAME, "new"))
        catalog.create_upgrade(upgrade(), [migration(NAME, shadow_version=version(NAME, "new").id)])

    def test_promotion_moves_the_route_with_the_migration(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        (ready,) = catalog.migrations_of("up-1")
        shadow = version(NAME, "new")
        done = NewEvent(upgrade_id="up-1", adapter=NAME, kind="migration_state", data={"to": "x"})
        saved, revision = catalog.save_migration(
            replace(ready, state="promoted"), events=[done], promote_to=shadow.id
        )
        assert (saved.state, saved.record_version) == ("promoted", 2)
        table = catalog.route_table(str)
        assert table.revision == revision
        assert table.routes[NAME].stable == shadow.id
        change = catalog.route_changes(after=(revision or 0) - 1)[0]
        assert (change.version_id, change.base_id) == (shadow.id, "new")
        state, swap = catalog.events("up-1")[-2:]
        assert (state.kind, swap.kind, swap.adapter) == ("migration_state", "swap", NAME)
        assert swap.data == {
            "revision": revision,
            "from_version": version(NAME).id,
            "to_version": shadow.id,
            "to_base": "new",
            "reason": "promote",
        }

    def test_rollback_is_the_same_move_backwards(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        (record,) = catalog.migrations_of("up-1")
        record, up = catalog.save_migration(record, promote_to=version(NAME, "new").id)
        record, down = catalog.save_migration(
            record, promote_to=version(NAME).id, route_reason="rollback"
        )
        assert (down or 0) > (up or 0)
        assert catalog.route_table(str).routes[NAME].stable == version(NAME).id
        assert [change.reason for change in catalog.route_changes()][-1] == "rollback"

    def test_without_promotion_no_route_moves(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        before = catalog.route_table(str)
        (record,) = catalog.migrations_of("up-1")
        decision = {"verdict": "promote", "n": 200, "interval_low": -0.01}
        labels = {"label": digest("l")}
        changed = replace(record, state="ready", decision=decision, artifacts=labels)
        saved, revision = catalog.save_migration(changed)
        assert revision is None
        assert catalog.migrations_of("up-1") == [saved]
        assert (saved.decision, saved.artifacts) == (decision, labels)
        assert catalog.route_table(str) == before

    def test_a_lost_race_moves_nothing(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        (record,) = catalog.migrations_of("up-1")
        catalog.save_migration(replace(record, state="aborted"))
        before, events = catalog.route_table(str), catalog.events("up-1")
        with pytest.raises(ConflictError, match="at record version 2, expected 1"):
            catalog.save_migration(record, promote_to=version(NAME, "new").id)
        assert catalog.route_table(str) == before
        assert catalog.events("up-1") == events

    def test_an_adapter_that_was_replaced_meanwhile_keeps_its_own_route(
        self, catalog: Catalog
    ) -> None:
        self._migrating(catalog)
        (record,) = catalog.migrations_of("up-1")
        catalog.delete_adapter(NAME)
        with pytest.raises(NotFoundError, match="was deleted"):
            catalog.save_migration(record, promote_to=version(NAME, "new").id)
        catalog.create_adapter(adapter(NAME), version(NAME, content="retrained"))
        catalog.add_version(version(NAME, "new"))
        with pytest.raises(FailedPreconditionError, match="replaced meanwhile"):
            catalog.save_migration(record, promote_to=version(NAME, "new").id)
        stable = catalog.route_table(str).routes[NAME].stable
        assert stable == version(NAME, content="retrained").id

    def test_a_route_never_leads_to_a_base_without_engine(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        catalog.set_serving("new", False)
        (record,) = catalog.migrations_of("up-1")
        with pytest.raises(FailedPreconditionError, match="which no engine serves"):
            catalog.save_migration(record, promote_to=version(NAME, "new").id)
        assert catalog.migrations_of("up-1") == [record]

    def test_a_migration_routes_only_to_its_own_versions(self, catalog: Catalog) -> None:
        self._migrating(catalog)
        catalog.create_adapter(adapter("acme/b"), version("acme/b"))
        (record,) = catalog.migrations_of("up-1")
        with pytest.raises(InvalidArgumentError, match="expected its source"):
            catalog.save_migration(record, promote_to=version("acme/b").id)
        missing = replace(record, shadow_version=version(NAME, "new", "unsaved").id)
        with pytest.raises(NotFoundError, match="add_version must come first"):
            catalog.save_migration(missing, promote_to=missing.shadow_version)


class CatalogContract(BasesContract, AdaptersContract, UpgradesContract, SwapContract):
    """All of it."""
