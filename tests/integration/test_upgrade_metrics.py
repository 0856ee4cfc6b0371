"""What the controller counts reaches every gateway's /metrics, across restarts."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTROLLER = """
import sys
from prometheus_client import CollectorRegistry
from lorebase.transfer.upgrade.metrics import UpgradeMetrics

metrics = UpgradeMetrics(CollectorRegistry())
metrics.swap(0.03)
metrics.busy("distill", float(sys.argv[1]))
metrics.lease("train", 1)
metrics.migrations({"promoted": int(sys.argv[2])})
"""


def run_controller(directory: Path, *arguments: str) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    subprocess.run([sys.executable, "-c", CONTROLLER, *arguments], env=environment, check=True)


def figures(directory: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_counters_add_up_over_controllers_and_gauges_are_the_newest(tmp_path: Path) -> None:
    run_controller(tmp_path, "2.5", "1")
    run_controller(tmp_path, "1.0", "2")
    seen = figures(tmp_path)
    assert seen["lorebase_swap_duration_seconds_count"] == 2
    assert seen['lorebase_swap_duration_seconds_bucket{le="0.05"}'] == 2
    assert seen['lorebase_background_busy_seconds_total{stage="distill"}'] == 3.5
    assert seen['lorebase_migrations{state="promoted"}'] == 2
    assert seen['lorebase_migrations{state="rejected"}'] == 0
    assert seen['lorebase_leases{kind="train"}'] == 1, "the dead controller's lease is gone"
    assert seen['lorebase_lease_grants_total{kind="train"}'] == 2
