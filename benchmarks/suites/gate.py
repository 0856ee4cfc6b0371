"""Suite `gate`: how often does the gate err, and what may label-free agreement be trusted with?

Part one simulates thousands of adapters whose quality is known, before the gate's own criterion:
false promotions of adapters that are worse than the margin, where real inputs change as often as
synthetic ones and where they change more often; power at n for equal ones, with true answers and
without, in one attempt and in two, as the product makes; adapters beside a bare next base that is
as good or better; and how wide a label-free bound may be for the ways in which answers can change.
Part two trains real shadows of the tiny world for too few steps on purpose and compares what
label-free evidence saw of them with their true loss on hidden test data.

`--keep-live` simulates anew and takes the real shadows from the committed result.

Correctness gates: the simulation judges as `decide` does; no rate of false promotions is above
2 % by more than its sampling error where inputs do not shift; simulated power is the stated one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from benchmarks.gate_live import live_rows
from benchmarks.gate_result import summarise
from benchmarks.gate_shapes import LIVE_FULL, LIVE_QUICK
from benchmarks.gate_study import STUDY_FULL, STUDY_QUICK, study
from benchmarks.suite import SuiteContext, SuiteResult

TAKES_ARGUMENTS = True
COMMITTED = Path(__file__).resolve().parents[1] / "results" / "gate.json"


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite.

    Raises:
        FileNotFoundError: `--keep-live` without a committed result.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run gate")
    parser.add_argument("--keep-live", action="store_true", help="train no shadows")
    options = parser.parse_args(context.arguments)
    kept = kept_live(COMMITTED) if options.keep_live else None
    simulated = await asyncio.to_thread(study, STUDY_QUICK if context.quick else STUDY_FULL)
    context.say(f"simulated {simulated.adapters:,} adapters")
    if kept is not None:
        return summarise(simulated, kept)
    live = await asyncio.to_thread(
        live_rows, LIVE_QUICK if context.quick else LIVE_FULL, context.work_dir, context.say
    )
    return summarise(simulated, live)


def kept_live(path: Path) -> list[dict[str, Any]]:
    """Returns the real shadows of an earlier result, each with the commit that trained it."""
    earlier = json.loads(path.read_text(encoding="utf-8"))
    commit = earlier["environment"]["commit"]
    return [{"commit": commit, **row} for row in earlier["rows"] if row["what"] == "live"]
