"""Marks tests by folder and gives each kind its time limit."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_ROOT = Path(__file__).parent

# Folder under tests/: (marker, seconds one test may take unless it says otherwise).
_KINDS = {
    "guards": ("guard", 60),
    "unit": ("unit", 20),
    "integration": ("integration", 180),
    "e2e": ("e2e", 600),
}

# Wall-clock limits on single examples fail on busy machines and say nothing about the code;
# pytest-timeout bounds the whole test. A run is repeatable unless HYPOTHESIS_PROFILE=explore.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_ROOT).parts[0]
        if folder not in _KINDS:
            raise pytest.UsageError(f"{item.path}: tests live in tests/{{{','.join(_KINDS)}}}/")
        marker, seconds = _KINDS[folder]
        item.add_marker(getattr(pytest.mark, marker))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))
