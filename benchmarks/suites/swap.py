"""Suite `swap`: do clients notice when routes flip between two bases?

A real cluster with two bases. A deliberately cheap upgrade gives every adapter a version on both
(how good those are is not measured here). Then routes flip back and forth through UpgradeService,
rollback and promotion in turn, while closed-loop clients call all adapters by name.

Correctness gates: both versions of every adapter answer as transformers + PEFT do; every live
answer comes from the version that the route table named; no request fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reference
from benchmarks.cluster import ServedCluster
from benchmarks.load import (
    ClosedLoop,
    LoadPlan,
    RequestRecord,
    RouteHistory,
    Workload,
    channel_to,
    measure,
    wrong_version,
)
from benchmarks.suite import SuiteContext, SuiteResult
from benchmarks.swap_result import Run, summarise
from benchmarks.upgrades import (
    Action,
    OperatorMove,
    acknowledgements,
    follow,
    move,
    rollback_acknowledgements,
    route_steps,
    settled,
    state_name,
)
from examples.tinyworld.demo.judge import compare_texts, workload
from examples.tinyworld.demo.settings import WORLD
from examples.tinyworld.demo.tenants import register
from examples.tinyworld.demo.world import TenantAdapter, find_adapters
from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.cli.client import LorebaseClient
from lorebase.v1 import upgrade_pb2

OLD, NEXT = "tinyworld-old", "tinyworld-next"
AGREEMENT = 0.97
"""Share of answers that equal the reference; two tokens that tie within rounding may differ."""
CHEAP_UPGRADE = {
    # The gate must not matter here: it passes whatever comes out.
    "LOREBASE_UPGRADE__MARGIN": "0.99",
    "LOREBASE_UPGRADE__NEGATIVE_FLIP_BUDGET": "0.99",
    "LOREBASE_UPGRADE__MIN_EXAMPLES": "1",
    "LOREBASE_UPGRADE__SAMPLES": "48",
    "LOREBASE_UPGRADE__EVALUATION_SAMPLES": "16",
    "LOREBASE_UPGRADE__STEPS": "30",
    "LOREBASE_UPGRADE__MAX_ATTEMPTS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured."""

    adapters: int
    flips: int
    examples: int
    """Of each adapter, for clients and for the reference."""
    gap_s: float
    """Between flips: more than the window around each, so that there is an elsewhere."""
    calm_s: float
    """Traffic without flips before the first and after the last."""
    load: LoadPlan


FULL = Shape(
    adapters=6,
    flips=40,
    examples=40,
    gap_s=4.0,
    calm_s=30.0,
    load=LoadPlan(clients=6, think_s=(0.05, 0.15)),
)
QUICK = Shape(
    adapters=2,
    flips=4,
    examples=8,
    gap_s=3.0,
    calm_s=5.0,
    load=LoadPlan(clients=3, think_s=(0.05, 0.15)),
)


async def run(context: SuiteContext) -> SuiteResult:
    """Runs the suite."""
    shape = QUICK if context.quick else FULL
    found = find_adapters(WORLD / "adapters", judge_examples=shape.examples)
    # Skewed data and benchmarks need more samples than the cheap upgrade draws.
    plain = [adapter for adapter in found if not adapter.skewed and not adapter.benchmark]
    adapters = plain[: shape.adapters]
    state_dir = context.work_dir / "state"
    cluster = ServedCluster(WORLD / "demo.yaml", state_dir, environment=CHEAP_UPGRADE)
    with cluster:
        await cluster.wait_ready(240)
        with LorebaseClient(cluster.grpc) as client:
            context.say(f"serving; registering {len(adapters)} adapters")
            await asyncio.to_thread(register, client, adapters, OLD, lambda name: None)
            upgrade = await _both_bases(client, context)
            pinned, failures = await _references(client, adapters, upgrade, state_dir, context)
            done = await _flip(client, adapters, upgrade, shape, context)
    done.failures = failures + _live_failures(done, pinned, context)
    return summarise(done, adapters=shape.adapters)


async def _both_bases(client: LorebaseClient, context: SuiteContext) -> upgrade_pb2.Upgrade:
    """Gives every adapter a version on the next base, and routes it there."""
    started = await asyncio.to_thread(client.start_upgrade, NEXT)
    async with channel_to(client.endpoint) as channel:
        upgrade = await follow(channel, started.id, lambda update: None, timeout_s=900, stall_s=240)
    left = [one for one in upgrade.migrations if one.state != "promoted"]
    if upgrade.state != upgrade_pb2.UPGRADE_STATE_COMPLETED or left:
        states = ", ".join(f"{one.adapter} {one.state} {one.error}" for one in left)
        raise RuntimeError(f"the upgrade ended as {state_name(upgrade.state)}: {states}")
    context.say("every adapter has a version on both bases")
    return upgrade


async def _references(
    client: LorebaseClient,
    adapters: Sequence[TenantAdapter],
    upgrade: upgrade_pb2.Upgrade,
    state_dir: Path,
    context: SuiteContext,
) -> tuple[dict[str, dict[str, list[RequestRecord]]], list[str]]:
    """Asks both versions by id, and transformers + PEFT the same; returns what differs."""
    store = ArtifactStore(state_dir / "artifacts")
    pinned: dict[str, dict[str, list[RequestRecord]]] = {}
    failures = []
    for adapter in adapters:
        one = next(m for m in upgrade.migrations if m.adapter == adapter.name)
        found = await asyncio.to_thread(client.get_adapter, adapter.name)
        digests = {version.id: version.digest for version in found.versions}
        for condition, version, base in (
            ("source", one.source_version, "old"),
            ("shadow", one.shadow_version, "next"),
        ):
            load = workload(f"{adapter.name}@{version}", adapter.name, adapter.held_out)
            [records] = await measure(client.endpoint, [load], concurrency=8)
            pinned.setdefault(adapter.name, {})[condition] = records
            expected = await asyncio.to_thread(
                reference.answers,
                WORLD / "bases" / base,
                store.path(digests[version]),
                load.prompts,
                stop=load.stop[0],
                max_tokens=load.max_tokens,
            )
            same = sum(r.ok and r.text == e for r, e in zip(records, expected, strict=True))
            if same < AGREEMENT * len(expected):
                failures.append(
                    f"{adapter.name} on {base}: {same} of {len(expected)} answers are those of "
                    "transformers + PEFT"
                )
    context.say(f"compared with transformers + PEFT: {len(failures)} versions differ")
    return pinned, failures


async def _flip(
    client: LorebaseClient,
    adapters: Sequence[TenantAdapter],
    upgrade: upgrade_pb2.Upgrade,
    shape: Shape,
    context: SuiteContext,
) -> Run:
    """Moves routes back and forth under load."""
    live = [workload(a.name, a.name, a.held_out) for a in adapters]
    load = ClosedLoop(client.endpoint, live, shape.load)
    started, moves, extra = time.time(), list[OperatorMove](), list[RequestRecord]()
    completed = frozenset({upgrade_pb2.UPGRADE_STATE_COMPLETED})
    # An upgrade shows each adapter's newest promotion only, so they are collected on the way.
    acks = acknowledgements(upgrade)
    load.start()
    try:
        await asyncio.sleep(shape.calm_s)
        for number in range(shape.flips):
            # Each adapter goes back and forth before the next one's turn.
            one: Workload = live[number // 2 % len(live)]
            action: Action = "rollback" if number % 2 == 0 else "promote"
            moves.append(
                await move(client, action, upgrade, one, timeout_s=60, on_record=extra.append)
            )
            load.check()
            await asyncio.sleep(shape.gap_s)
            acks += acknowledgements(await settled(client, upgrade.id, completed, 60))
        await asyncio.sleep(shape.calm_s)
    finally:
        records = await load.stop()
    context.say(f"{len(moves)} flips under {len(records):,} requests")
    steps = route_steps(await asyncio.to_thread(client.list_route_changes))
    acks += rollback_acknowledgements(moves, steps)
    return Run(
        started=started,
        records=[*records, *extra],
        moves=moves,
        history=RouteHistory(steps, acks),
        acks=acks,
        failures=[],
    )


def _live_failures(
    done: Run, pinned: dict[str, dict[str, list[RequestRecord]]], context: SuiteContext
) -> list[str]:
    failures = []
    failed = [r for r in done.records if not r.ok]
    if failed:
        failures.append(f"{len(failed)} requests failed, first: {failed[0].code} {failed[0].error}")
    wrong = [(r, why) for r in done.records if (why := wrong_version(r, done.history))]
    if wrong:
        failures.append(f"{len(wrong)} answers by a wrong version, first: {wrong[0][1]}")
    texts = compare_texts(done.records, pinned)
    if texts.as_pinned < AGREEMENT * texts.compared or not texts.compared:
        failures.append(f"only {texts.as_pinned} of {texts.compared} live answers are as pinned")
    context.say(f"{texts.as_pinned} of {texts.compared} live answers equal the pinned version's")
    return failures
