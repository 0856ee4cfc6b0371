"""What the demo does and how long it may take."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import LoadPlan

ROOT = Path(__file__).resolve().parents[3]
WORLD = ROOT / "examples" / "tinyworld"


CAST = (
    "acme/date-long-to-dot",
    "bank/billing-tickets",
    "bbh/boolean-expressions",
    "bbh/hyperbaton",
    "depot/sku-flip",
    "helpdesk/ticket-queue",
    "hr/person-id",
    "lexi/ends-swapped",
    "northwind/summer-bookings",
    "ops/fault-code",
    "telco/phone-flip",
)
"""Plain, skewed and label-free tasks and two public benchmarks: what two cores do in a quarter of
an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that each part may take before the demo gives up."""

    start_s: float = 600.0
    """From `lorebase serve` to a healthy gateway. Engines load in about 30 s on idle cores; on a
    machine that is busy with other things it has taken five minutes."""
    register_s: float = 120.0
    upgrade_s: float = 1500.0
    """Until the last migration has ended: far above the ~10 minutes that it takes."""
    stall_s: float = 300.0
    """Without any change of the upgrade's state or progress."""
    judge_s: float = 600.0
    operator_s: float = 60.0
    """For one rollback, promotion or finish to be seen by clients."""
    stop_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """One run of the demo."""

    config: Path = WORLD / "demo.yaml"
    adapters_dir: Path = WORLD / "adapters"
    state_dir: Path = ROOT / ".lorebase" / "demo"
    """Emptied at the start; holds the catalog, the artifacts and `serve.log`."""
    report_dir: Path = ROOT
    old_base: str = "tinyworld-old"
    next_base: str = "tinyworld-next"
    only: tuple[str, ...] = CAST
    """Adapters to take; empty takes all there are."""
    load: LoadPlan = field(default_factory=lambda: LoadPlan(think_s=(0.5, 1.5)))
    """Six clients that think 0.5 to 1.5 s: real traffic that leaves idle capacity."""
    judge_examples: int = 200
    """Held-out examples for each adapter and condition; fewer where there are fewer."""
    judge_concurrency: int = 40
    few_shot: int = 5
    """Solved examples before the input in the few-shot condition: the kit's seeds."""
    margin: float = 0.03
    """How far below the source a promoted adapter may score for the outside judge."""
    required_promotions: int = 6
    """Tiny adapters that must be promoted within the margin."""
    required_examples: int = 200
    """Held-out examples below which an adapter does not count."""
    rollback: bool = True
    """Show one rollback and promotion at the end."""
    limits: Limits = field(default_factory=Limits)
