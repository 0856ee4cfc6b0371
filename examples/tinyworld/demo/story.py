"""The demo from start to end, one phase after the other, with clients running throughout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc

from benchmarks.charts import Phase
from benchmarks.cluster import ServedCluster
from benchmarks.environment import environment
from benchmarks.load import ClosedLoop, channel_to, measure
from benchmarks.load.records import RequestRecord, to_rows
from benchmarks.upgrades import OperatorMove, follow, move, state_name
from lorebase.serving.cli.client import LorebaseClient
from lorebase.v1 import upgrade_pb2

from .board import Board
from .facts import DemoFacts
from .gather import Answers, Told, gather
from .judge import Candidate, conditions, workload
from .operate import finish
from .settings import DemoSettings
from .tenants import register
from .world import TenantAdapter

CALM_S = 8.0
"""Traffic before the upgrade and after the last act, so that the plot shows what normal is."""


class Story:
    """One run; `tell` does everything."""

    def __init__(
        self,
        settings: DemoSettings,
        adapters: Sequence[TenantAdapter],
        cluster: ServedCluster,
        board: Board,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._adapters = adapters
        self._cluster = cluster
        self._board = board
        self._started = time.time()
        self._phases: list[Phase] = []
        self._records: list[RequestRecord] = []
        self._moves: list[OperatorMove] = []
        self._live = [workload(a.name, a.name, a.held_out) for a in adapters]

    async def tell(self) -> DemoFacts:
        """Runs all phases and returns what was found.

        Raises:
            Exception: something that must work did not; nothing was found then.
        """
        limits = self._limits
        with self._phase("start"):
            await self._cluster.wait_ready(limits.start_s)
            self._board.say(f"serving: gRPC {self._cluster.grpc}, HTTP {self._cluster.http}")
        client = LorebaseClient(self._cluster.grpc)
        with client:
            with self._phase("register"):
                await self._register(client)
            load = ClosedLoop(
                self._cluster.grpc, self._live, self._settings.load, on_record=self._keep
            )
            async with self._running(load):
                with self._phase("before"):
                    await asyncio.sleep(CALM_S)
                completed = await self._upgrade(client, load)
                with self._phase("judge"):
                    answers = await self._judge(completed)
                await self._operate(client, completed)
                with self._phase("finish"):
                    upgrade, retired = await finish(client, completed.id, limits.operator_s)
                    last_word = await self._last_word()
                    await asyncio.sleep(CALM_S)
            changes = await asyncio.to_thread(client.list_route_changes)
        self._store_records()
        return gather(
            Told(
                started=self._started,
                ended=time.time(),
                settings=self._settings,
                adapters=self._adapters,
                upgrade=upgrade,
                completed=completed,
                changes=changes,
                records=self._records,
                answers=answers,
                last_word=last_word,
                moves=self._moves,
                phases=self._phases,
                memory=self._cluster.memory,
                retired_bases=retired,
                environment=environment(),
            )
        )

    # -- phases ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._cluster.check_alive()
        self._board.phase(name)
        begin = time.time() - self._started
        yield
        end = time.time() - self._started
        self._phases.append(Phase(start_s=begin, end_s=end, label=name))

    def _keep(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._board.record(record)

    @contextlib.asynccontextmanager
    async def _running(self, load: ClosedLoop) -> AsyncIterator[None]:
        load.start()
        try:
            yield
            load.check()
        finally:
            await load.stop()

    async def _register(self, client: LorebaseClient) -> None:
        async with asyncio.timeout(self._limits.register_s):
            await asyncio.to_thread(
                register, client, self._adapters, self._settings.old_base, lambda name: None
            )
        entrusted = sum(a.evaluation_file is not None for a in self._adapters)
        self._board.say(
            f"{len(self._adapters)} adapters registered with kits, {entrusted} with an evaluation "
            f"set, {len(self._adapters) - entrusted} label-free"
        )
        first = [workload(one.model, one.adapter, one.examples[:1]) for one in self._live]
        await measure(self._cluster.grpc, first, kind="warm-up", on_record=self._keep)

    async def _upgrade(self, client: LorebaseClient, load: ClosedLoop) -> upgrade_pb2.Upgrade:
        settings = self._settings
        plan = await asyncio.to_thread(client.plan_upgrade, settings.next_base)
        for one in plan.migrations:
            can = "" if one.feasible else "[yellow]stays: [/]"
            self._board.say(f"plan: {one.adapter}: {can}{one.path}, {one.evidence}; {one.reason}")
        with self._phase("upgrade"):
            started = await asyncio.to_thread(
                client.start_upgrade, settings.next_base, request_id="demo"
            )
            async with channel_to(self._cluster.grpc) as channel:
                watch = asyncio.create_task(self._follow(channel, started.id))
                try:
                    while not watch.done():
                        self._cluster.check_alive()
                        load.check()
                        await asyncio.wait({watch}, timeout=2.0)
                    upgrade = watch.result()
                finally:
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
        if upgrade.state != upgrade_pb2.UPGRADE_STATE_COMPLETED:
            raise RuntimeError(
                f"the upgrade ended as {state_name(upgrade.state)}: {upgrade.error or 'no reason'}"
            )
        return upgrade

    async def _follow(self, channel: grpc.aio.Channel, upgrade_id: str) -> upgrade_pb2.Upgrade:
        return await follow(
            channel,
            upgrade_id,
            self._board.update,
            timeout_s=self._limits.upgrade_s,
            stall_s=self._limits.stall_s,
        )

    async def _judge(self, upgrade: upgrade_pb2.Upgrade) -> Answers:
        by_name = {one.adapter: one for one in upgrade.migrations}
        jobs = []
        for adapter in self._adapters:
            migration = by_name[adapter.name]
            candidate = Candidate(
                name=adapter.name,
                examples=adapter.held_out,
                seeds=adapter.seeds[: self._settings.few_shot],
                source_version=migration.source_version,
                shadow_version=migration.shadow_version,
            )
            found = conditions(candidate, self._settings.next_base)
            jobs += [(adapter.name, condition, load) for condition, load in found.items()]
        async with asyncio.timeout(self._limits.judge_s):
            results = await measure(
                self._cluster.grpc,
                [load for _, _, load in jobs],
                concurrency=self._settings.judge_concurrency,
                on_record=self._keep,
            )
        answers: Answers = {adapter.name: {} for adapter in self._adapters}
        for (name, condition, _), records in zip(jobs, results, strict=True):
            answers[name][condition] = records
        return answers

    async def _operate(self, client: LorebaseClient, upgrade: upgrade_pb2.Upgrade) -> None:
        promoted = [one.adapter for one in upgrade.migrations if one.state == "promoted"]
        if not self._settings.rollback or not promoted:
            return
        load = next(one for one in self._live if one.adapter == promoted[0])
        with self._phase("rollback"):
            for action in ("rollback", "promote"):
                done = await move(
                    client,
                    action,
                    upgrade,
                    load,
                    timeout_s=self._limits.operator_s,
                    on_record=self._keep,
                )
                self._moves.append(done)
                self._board.say(
                    f"{action} of {done.adapter}: seen by a client after {done.seen_s:.2f} s"
                )
                await asyncio.sleep(CALM_S / 2)

    def _store_records(self) -> None:
        """Keeps every request, so that a figure of the report can be looked into."""
        path = self._settings.state_dir / "requests.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in to_rows(self._records):
                file.write(json.dumps(row) + "\n")

    async def _last_word(self) -> dict[str, RequestRecord]:
        """Asks every adapter by its plain name, at the very end."""
        ask = [workload(one.model, one.adapter, one.examples[:1]) for one in self._live]
        results = await measure(self._cluster.grpc, ask, kind="last-word", on_record=self._keep)
        return {records[0].adapter: records[0] for records in results}
