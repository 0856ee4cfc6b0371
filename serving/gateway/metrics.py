"""The gateway's metrics: prometheus-client, multiprocess, served by any gateway.

Base units, prefix `lorebase_`, labels bounded by the number of bases: never adapter names. With
`PROMETHEUS_MULTIPROC_DIR` set, all processes of the node write there and one scrape sees all;
without it (tests) a process shows itself only.
"""

import os
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NO_BASE = "none"
"""Base label of requests that were refused before they had one."""

_LATENCY_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class GatewayMetrics:
    """All metrics that a gateway writes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        served = ["base", "track"]
        self.requests = Counter(
            "lorebase_requests",
            "Generation requests by what answered and gRPC status code.",
            [*served, "code"],
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "lorebase_prompt_tokens",
            "Prompt tokens of answered requests.",
            served,
            registry=self.registry,
        )
        self.completion_tokens = Counter(
            "lorebase_completion_tokens", "Tokens sent to clients.", served, registry=self.registry
        )
        self.first_token_s = Histogram(
            "lorebase_time_to_first_token_seconds",
            "From arrival at the gateway to the first token, queue included.",
            served,
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.inter_token_s = Histogram(
            "lorebase_inter_token_seconds",
            "Mean time per token between two messages of a stream.",
            served,
            buckets=_TOKEN_S,
            registry=self.registry,
        )
        self.request_s = Histogram(
            "lorebase_request_seconds",
            "From arrival at the gateway to the last token.",
            served,
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "lorebase_requests_in_flight",
            "Requests at the engines.",
            served,
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "lorebase_queue_depth",
            "Requests that wait for admission.",
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self.queue_wait_s = Histogram(
            "lorebase_queue_wait_seconds",
            "Wait for admission.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.route_revision = Gauge(
            "lorebase_route_revision",
            "Oldest route-table revision that any live gateway uses.",
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.route_updates = Counter(
            "lorebase_route_updates",
            "Route tables that gateways took over.",
            registry=self.registry,
        )
        self.resumes = Counter(
            "lorebase_resumes",
            "Resubmissions because the engine died.",
            ["base"],
            registry=self.registry,
        )
        self.version_mismatches = Counter(
            "lorebase_version_mismatches",
            "Chunks made by another base or version than the route named. Must stay 0.",
            ["base"],
            registry=self.registry,
        )
        self.calls = Counter(
            "lorebase_calls",
            "gRPC calls of all services by method and status code.",
            ["method", "code"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Returns the exposition text, over all live and ended processes of the node."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is None:
            return bytes(generate_latest(self.registry))
        _forget_dead(Path(folder))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(registry))


def _forget_dead(folder: Path) -> None:
    """Drops the live gauges of processes that are gone; their counters stay."""
    pids = {path.stem.rsplit("_", 1)[-1] for path in folder.glob("gauge_live*_*.db")}
    for pid in pids:
        if pid.isdecimal() and not _alive(int(pid)):
            multiprocess.mark_process_dead(int(pid), path=str(folder))  # type: ignore[no-untyped-call]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
