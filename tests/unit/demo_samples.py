"""A made-up run of the demo, for the tests of its checks and reports."""

import random
from dataclasses import replace
from typing import Any

# Loaded while tests are collected: inside the first test that needs it, its seconds would count.
import statsmodels.stats.proportion  # noqa: F401

from benchmarks.charts import GanttBar, GanttRow, Phase
from benchmarks.load.records import RequestRecord
from benchmarks.load.statistics import paired_difference, wilson
from benchmarks.processes import MemorySample
from benchmarks.upgrades import Action, OperatorMove
from examples.tinyworld.demo.facts import (
    AdapterFacts,
    DemoFacts,
    GateWord,
    Swap,
    TextCheck,
)

OLD, NEXT = "tinyworld-old", "tinyworld-next"
T0 = 1_790_000_000.0
NAMES = [f"tenant{i}/task-{i}" for i in range(8)]


def adapter(
    name: str, *, right_old: int = 196, right_new: int = 195, **changes: Any
) -> AdapterFacts:
    n = 200
    old = [i < right_old for i in range(n)]
    new = [i < right_new for i in range(n)]
    made = AdapterFacts(
        name=name,
        family="dates",
        benchmark=False,
        peft_type="LoRA",
        rank=8,
        skewed=False,
        scores={
            "bare": wilson(8, n),
            "few_shot": wilson(60, n),
            "source": wilson(right_old, n),
            "shadow": wilson(right_new, n),
        },
        n=n,
        difference=paired_difference(new, old),
        gate=GateWord(verdict="promote", evidence="entrusted", n=200, reason="lower bound above"),
        state="retired",
        attempts=1,
        error="",
        migration_s=40.0,
        answers_from=NEXT,
        answering_version="v-new",
    )
    return replace(made, **changes)


def rejected(name: str, **changes: Any) -> AdapterFacts:
    made = adapter(
        name,
        right_new=120,
        state="rejected",
        answers_from=OLD,
        answering_version="v-old",
        gate=GateWord(
            verdict="reject", evidence="label-free", n=200, reason="flips <b>12 %</b> > 5 %"
        ),
    )
    return replace(made, **changes)


def record(at: float, name: str = NAMES[0], **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "kind": "foreground",
        "client": 0,
        "model": name,
        "adapter": name,
        "example": 0,
        "start": T0 + at,
        "latency_s": 0.05,
        "code": "OK",
        "ttft_s": 0.02,
        "tokens": 8,
        "base": OLD,
        "version": "v-old",
        "revision": 9,
        "correct": True,
    }
    return RequestRecord(**{**fields, **changes})


def move(action: Action, at: float, seen_s: float) -> OperatorMove:
    return OperatorMove(
        adapter=NAMES[0], action=action, called_at=T0 + at, call_s=0.03, seen_s=seen_s
    )


def facts(**changes: Any) -> DemoFacts:
    rng = random.Random(0)
    adapters = [adapter(name) for name in NAMES[:7]] + [rejected(NAMES[7])]
    live = [
        record(at / 8, rng.choice(NAMES), latency_s=rng.lognormvariate(-3, 0.4))
        for at in range(8 * 400)
    ]
    swaps = [
        Swap(
            adapter=name,
            revision=20 + index,
            at=T0 + 100 + 30 * index,
            reason="promote",
            to_base=NEXT,
            propagation_s=0.02,
        )
        for index, name in enumerate(NAMES[:7])
    ]
    kinds = [
        ("synthesize", 12), ("filter", 3), ("label", 4), ("distill", 30), ("evaluate", 8),
        ("shadow", 1), ("promote", 0.2),
    ]  # fmt: skip
    stages = []
    for index, name in enumerate(NAMES):
        at, bars = 40.0 + 35 * index, []
        for kind, seconds in kinds:
            bars.append(GanttBar(start_s=at, end_s=at + seconds, kind=kind))
            at += seconds
        stages.append(GanttRow(name=name, bars=tuple(bars), end_mark="promoted"))
    values: dict[str, Any] = {
        "started": T0,
        "ended": T0 + 410,
        "old_base": OLD,
        "next_base": NEXT,
        "upgrade_state": "finished",
        "upgrade_error": "",
        "adapters": adapters,
        "records": live,
        "wrong": [],
        "text_check": TextCheck(compared=3000, as_pinned=2998, of_other_version=0),
        "swaps": swaps,
        "moves": [
            OperatorMove(
                adapter=NAMES[0], action="rollback", called_at=T0 + 350, call_s=0.03, seen_s=0.06
            ),
            OperatorMove(
                adapter=NAMES[0], action="promote", called_at=T0 + 355, call_s=0.03, seen_s=1.2
            ),
        ],
        "phases": [
            Phase(start_s=0, end_s=25, label="start"),
            Phase(start_s=25, end_s=40, label="before"),
            Phase(start_s=40, end_s=340, label="upgrade"),
            Phase(start_s=340, end_s=400, label="judge"),
        ],
        "stages": stages,
        "memory": [
            MemorySample(at=T0 + at, bytes=int(3e9 + at * 8e6), processes=9)
            for at in range(0, 400, 2)
        ],
        "background_busy_s": 412.0,
        "retired_bases": [],
        "environment": {
            "cpu": "Some CPU",
            "cores": 4,
            "memory_gb": 25.0,
            "device": "cpu",
            "os": "Linux",
            "python": "3.11.9",
            "versions": {"ray": "2.60.0"},
            "commit": "abc123",
            "date": "2026-11-22 00:00 UTC",
        },
        "clients": 6,
        "think_s": (0.2, 0.5),
    }
    return DemoFacts(**{**values, **changes})
