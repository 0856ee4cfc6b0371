"""A whole upgrade on a real catalog and a real artifact store; models and cluster are fakes.

The fake bases understand one task: the answer to an input is the input backwards. The source
adapter does it right; the bare next base says "?"; a shadow is as good as its world says.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lorebase.serving.artifacts import AdapterLimits, ArtifactStore, base_revision
from lorebase.serving.catalog import Catalog, version_id
from lorebase.serving.catalog.records import Adapter, AdapterVersion, Base, Event, Migration
from lorebase.serving.config_sections import UpgradeSection
from lorebase.serving.engine.protocol import Completion, EngineStats, Sampling, VersionRef
from lorebase.serving.errors import UnavailableError
from lorebase.transfer.governor import Governor, GovernorPolicy, Lease, Probe
from lorebase.transfer.kit import DOCUMENT, TransferKit, load_kit, save_kit
from lorebase.transfer.ports import Example, ModelSpec
from lorebase.transfer.upgrade.commands import Commands
from lorebase.transfer.upgrade.controller import UpgradeController
from lorebase.transfer.upgrade.deps import Deps, read_events
from lorebase.transfer.upgrade.ports import DistillJob, DistillOutcome
from lorebase.transfer.upgrade.settings import UpgradeSettings

HIDDEN = 8
RANK = 2
MODULE = "model.layers.0.self_attn.q_proj"


def answer(text: str) -> str:
    """The right answer."""
    return text[::-1]


def make_base(directory: Path) -> Path:
    """Writes a base of one linear layer: enough for shapes and a revision."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1})
    )
    weights = {f"{MODULE}.weight": np.zeros((HIDDEN, HIDDEN), np.float32)}
    save_file(weights, directory / "model.safetensors")
    return directory


def make_lora(directory: Path, seed: int) -> Path:
    """Writes a LoRA for that layer."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    prefix = f"base_model.model.{MODULE}"
    save_file(
        {
            f"{prefix}.lora_A.weight": rng.normal(size=(RANK, HIDDEN)).astype(np.float32),
            f"{prefix}.lora_B.weight": rng.normal(size=(HIDDEN, RANK)).astype(np.float32),
        },
        directory / "adapter_model.safetensors",
    )
    return directory


class FakeMetrics:
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.swaps: list[float] = []
        self.busy_s: dict[str, float] = {}
        self.by_state: dict[str, int] = {}
        self.leases = 0

    def swap(self, seconds: float) -> None:
        self.swaps.append(seconds)

    def busy(self, stage: str, seconds: float) -> None:
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + seconds

    def migrations(self, by_state: dict[str, int]) -> None:
        self.by_state = dict(by_state)

    def lease(self, kind: str, change: int) -> None:
        self.leases += change


class FakeCluster:
    """Engines that start at once, unless told otherwise."""

    def __init__(self) -> None:
        self.engines: set[str] = {"old"}
        self.failing_starts = 0
        self.warmed: list[str] = []
        self.refreshed = 0
        self.retired: list[str] = []
        self.running_foreground = 0
        self.waiting_foreground = 0

    async def deploy_engine(self, base: Base) -> None:
        await asyncio.sleep(0)
        if self.failing_starts:
            self.failing_starts -= 1
            raise UnavailableError("out of memory")
        self.engines.add(base.id)

    async def retire_engine(self, base_id: str) -> None:
        self.engines.discard(base_id)
        self.retired.append(base_id)

    async def refresh_routes(self) -> None:
        self.refreshed += 1

    async def wait_acks(self, revision: int, timeout_s: float) -> bool:
        return True

    async def warm(self, version: VersionRef) -> int:
        assert version.base_id in self.engines
        self.warmed.append(version.id)
        return 1

    async def engine_stats(self, base_id: str) -> EngineStats:
        return EngineStats(
            base_id=base_id,
            running_foreground=self.running_foreground,
            waiting_foreground=self.waiting_foreground,
            running_background=0,
            loaded_versions=0,
            rss_bytes=0,
        )


@dataclass
class FakeWorkers:
    """Trains nothing: writes a LoRA whose weights follow from the job's key."""

    store: ArtifactStore
    scratch: Path
    jobs: list[DistillJob] = field(default_factory=list)
    failures: int = 0
    hang: asyncio.Event | None = None
    trimmed: list[int] = field(default_factory=list)

    async def distill(
        self, job: DistillJob, lease: Lease, on_progress: Callable[[float], None]
    ) -> DistillOutcome:
        self.jobs.append(job)
        assert lease.granted
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the worker died")
        on_progress(0.5)
        if self.hang is not None:
            await self.hang.wait()
        folder = self.scratch / f"{len(self.jobs)}"
        digest = self.store.put_dir(make_lora(folder, job.seed))
        summary = {"steps": job.recipe.training.steps}
        next_kit = None if job.judged is None else self._carried(job)
        return DistillOutcome(digest=digest, summary=summary, busy_s=1.5, next_kit=next_kit)

    def _carried(self, job: DistillJob) -> str:
        """Judges nothing: the old kit with another base's name on it."""
        assert job.judged is not None
        inputs = self.store.get_json(job.judged.inputs)["inputs"]
        kit = replace(load_kit(self.store.path(job.kit_digest)), base_id=job.base_id)
        scores = self.store.get_json(job.judged.scores)["scores"]
        assert len(scores) == (len(inputs) if kit.discriminator else 0)
        number = len(self.jobs)
        discriminator = None
        if kit.discriminator:
            discriminator = make_lora(self.scratch / f"discriminator{number}", number)
        save_kit(kit, discriminator, self.scratch / f"kit{number}")
        return self.store.put_dir(self.scratch / f"kit{number}")

    async def trim(self, keep: int) -> None:
        self.trimmed.append(keep)


class FakeModels:
    """TextGenerator for both bases.

    Args:
        quality: share of right answers of a shadow, by adapter; attempts are told apart by the
            version id's order of appearance.
    """

    def __init__(self, adapter_of: Callable[[str], str], quality: dict[str, list[float]]) -> None:
        self._adapter_of = adapter_of
        self._quality = quality
        self._shadows: dict[str, list[str]] = {}
        self.calls: list[tuple[ModelSpec, int]] = []
        self.fail_next = 0
        self.garbage = False
        self.pass_every = 1

    async def complete(
        self, model: ModelSpec, prompts: Sequence[str], sampling: Sampling
    ) -> list[Completion]:
        self.calls.append((model, len(prompts)))
        await asyncio.sleep(0)
        if self.fail_next:
            self.fail_next -= 1
            raise UnavailableError("engine restarting")
        if sampling.choices:
            real, fake = (-0.1, -2.4), (-2.4, -0.1)
            numbers = [int("".join(c for c in p if c.isdigit())) for p in prompts]
            return [
                Completion(
                    choice_logprobs=fake if number % self.pass_every else real,
                    finish_reason="length",
                )
                for number in numbers
            ]
        if sampling.temperature > 0:
            assert sampling.seed is not None
            numbers = range(sampling.seed, sampling.seed + len(prompts))
            texts = ["" if self.garbage else f" item {number:07d}" for number in numbers]
            return [Completion(text=text, finish_reason="stop") for text in texts]
        return [
            Completion(text=f" {self._answer(model, prompt)}", finish_reason="stop")
            for prompt in prompts
        ]

    def _answer(self, model: ModelSpec, prompt: str) -> str:
        text = prompt.rpartition("Input: ")[2].removesuffix("\nOutput:")
        if model.base_id == "old":
            return answer(text)
        if model.version is None:
            return "?"
        adapter = self._adapter_of(model.version.id)
        seen = self._shadows.setdefault(adapter, [])
        if model.version.id not in seen:
            seen.append(model.version.id)
        shares = self._quality.get(adapter, [1.0])
        share = shares[min(seen.index(model.version.id), len(shares) - 1)]
        # Numbers of inputs spread evenly, so the last digits make a share.
        digits = int("".join(c for c in text if c.isdigit()) or 0)
        return answer(text) if digits % 100 < share * 100 else "wrong"


class World:
    """Everything around a controller; `reboot` is a kill -9 followed by a restart."""

    def __init__(
        self,
        root: Path,
        adapters: Sequence[str],
        *,
        bases: Mapping[str, Path] | None = None,
        **settings: Any,
    ) -> None:
        self.root = root
        self.catalog = Catalog.open(f"sqlite:///{root / 'catalog.db'}")
        self.store = ArtifactStore(root / "store")
        self.cluster = FakeCluster()
        self.metrics = FakeMetrics()
        self.workers = FakeWorkers(self.store, root / "scratch")
        self.quality: dict[str, list[float]] = {}
        adapter_of = cache(lambda version: self.catalog.get_version(version).adapter)
        self.models = FakeModels(adapter_of, self.quality)
        choices = UpgradeSection(samples=150, evaluation_samples=200, steps=3, max_attempts=2)
        values = {"choices": choices, "poll_s": 0.02, "retry_wait_s": 0.01}
        values["governor_tick_s"] = 0.02
        self.settings = UpgradeSettings(**(values | settings))
        self.commands = Commands(catalog=self.catalog, store=self.store)
        self.task: asyncio.Task[None] | None = None
        self.controller: UpgradeController | None = None
        self._seeds = itertools.count(1)
        bases = bases or {base_id: make_base(root / base_id) for base_id in ("old", "next")}
        for base_id, path in bases.items():
            self.catalog.put_base(
                Base(
                    id=base_id,
                    path=str(path),
                    revision=base_revision(path) + base_id,
                    architecture="LlamaForCausalLM",
                    dtype="auto",
                    created_at=0.0,
                )
            )
        self.catalog.set_current_base("old")
        self.catalog.set_serving("old", True)
        for name in adapters:
            self.add_adapter(name)

    def add_adapter(
        self, name: str, *, kit: bool = True, entrusted: bool = False, base_id: str = "old"
    ) -> AdapterVersion:
        seed = next(self._seeds)
        digest = self.store.put_dir(make_lora(self.root / f"lora{seed}", seed))
        version = AdapterVersion(
            id=version_id(name, base_id, digest),
            adapter=name,
            base_id=base_id,
            digest=digest,
            peft_type="LORA",
            rank=RANK,
            target_modules=("q_proj",),
            origin="upload",
            created_at=0.0,
        )
        evaluation = None
        if entrusted:
            rows = [{"input": f"item {n}", "target": answer(f"item {n}")} for n in range(150)]
            lines = "\n".join(json.dumps(row) for row in rows)
            evaluation = self.store.put_bytes(lines.encode(), "evaluation.jsonl")
        adapter = Adapter(
            name=name,
            tenant=name.partition("/")[0],
            kit_digest=self.kit_for("old", seed) if kit else None,
            evaluation_digest=evaluation,
            created_at=0.0,
        )
        self.catalog.create_adapter(adapter, version)
        return version

    def kit_for(self, base_id: str, seed: int, **changes: Any) -> str:
        kit = TransferKit(
            base_id=base_id,
            dataset_name="items",
            dataset_size=150,
            format=DOCUMENT,
            seeds=tuple(Example(input=f"seed {n}", target=answer(f"seed {n}")) for n in range(5)),
            threshold=0.0,
            discriminator_auc=0.9,
            real_pass_rate=0.9,
            fake_pass_rate=0.9,
            max_input_chars=100,
            max_input_tokens=40,
            max_answer_tokens=20,
        )
        kit = replace(kit, **changes)
        folder = self.root / f"kit{seed}"
        weights = None
        if kit.discriminator:
            weights = make_lora(self.root / f"discriminator{seed}", 1000 + seed)
        save_kit(kit, weights, folder)
        return self.store.put_dir(folder)

    def give_kit(self, adapter: str, **changes: Any) -> TransferKit:
        """Replaces an adapter's kit by one with changes."""
        digest = self.kit_for("old", next(self._seeds), schema_version=2, **changes)
        self.catalog.set_kit(adapter, kit_digest=digest, evaluation_digest=None)
        return load_kit(self.store.path(digest))

    def deps(self) -> Deps:
        policy = GovernorPolicy(calm_s=0.001, max_cooldown_s=1.0, patience_s=0.5)
        governor = Governor(policy, Probe(self.cluster, cpu=lambda: 1.0), self.metrics.lease)
        return Deps(
            catalog=self.catalog,
            store=self.store,
            cluster=self.cluster,
            workers=self.workers,
            governor=governor,
            generator=lambda holder, on_busy: self.models,
            settings=self.settings,
            limits=AdapterLimits(),
            store_root=self.root / "store",
            work_root=self.root / "work",
            metrics=self.metrics,
            clock=time.time,
        )

    def deps_paused(self) -> bool:
        return self._deps.governor.paused

    def boot(self) -> None:
        self._deps = self.deps()
        self.controller = UpgradeController(self._deps)
        self.task = asyncio.create_task(self.controller.run())

    async def kill(self) -> None:
        """Cancels the controller where it stands; it gets no chance to write anything."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def reboot(self) -> None:
        await self.kill()
        self.boot()

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    def states(self) -> dict[str, str]:
        return {one.adapter: one.state for one in self.migrations()}

    def migrations(self) -> list[Migration]:
        return self.catalog.migrations_of(self.catalog.get_upgrade(None).id)

    def upgrade_state(self) -> str:
        return self.catalog.get_upgrade(None).state

    def events(self) -> list[Event]:
        return read_events(self.catalog, self.catalog.get_upgrade(None).id)

    def route(self, adapter: str) -> str:
        """Base that answers for an adapter."""
        table = self.catalog.route_table(lambda digest: digest)
        return table.versions[table.routes[adapter].stable].base_id

    async def completed(self) -> None:
        await self.until(lambda: self.upgrade_state() == "completed")
