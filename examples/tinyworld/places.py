"""Where the tiny world's files lie. Imports nothing, so that whoever only reads them is quick."""

from pathlib import Path

ROOT = Path(__file__).parent
ADAPTERS_DIR = ROOT / "adapters"
"""One folder for each adapter, with its kit and held-out examples."""


def base_dir(base: str) -> Path:
    """Returns the folder of the published weights of a base."""
    return ROOT / "bases" / base
