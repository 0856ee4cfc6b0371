"""What tenants do: upload an adapter, its kit and, some of them, an evaluation set."""

from collections.abc import Callable, Sequence

from lorebase.serving.cli.client import ADAPTER, EVALUATION_SET, KIT, LorebaseClient

from .world import TenantAdapter


def register(
    client: LorebaseClient,
    adapters: Sequence[TenantAdapter],
    base: str,
    on_done: Callable[[str], None],
) -> dict[str, str]:
    """Registers every adapter while the service runs.

    Args:
        client: connection to the gateway.
        adapters: what to register.
        base: base that they were trained on.
        on_done: called with each name.

    Returns:
        The first version's id of each adapter.
    """
    versions = {}
    for adapter in adapters:
        weights = client.upload_artifact(adapter.adapter_dir, ADAPTER, base)
        kit = client.upload_artifact(adapter.kit_dir, KIT, base)
        evaluation = ""
        if adapter.evaluation_file is not None:
            evaluation = client.upload_artifact(adapter.evaluation_file, EVALUATION_SET).digest
        created = client.create_adapter(
            adapter.name,
            base,
            weights.digest,
            kit_digest=kit.digest,
            evaluation_digest=evaluation,
            request_id=f"demo/{adapter.name}",
        )
        versions[adapter.name] = created.stable_version
        on_done(adapter.name)
    return versions
