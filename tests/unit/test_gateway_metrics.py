"""Metrics: names and labels that dashboards rely on, and one scrape that sees all processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lorebase.serving.gateway.metrics import GatewayMetrics

WRITER = """
from lorebase.serving.gateway.metrics import GatewayMetrics
metrics = GatewayMetrics()
metrics.requests.labels("base-a", "stable", "OK").inc({count})
metrics.in_flight.labels("base-a", "stable").inc({count})
metrics.route_revision.set({count})
"""
READER = """
import sys
from lorebase.serving.gateway.metrics import GatewayMetrics
metrics = GatewayMetrics()
metrics.in_flight.labels("base-a", "stable").inc(5)
metrics.route_revision.set(7)
sys.stdout.write(metrics.render().decode())
"""


def samples(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_all_names_have_the_prefix_and_no_label_is_an_adapter() -> None:
    metrics = GatewayMetrics()
    families = list(metrics.registry.collect())
    assert len(families) == 14
    for family in families:
        assert family.name.startswith("lorebase_")
    labels = {
        label
        for collector in vars(metrics).values()
        for label in getattr(collector, "_labelnames", ())
    }
    assert labels == {"base", "track", "code", "method"}


def test_render_without_other_processes_shows_this_one() -> None:
    metrics = GatewayMetrics()
    metrics.resumes.labels("base-a").inc()
    assert samples(metrics.render().decode())["lorebase_resumes_total"] == 1


@pytest.mark.timeout(60)
def test_scrape_sums_all_processes_but_gauges_only_of_the_living(tmp_path: Path) -> None:
    for count in (2, 3):
        run(WRITER.format(count=count), tmp_path)
    seen = samples(run(READER, tmp_path))
    assert seen["lorebase_requests_total"] == 5, "requests of ended processes were answered too"
    assert seen["lorebase_requests_in_flight"] == 5, "ended processes have nothing in flight"
    assert seen["lorebase_route_revision"] == 7
