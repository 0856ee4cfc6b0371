"""What an upgrade counts, for Prometheus. Labels are bounded: never adapter names.

In the controller's process PROMETHEUS_MULTIPROC_DIR is set, so the values land in the directory
that every gateway serves at /metrics.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .states import MigrationState

SWAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class UpgradeMetrics:
    """Counters of one controller process.

    Args:
        registry: where they are registered; a fresh one per controller or test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._swap = Histogram(
            "lorebase_swap_duration_seconds",
            "From the committed route to the last gateway's acknowledgement.",
            buckets=SWAP_BUCKETS_S,
            registry=registry,
        )
        self._busy = Counter(
            "lorebase_background_busy_seconds",
            "Background work: CPU time of training, engine time of generation.",
            ["stage"],
            registry=registry,
        )
        # A restarted controller writes a new file: the newest value is the true one.
        self._migrations = Gauge(
            "lorebase_migrations",
            "Migrations of the newest upgrade.",
            ["state"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._leases = Gauge(
            "lorebase_leases",
            "Background leases granted now.",
            ["kind"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._grants = Counter(
            "lorebase_lease_grants", "Background leases granted.", ["kind"], registry=registry
        )
        self._revocations = Counter(
            "lorebase_lease_ends",
            "Background leases released or revoked.",
            ["kind"],
            registry=registry,
        )
        # `inc` is not allowed on a most-recent gauge, so the count is kept here.
        self._granted = {"train": 0, "generate": 0}
        for kind, count in self._granted.items():
            self._leases.labels(kind).set(count)

    def swap(self, seconds: float) -> None:
        """A route flipped; every gateway acknowledged it after so many seconds."""
        self._swap.observe(seconds)

    def busy(self, stage: str, seconds: float) -> None:
        """A stage kept background resources busy."""
        self._busy.labels(stage).inc(max(0.0, seconds))

    def migrations(self, by_state: dict[str, int]) -> None:
        """Sets how many migrations are in each state; states that are absent become 0."""
        for state in MigrationState:
            self._migrations.labels(state.value).set(by_state.get(state.value, 0))

    def lease(self, kind: str, change: int) -> None:
        """A lease was granted (+1), or revoked or released (-1)."""
        self._granted[kind] += change
        self._leases.labels(kind).set(self._granted[kind])
        (self._grants if change > 0 else self._revocations).labels(kind).inc()
