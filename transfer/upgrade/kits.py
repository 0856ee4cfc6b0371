"""Which kit a version migrates with: the tenant's, or the one that a migration took along."""

from collections.abc import Iterator

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog.records import NEXT_KIT, Adapter, AdapterVersion
from lorebase.serving.errors import FailedPreconditionError, LorebaseError
from lorebase.transfer.kit import TransferKit, load_kit


def kit_of(
    store: ArtifactStore, adapter: Adapter, source: AdapterVersion
) -> tuple[str, TransferKit]:
    """Returns digest and contents of the kit with which a version can migrate.

    A discriminator judges on one base only. The tenant's kit comes first where it fits the
    version's base (it knew the data); else the kit that was carried along when this version was
    made. With neither, the tenant's kit is returned as it is, for planning to say what is wrong.

    Raises:
        FailedPreconditionError: there is none.
        LorebaseError: the only one there is can't be read.
    """
    found: list[tuple[str, TransferKit]] = []
    problem: LorebaseError | None = None
    for digest in _digests(adapter, source):
        try:
            found.append((digest, load_kit(store.path(digest))))
        except LorebaseError as error:
            problem = problem or error
    for digest, kit in found:
        if kit.base_id == source.base_id:
            return digest, kit
    if problem is not None:
        raise problem
    if not found:
        raise FailedPreconditionError("none was imported", reason="NO_KIT")
    return found[0]


def _digests(adapter: Adapter, source: AdapterVersion) -> Iterator[str]:
    if adapter.kit_digest is not None:
        yield adapter.kit_digest
    carried = source.provenance.get(NEXT_KIT)
    if isinstance(carried, str):
        yield carried
