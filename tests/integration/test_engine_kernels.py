"""`engine.lora_kernels`: both choices answer alike, in one process, and keep tenants apart."""

import copy
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from lorebase.serving.artifacts import base_shapes
from lorebase.serving.engine import Sampling, complete_many
from lorebase.serving.engine.budget import slot_bytes
from tests.integration.engine_world import (
    PROMPTS,
    World,
    kept_environment,
    make_world,
    request,
    running,
    settings,
    tokens_of,
    until,
)

if TYPE_CHECKING:
    from lorebase.serving.engine.vllm_engine import VllmEngine

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it imports warn of each other
]

CONFIG = "adapter_config.json"
LONG = Sampling(max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with kept_environment():
        yield make_world(tmp_path_factory.mktemp("world"), "llama")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(world: World) -> "AsyncIterator[dict[str, VllmEngine]]":
    # The stock one first: vLLM then loads its plugins while ours is not wanted yet.
    async with (
        running(settings(world, lora_kernels="stock")) as stock,
        running(settings(world)) as ours,
    ):
        yield {"stock": stock, "lorebase": ours}


def _manager(engine: "VllmEngine") -> Any:
    core = engine._driver._engine.engine_core.engine_core  # type: ignore[attr-defined]
    return core.model_executor.driver_worker.worker.model_runner.lora_manager


async def test_each_engine_of_a_process_has_the_kernels_that_it_asked_for(
    engines: "dict[str, VllmEngine]",
) -> None:
    kinds = {}
    for name, engine in engines.items():
        manager = _manager(engine)._adapter_manager
        wrapper = next(iter(manager.punica_wrapper_mapping.values()))
        layers = {type(module).__name__.startswith("Pooled") for module in manager.modules.values()}
        kinds[name] = (type(_manager(engine)).__name__, type(wrapper).__name__, layers)
    assert kinds == {
        "stock": ("LRUCacheWorkerLoRAManager", "IsolatedPunicaWrapper", {False}),
        "lorebase": ("PooledWorkerManager", "PooledPunicaWrapper", {True}),
    }


async def test_both_give_the_same_greedy_tokens(
    engines: "dict[str, VllmEngine]", world: World
) -> None:
    versions = [None, *(world.version(n) for n in range(4))]
    answers = [
        [await tokens_of(engine, prompt, version) for prompt in PROMPTS for version in versions]
        for engine in engines.values()
    ]
    assert answers[0] == answers[1]


async def test_plain_adapters_read_straight_equal_those_that_vllm_loads(
    engines: "dict[str, VllmEngine]", world: World, tmp_path: Path
) -> None:
    from vllm.lora.request import LoRARequest
    from vllm.lora.worker_manager import WorkerLoRAManager

    from lorebase.kernels.vllm.registered import packed_of

    manager = _manager(engines["lorebase"])
    special = tmp_path / "special"
    shutil.copytree(world.adapters[1], special)
    config = json.loads((special / CONFIG).read_text())
    config |= {"alpha_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 5}, "use_rslora": True}
    (special / CONFIG).write_text(json.dumps(config))
    for number, path in enumerate([*world.adapters, special], start=1):
        lora = LoRARequest(f"r{number}", 1000 + number, str(path))
        straight = packed_of(manager._prepared(lora))
        again = packed_of(manager._prepared(lora))  # in one native call
        parsed = WorkerLoRAManager._load_adapter(manager, lora)
        assert parsed.loras, "vLLM's own way"
        manager._manager.prepare(parsed)
        expected = packed_of(parsed)
        ranks = {index: block.ranks for index, block in expected.blocks.items()}
        for packed in (straight, again):
            assert {index: block.ranks for index, block in packed.blocks.items()} == ranks
            _check_equal(manager, packed, expected)
    assert manager._manager._reader._lists, "adapters of the same shapes share how to pack them"


def _check_equal(manager: Any, one: Any, other: Any) -> None:
    """Both packed adapters hold the same numbers, whatever their types."""
    for layer in manager._manager._weights.pool.layers:
        for got, wanted in zip(one.read(layer), other.read(layer), strict=True):
            assert (got is None) == (wanted is None)
            if got is not None and wanted is not None:
                assert torch.equal(got[0].float(), wanted[0].float())
                assert torch.equal(got[1].float(), wanted[1].float())


@pytest.mark.parametrize(
    ("stored", "alpha", "kept"),
    [
        (torch.bfloat16, 16, torch.bfloat16),
        (torch.bfloat16, 2, torch.bfloat16),
        (torch.bfloat16, 12, torch.float32),  # 12 / 8 would round
        (torch.float16, 8, torch.float16),
        (torch.float16, 16, torch.float32),  # twice a float16 may be too much
        (torch.float32, 8, torch.float32),
    ],
)
async def test_an_adapter_stays_as_narrow_as_its_file_where_that_rounds_nothing(
    engines: "dict[str, VllmEngine]",
    world: World,
    tmp_path: Path,
    stored: torch.dtype,
    alpha: int,
    kept: torch.dtype,
) -> None:
    from vllm.lora.request import LoRARequest
    from vllm.lora.worker_manager import WorkerLoRAManager

    from lorebase.kernels.vllm.registered import packed_of

    manager = _manager(engines["lorebase"])
    shutil.copytree(world.adapters[1], tmp_path / "a")
    weights, config = (tmp_path / "a" / n for n in ("adapter_model.safetensors", CONFIG))
    save_file({n: t.to(stored) for n, t in load_file(weights).items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
    lora = LoRARequest("narrow", 999, str(tmp_path / "a"))
    straight = packed_of(manager._prepared(lora))
    assert straight.data.dtype == kept
    parsed = WorkerLoRAManager._load_adapter(manager, lora)
    manager._manager.prepare(parsed)
    _check_equal(manager, straight, packed_of(parsed))


@pytest.mark.parametrize("kernels", ["stock", "lorebase"])
async def test_a_base_request_beside_full_slots_gets_no_adapters_weights(
    engines: "dict[str, VllmEngine]", world: World, kernels: str
) -> None:
    engine = engines[kernels]
    alone = await tokens_of(engine, PROMPTS[0], None, LONG)
    for pair in ((0, 1), (1, 0), (2, 3)):
        beside = [request(PROMPTS[1], world.version(n), LONG) for n in pair]
        together = await complete_many(
            engine, [request(PROMPTS[0], None, LONG), *beside, request(PROMPTS[0], None, LONG)]
        )
        assert together[0].token_ids == alone
        assert together[-1].token_ids == alone


async def test_what_the_kernels_do_not_cover_is_served_by_vllm_with_one_warning(
    engines: "dict[str, VllmEngine]",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import vllm.envs
    from vllm.config import CompilationMode
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    from lorebase.kernels.vllm import plugin
    from lorebase.kernels.vllm.manager import make_worker_manager

    monkeypatch.setattr(plugin, "_warned", set())
    engine = engines["lorebase"]._driver._engine  # type: ignore[attr-defined]
    config = copy.copy(engine.vllm_config)
    config.lora_config = copy.copy(config.lora_config)
    config.lora_config.fully_sharded_loras = True
    for _ in range(2):
        manager = make_worker_manager(config, torch.device("cpu"), {})
        assert type(manager) is LRUCacheWorkerLoRAManager
    config.lora_config = engine.vllm_config.lora_config
    config.compilation_config = copy.copy(config.compilation_config)
    config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
    assert type(make_worker_manager(config, torch.device("cpu"), {})) is LRUCacheWorkerLoRAManager
    monkeypatch.setitem(vars(vllm.envs), "VLLM_LORA_ENABLE_DUAL_STREAM", True)
    assert type(make_worker_manager(config, torch.device("cpu"), {})) is LRUCacheWorkerLoRAManager
    monkeypatch.setattr(plugin, "SUPPORTED", "9.")
    monkeypatch.setenv(plugin.VARIABLE, "lorebase")
    assert not plugin.register()
    monkeypatch.setenv(plugin.VARIABLE, "fast")
    assert not plugin.register()
    said = [record.getMessage() for record in caplog.records if record.name == "vllm.lorebase"]
    reasons = ("fully sharded", "compiled", "DUAL_STREAM is set", "made for 9.x", "'fast'")
    for words, message in zip(reasons, said, strict=True):
        assert words in message


async def test_adapters_beyond_the_byte_budget_come_and_go_and_answer_right(world: World) -> None:
    versions = [world.version(number) for number in range(6)]
    # Of ranks 4, 8, 2, 16, 4, 8: a third of them at a time.
    budget = 200_000
    async with running(settings(world, max_cpu_loras=99, adapter_host_bytes=budget)) as small:
        first = [await tokens_of(small, PROMPTS[0], version) for version in versions]
        registered = _manager(small)._manager._registered_adapters
        assert 0 < registered.used_bytes <= budget
        assert 0 < len(registered) < len(versions)
        together = await complete_many(
            small, [request(PROMPTS[0], version) for version in versions * 3]
        )
        assert [one.token_ids for one in together] == first * 3
        assert registered.used_bytes <= budget
        assert len(set(first)) == len(versions)


async def test_the_worker_itself_never_holds_more_bytes_than_its_budget(
    engines: "dict[str, VllmEngine]",
) -> None:
    from vllm.lora.lora_model import LoRAModel

    from lorebase.kernels.lora.layout import PackedAdapter
    from lorebase.kernels.vllm.registered import HostFullError, Registered, pack_into

    registered = Registered(99, lambda identity: None, budget_bytes=100)

    def adapter(identity: int, size: int) -> LoRAModel:
        made = LoRAModel(identity, 1, {})
        pack_into(made, PackedAdapter(data=torch.empty(size, dtype=torch.uint8), blocks={}))
        return made

    for identity, size in ((1, 40), (2, 30), (3, 30)):
        assert registered.victims(size, active=()) == []
        registered[identity] = adapter(identity, size)
    registered.touch(1)
    assert registered.victims(20, active=()) == [2]
    assert registered.victims(50, active={2}) == [3, 1]
    assert registered.victims(90, active={2}) == [3, 1, 2]
    registered.pin(3)
    with pytest.raises(HostFullError, match="50 bytes does not fit"):
        registered.victims(50, active=(), protected={1})
    registered.pop(2)
    assert registered.used_bytes == 70


async def test_stalls_tell_what_steps_waited_for(
    engines: "dict[str, VllmEngine]", world: World
) -> None:
    engine = engines["lorebase"]
    await engine.adapter_stalls()
    version = world.version(3, id="never seen")
    await tokens_of(engine, PROMPTS[0], version)
    load, slot = await engine.adapter_stalls()
    assert load.int_id == slot.int_id
    assert load.rank == slot.rank == 16
    assert 0 < load.load_s < 1
    assert 0 < slot.slot_s < 1
    assert await engine.adapter_stalls() == []
    assert await engines["stock"].adapter_stalls() == []


@pytest.mark.parametrize(("experts", "expected"), [(False, 8), (True, 3)])
async def test_slots_of_a_model_that_vllms_own_kernels_serve_are_bounded_in_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch, experts: bool, expected: int
) -> None:
    # Ours read adapters where they are; vLLM's pad each slot to the largest rank.
    from vllm.config import ModelConfig

    from lorebase.kernels.vllm import plugin
    from lorebase.serving.engine.vllm_common import engine_args

    monkeypatch.setenv(plugin.VARIABLE, "lorebase")
    monkeypatch.setattr(ModelConfig, "is_moe", experts)
    budget = 3 * slot_bytes(base_shapes(world.base), 16, 4)
    chosen = settings(world, max_loras=None, adapter_slot_bytes=budget)
    assert engine_args(chosen).max_loras == expected


async def test_a_hint_loads_an_adapter_that_nobody_asked_for_yet(
    engines: "dict[str, VllmEngine]", world: World
) -> None:
    engine, version = engines["lorebase"], world.version(2, id="hinted")
    engine.prefetch_adapter(world.version(2, id="foreign", base_id="another"))
    engine.prefetch_adapter(version)
    await until(lambda: "hinted" in engine._adapters.loaded)
    assert "foreign" not in engine._adapters.loaded
