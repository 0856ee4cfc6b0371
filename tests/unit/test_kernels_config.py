"""The tables of kernel configurations, without compiling or running a kernel."""

import json

import pytest

from lorebase.kernels.lora import aot
from lorebase.kernels.lora.gpu import config
from lorebase.kernels.lora.gpu.compiling import Resources, Variant, variants

ARCHES = ("gfx942", "sm_100", "sm_80", "sm_90")
SHAPES = [
    {"itemsize": itemsize, "tile_tokens": tile, "tokens": tokens, "rank": rank}
    for itemsize in (2, 4)
    for tile in (config.DECODE_TILE, config.PREFILL_TILE)
    for tokens in (1, 8, 9, 64, 256, 257, 8192, 1 << 20)
    for rank in (1, 3, 8, 16, 17, 32, 33, 64, 128, 256)
]


def test_tables_are_shipped_for_the_promised_architectures() -> None:
    assert tuple(config.arches()) == ARCHES


@pytest.mark.parametrize("arch", ARCHES)
def test_every_shape_has_a_row_that_can_serve_it(arch: str) -> None:
    for shape in SHAPES:
        row = config.table(arch).find(**shape)
        assert row.itemsize == shape["itemsize"]
        assert row.tile_tokens >= shape["tile_tokens"]
        if isinstance(row.kernels, config.Fused):
            assert row.kernels.block_r >= shape["rank"]


@pytest.mark.parametrize("arch", ARCHES)
def test_every_row_is_reached_by_some_shape(arch: str) -> None:
    reached = {config.table(arch).find(**shape) for shape in SHAPES}
    assert reached == set(config.table(arch).rows), "a row that an earlier one hides"


@pytest.mark.parametrize("arch", ARCHES)
def test_rows_survive_being_written_and_read(arch: str) -> None:
    for row in config.table(arch).rows:
        assert config.Row.from_json(json.loads(json.dumps(row.as_json()))) == row


def test_a_tile_size_without_rows_is_refused_with_what_was_asked() -> None:
    with pytest.raises(ValueError, match="'tile_tokens': 128"):
        config.table("sm_90").find(itemsize=2, tile_tokens=128, tokens=1, rank=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 32}, "at most block_r"),
        ({"rank": None}, "at most block_r"),
        ({"fused": {"block_k": 24}}, "powers of two"),
        ({"fused": {"block_n": 8}}, "powers of two"),
    ],
)
def test_rows_that_no_kernel_can_run_are_refused(change: dict[str, object], message: str) -> None:
    fused = next(r for r in config.table("sm_90").rows if isinstance(r.kernels, config.Fused))
    values = fused.as_json()
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        config.Row.from_json(values)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [(80, "sm_80"), (86, "sm_80"), (89, "sm_80"), (90, "sm_90"), (100, "sm_100"), (120, "sm_100")],
)
def test_a_device_without_a_table_takes_the_next_older_one(capability: int, arch: str) -> None:
    assert config.nearest_sm(capability) == arch


def test_devices_before_sm_80_are_refused() -> None:
    with pytest.raises(ValueError, match="got sm_75; expected at least sm_80"):
        config.nearest_sm(75)


def test_steps_are_cut_into_tiles_that_the_tables_know() -> None:
    assert config.tile_tokens_for(config.DECODE_TOKENS) == config.DECODE_TILE
    assert config.tile_tokens_for(config.DECODE_TOKENS + 1) == config.PREFILL_TILE


def test_the_record_names_exactly_the_kernels_of_the_tables() -> None:
    record = json.loads(aot.RECORD.read_text(encoding="utf-8"))["kernels"]
    assert sorted(record) == sorted(ARCHES)
    for arch in ARCHES:
        assert sorted(record[arch]) == sorted(variant.key for variant in variants(arch)), (
            "run `python -m lorebase.kernels.lora.aot --write`"
        )


def test_the_recorded_kernels_spill_nothing_and_fit_every_device() -> None:
    record = json.loads(aot.RECORD.read_text(encoding="utf-8"))["kernels"]
    found = {v: Resources(**record[arch][v.key]) for arch in ARCHES for v in variants(arch)}
    assert not aot.faults(found)


FIT = Resources(registers=64, spills=0, stack=0, shared=1024, narrow_loads=0)


def _variant(arch: str = "sm_90") -> Variant:
    return next(variant for variant in variants(arch) if variant.loads_wide)


@pytest.mark.parametrize(
    ("arch", "worse"),
    [
        ("sm_90", {"spills": 4}),
        ("sm_90", {"stack": 8}),
        ("sm_90", {"shared": 100 << 10}),
        ("sm_90", {"narrow_loads": 1}),
        ("gfx942", {"spills": 1}),
        ("gfx942", {"shared": 65 << 10}),
    ],
)
def test_unfit_kernels_are_faults(arch: str, worse: dict[str, int]) -> None:
    values = {name: getattr(FIT, name) for name in FIT.__slots__}
    assert not aot.faults({_variant(arch): FIT})
    assert len(aot.faults({_variant(arch): Resources(**{**values, **worse})})) == 1


def test_every_dtype_and_odd_columns_are_compiled() -> None:
    for arch in ARCHES:
        found = {(v.kernel, v.dtype, dict(v.blocks).get("ALIGN_N")) for v in variants(arch)}
        for dtype in ("bf16", "fp16", "fp32"):
            assert {("shrink", dtype, None), ("expand", dtype, 16)} <= found
        assert {("expand", "bf16", 1), ("expand", "fp32", 1), ("fused", "bf16", 1)} <= found


def test_single_elements_may_be_loaded_where_columns_are_odd_only() -> None:
    narrow = Resources(registers=64, spills=0, stack=0, shared=1024, narrow_loads=9)
    odd = next(v for v in variants("sm_90") if dict(v.blocks).get("ALIGN_N") == 1)
    even = next(v for v in variants("sm_90") if dict(v.blocks).get("ALIGN_N") == 16)
    assert not aot.faults({odd: narrow})
    assert len(aot.faults({even: narrow})) == 1


def test_a_changed_kernel_differs_from_the_record_unless_the_compiler_changed() -> None:
    more = Resources(registers=65, spills=0, stack=0, shared=1024, narrow_loads=0)
    record, now = aot.as_record({_variant(): FIT}), aot.as_record({_variant(): more})
    assert not aot.differences(record, record)
    assert len(aot.differences(record, now)) == 1
    now["triton"] = "0.0"
    assert not aot.differences(record, now)
    now["kernels"]["sm_90"]["another"] = {}
    assert len(aot.differences(record, now)) == 1


def test_a_written_record_reads_back() -> None:
    record = aot.as_record({_variant(): FIT, _variant("gfx942"): FIT})
    assert json.loads(aot.as_text(record)) == record


@pytest.mark.parametrize("arch", ARCHES)
def test_odd_columns_are_taken_fewer_at_a_time_and_all_of_them(arch: str) -> None:
    for row in config.table(arch).rows:
        even, odd = row.kernels, config.for_odd_columns(row.kernels)
        if isinstance(even, config.Fused):
            assert isinstance(odd, config.Fused)
            assert odd.block_n == even.block_n // 2
            assert odd.block_n * odd.steps_n == even.block_n * even.steps_n
        else:
            assert isinstance(odd, tuple)
            assert odd[0] == even[0]
            assert odd[1].block_n == even[1].block_n // 2 >= 16
