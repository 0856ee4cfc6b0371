"""Suite `gate`: how often does the gate err, and what may label-free agreement be trusted with?

Part one simulates thousands of adapters whose quality is known, before the gate's own criterion:
false promotions of adapters that are worse than the margin, where real inputs change as often as
synthetic ones and where they change more often; power at n for equal ones, with true answers and
without, in one attempt and in two, as the product makes; adapters beside a bare next base that is
as good or better; and how wide a label-free bound may be for the ways in which answers can change.
Part two trains real shadows of the tiny world for too few steps on purpose and compares what
label-free evidence saw of them with their true loss on hidden test data.

Correctness gates: the simulation judges as `decide` does; no rate of false promotions is above
2 % by more than its sampling error where inputs do not shift; simulated power is the stated one.
"""

from __future__ import annotations

import asyncio

from benchmarks.gate_live import LIVE_FULL, LIVE_QUICK, live_rows
from benchmarks.gate_result import summarise
from benchmarks.gate_study import STUDY_FULL, STUDY_QUICK, study
from benchmarks.suite import SuiteContext, SuiteResult


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite."""
    simulated = await asyncio.to_thread(study, STUDY_QUICK if context.quick else STUDY_FULL)
    context.say(f"simulated {simulated.adapters:,} adapters")
    live = await asyncio.to_thread(
        live_rows, LIVE_QUICK if context.quick else LIVE_FULL, context.work_dir, context.say
    )
    return summarise(simulated, live)
