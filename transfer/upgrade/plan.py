"""What an upgrade would do, adapter by adapter. Nothing is skipped silently."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog import Catalog
from lorebase.serving.catalog.records import Adapter, AdapterVersion
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError, LorebaseError
from lorebase.transfer.convert import REFUSE, kind_of
from lorebase.transfer.kit import TransferKit

from .kits import kit_of

MAX_ADAPTERS = 10_000
"""Adapters in one upgrade."""
PAGE = 500

DISTILL = "distill"
DISTILL_NO_KIT = "distill-no-kit"
CONVERT = "convert"
KEEP = "keep"

ENTRUSTED = "entrusted"
LABEL_FREE = "label-free"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """What planning needs to know of one adapter."""

    adapter: Adapter
    source: AdapterVersion
    """Version that its route names now."""
    kit: TransferKit | None
    kit_problem: str = ""
    """Why there is no usable kit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMigration:
    """What will happen to one adapter."""

    adapter: str
    source_version: str
    path: str
    feasible: bool
    reason: str
    evidence: str
    rank: int
    dataset_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an upgrade would do."""

    from_base: str
    to_base: str
    migrations: tuple[PlannedMigration, ...]


def plan_adapter(facts: AdapterFacts, to_base: str) -> PlannedMigration:
    """Chooses the path of one adapter. Pure."""
    path, feasible, reason = _choose(facts, to_base)
    return PlannedMigration(
        adapter=facts.adapter.name,
        source_version=facts.source.id,
        path=path,
        feasible=feasible,
        reason=reason,
        evidence=ENTRUSTED if facts.adapter.evaluation_digest else LABEL_FREE,
        rank=facts.source.rank,
        dataset_size=facts.kit.dataset_size if facts.kit else 0,
    )


def _choose(facts: AdapterFacts, to_base: str) -> tuple[str, bool, str]:
    source, kit = facts.source, facts.kit
    if source.base_id == to_base:
        return KEEP, True, f"{source.id} runs on {to_base!r} already"
    if source.peft_type != "LORA":
        kind = kind_of({"peft_type": source.peft_type})
        reason = (
            f"{kind.reason}; engines serve LoRA only: make one with `lorebase adapter convert` "
            "and upload it"
        )
        if kind.path == REFUSE:
            reason = f"{kind.reason}; train a LoRA version for {to_base!r} and upload it"
        return (DISTILL if kind.path == DISTILL else CONVERT), False, reason
    if kit is None:
        reason = (
            f"no transfer kit: {facts.kit_problem}; build one with `lorebase kit build` where the "
            "data is (with `--seeds-only` if only a few examples of it are left) and attach it "
            "with `lorebase adapter import-kit`"
        )
        return DISTILL_NO_KIT, False, reason
    if kit.base_id != source.base_id:
        reason = (
            f"the kit fits base {kit.base_id!r}, but the adapter runs on {source.base_id!r}: build "
            "the kit again for that base, where the data is"
        )
        return DISTILL, False, reason
    if not kit.discriminator:
        reason = (
            f"{len(kit.seeds)} seeds of {kit.dataset_name!r} and no discriminator: the next base "
            "writes after the seeds and the source adapter's certainty selects (recipe "
            "lorebase-without-kit)"
        )
        return DISTILL_NO_KIT, True, reason
    return DISTILL, True, f"transfer kit with {len(kit.seeds)} seeds of {kit.dataset_name!r}"


def gather_facts(
    catalog: Catalog, store: ArtifactStore, adapter: Adapter, source_version: str
) -> AdapterFacts:
    """Reads what planning needs; an unreadable kit becomes a problem in words, not an error."""
    source = catalog.get_version(source_version)
    try:
        _, kit = kit_of(store, adapter, source)
    except LorebaseError as error:
        return AdapterFacts(adapter=adapter, source=source, kit=None, kit_problem=error.message)
    return AdapterFacts(adapter=adapter, source=source, kit=kit)


def plan_upgrade(
    catalog: Catalog, store: ArtifactStore, to_base: str, adapters: Sequence[str] = ()
) -> Plan:
    """Plans an upgrade; changes nothing.

    Args:
        catalog: where adapters, versions and routes are read.
        store: where kits are read.
        to_base: the base to move to; it must be registered.
        adapters: names; empty means every adapter whose route is not on `to_base` yet.

    Raises:
        NotFoundError: unknown base or adapter.
        InvalidArgumentError: an adapter named twice.
        FailedPreconditionError: nothing to do, or too many adapters.
    """
    catalog.get_base(to_base)
    if len(set(adapters)) != len(adapters):
        raise InvalidArgumentError("an adapter is named twice; name each once")
    table = catalog.route_table(lambda digest: digest)
    chosen = [catalog.get_adapter(name) for name in adapters] or all_adapters(catalog)
    facts = [
        gather_facts(catalog, store, adapter, table.routes[adapter.name].stable)
        for adapter in chosen
        if adapter.name in table.routes
    ]
    if not adapters:
        facts = [one for one in facts if one.source.base_id != to_base]
    if not facts:
        raise FailedPreconditionError(
            f"nothing to upgrade: no adapter is routed to a base other than {to_base!r}",
            reason="NOTHING_TO_UPGRADE",
        )
    return Plan(
        from_base=_from_base(catalog.current_base(), to_base, facts),
        to_base=to_base,
        migrations=tuple(plan_adapter(one, to_base) for one in facts),
    )


def _from_base(current: str | None, to_base: str, facts: Sequence[AdapterFacts]) -> str:
    """The base that will be retired: the current one, else the stragglers' one."""
    if current is not None and current != to_base:
        return current
    others = [one.source.base_id for one in facts if one.source.base_id != to_base]
    return max(sorted(set(others)), key=others.count) if others else to_base


def all_adapters(catalog: Catalog) -> list[Adapter]:
    """Returns every adapter, by name.

    Raises:
        FailedPreconditionError: more than `MAX_ADAPTERS`.
    """
    found: list[Adapter] = []
    while page := catalog.list_adapters(after=found[-1].name if found else None, limit=PAGE):
        found += page
        if len(found) > MAX_ADAPTERS:
            raise FailedPreconditionError(
                f"got more than {MAX_ADAPTERS} adapters, expected at most that many in one "
                "upgrade; name a part of them",
                reason="TOO_MANY_ADAPTERS",
            )
    return found


def adapters_on(catalog: Catalog, base_id: str) -> list[str]:
    """Returns the adapters whose route leads to a base, by name."""
    table = catalog.route_table(lambda digest: digest)
    return sorted(
        route.adapter
        for route in table.routes.values()
        if table.versions[route.stable].base_id == base_id
    )
