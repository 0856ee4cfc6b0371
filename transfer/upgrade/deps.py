"""Everything that the controller is given; tests give fakes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorebase.serving.artifacts import AdapterLimits, ArtifactStore
from lorebase.serving.catalog import Catalog, NewEvent
from lorebase.serving.catalog.records import Event
from lorebase.transfer.governor import Governor
from lorebase.transfer.ports import TextGenerator

from .ports import Clock, Cluster, Metrics, WorkerPool
from .settings import UpgradeSettings


class GeneratorSource(Protocol):
    """Makes generators that take a lease for every batch."""

    def __call__(self, holder: str, on_busy: Callable[[float], None]) -> TextGenerator:
        """Returns a generator.

        Args:
            holder: who generates, for the lease table.
            on_busy: called with the seconds that each batch kept an engine busy.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """The controller's world."""

    catalog: Catalog
    store: ArtifactStore
    cluster: Cluster
    workers: WorkerPool
    governor: Governor
    generator: GeneratorSource
    settings: UpgradeSettings
    limits: AdapterLimits
    store_root: Path
    """Directory of the artifact store; workers open it themselves."""
    work_root: Path
    """Working files of training jobs; survives the controller."""
    metrics: Metrics
    clock: Clock

    def append(self, upgrade_id: str, adapter: str | None, kind: str, **data: object) -> None:
        """Appends an event."""
        self.catalog.append_event(
            NewEvent(upgrade_id=upgrade_id, adapter=adapter, kind=kind, data=data)
        )

    def events(self, upgrade_id: str) -> list[Event]:
        """Returns all events of an upgrade."""
        return read_events(self.catalog, upgrade_id)


EVENT_PAGE = 1000


def read_events(catalog: Catalog, upgrade_id: str, after: int = 0) -> list[Event]:
    """Returns the events of an upgrade with ids above `after`, all pages."""
    found: list[Event] = []
    while page := catalog.events(
        upgrade_id, after=found[-1].id if found else after, limit=EVENT_PAGE
    ):
        found += page
        if len(page) < EVENT_PAGE:
            break
    return found
