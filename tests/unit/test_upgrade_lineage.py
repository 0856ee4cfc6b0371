"""Each gate sees one hop; together they may have drifted far."""

from dataclasses import replace
from typing import Any, cast

import pytest

from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import AdapterVersion, Migration
from lorebase.serving.errors import NotFoundError
from lorebase.transfer.upgrade.lineage import MAX_HOPS, drift, lineage

from .upgrade_samples import sample_migration

UPLOADED = AdapterVersion(
    id="v-0",
    adapter="a/one",
    base_id="base-0",
    digest="d",
    peft_type="LORA",
    rank=4,
    target_modules=("q_proj",),
    origin="upload",
    created_at=0.0,
)


def made(number: int, **provenance: Any) -> AdapterVersion:
    said = {"upgrade": f"u-{number}", "source_version": f"v-{number - 1}"} | provenance
    return replace(UPLOADED, id=f"v-{number}", base_id=f"base-{number}", provenance=said)


class FakeCatalog:
    """Versions v-0, v-1, ... each made by the upgrade of its number, a point worse every time."""

    def __init__(self, versions: int) -> None:
        self.versions = {"v-0": UPLOADED} | {f"v-{n}": made(n) for n in range(1, versions)}

    def get_version(self, version_id: str) -> AdapterVersion:
        if version_id not in self.versions:
            raise NotFoundError(version_id)
        return self.versions[version_id]

    def migrations_of(self, upgrade_id: str) -> list[Migration]:
        decision = {"difference": -0.01, "interval_low": -0.03, "n": 200, "reason": "long"}
        shadow = upgrade_id.replace("u-", "v-")
        others = sample_migration(shadow_version="v-other", decision={"difference": 1.0})
        return [others, sample_migration(shadow_version=shadow, decision=decision)]


def hops_of(catalog: FakeCatalog, version: str) -> tuple[dict[str, Any], ...]:
    return lineage(cast(Catalog, catalog), catalog.get_version(version))


def test_an_uploaded_version_has_no_hops_behind_it() -> None:
    assert hops_of(FakeCatalog(1), "v-0") == ()


def test_hops_are_told_from_the_first_on_with_what_their_gates_saw() -> None:
    first, second = hops_of(FakeCatalog(3), "v-2")
    assert first == {
        "version": "v-1",
        "base": "base-1",
        "from_base": "base-0",
        "n": 200,
        "difference": -0.01,
        "interval_low": -0.03,
    }
    assert (second["from_base"], second["base"]) == ("base-1", "base-2")


def test_a_version_that_is_gone_ends_the_list_and_so_does_its_bound() -> None:
    catalog = FakeCatalog(MAX_HOPS + 9)
    assert len(hops_of(catalog, f"v-{MAX_HOPS + 8}")) == MAX_HOPS
    del catalog.versions["v-1"]
    assert [one["version"] for one in hops_of(catalog, "v-4")] == ["v-3", "v-4"]


def test_losses_of_a_point_each_add_up() -> None:
    hops = hops_of(FakeCatalog(4), "v-3")
    assert drift(hops) == (
        "over 3 hops (base-0 -> base-1 -> base-2 -> base-3) the differences add up to -0.030, at "
        "worst -0.090"
    )
    assert drift(hops[:1]) == ""
    unseen = [{name: hops[0][name] for name in ("version", "base", "from_base")}, hops[1]]
    assert drift(unseen).endswith("(1 of them were measured)")


@pytest.mark.parametrize("provenance", [{"upgrade": None}, {"source_version": 7}])
def test_provenance_that_names_no_hop_is_none(provenance: dict[str, Any]) -> None:
    assert lineage(cast(Catalog, FakeCatalog(3)), made(2, **provenance)) == ()
