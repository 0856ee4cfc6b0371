"""Engine settings: validation, dtype resolution, environment."""

from pathlib import Path
from typing import Any

import pytest

from lorebase.serving.engine.settings import (
    EngineSettings,
    apply_environment,
    cpu_environment,
    read_cpu_flags,
    resolve_dtype,
)
from lorebase.serving.errors import InvalidArgumentError

AVX2 = frozenset({"avx2", "fma"})


def make(**changes: Any) -> EngineSettings:
    return EngineSettings(**{"base_id": "old", "model_path": "bases/old", **changes})


def test_defaults_are_valid() -> None:
    settings = make()
    assert settings.background_cap < settings.max_num_seqs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_id": ""}, "base_id is empty"),
        ({"model_path": ""}, "model_path is empty"),
        ({"backend": "thread"}, "'thread', expected one of async, inprocess"),
        ({"scheduler": "fcfs"}, "expected one of preempting, priority"),
        ({"dtype": "int8"}, "expected one of auto"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0, expected at least 1"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"max_loras": 9, "max_cpu_loras": 8}, "max_cpu_loras is 8, expected at least 9"),
        ({"max_num_seqs": 8, "background_cap": 8}, "expected 1 to max_num_seqs - 1"),
        ({"background_cap": 2, "background_cap_busy": 3}, "background_cap_busy is 3"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes is 1000"),
        ({"block_size": 12}, "block_size is 12"),
        ({"adapter_wait_s": 0.0}, "adapter_wait_s is 0.0"),
        ({"stream_interval": 0}, "stream_interval is 0"),
    ],
)
def test_bad_values_are_refused_with_what_is_expected(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        make(**changes)


def test_one_sequence_still_leaves_room_for_background_work() -> None:
    assert make(max_num_seqs=1, background_cap=1, background_cap_busy=1).background_cap == 1


@pytest.mark.parametrize(
    ("requested", "device", "flags", "expected"),
    [
        ("auto", "cpu", AVX2, "float32"),
        ("auto", "cpu", frozenset(), "float32"),
        ("auto", "cpu", AVX2 | {"avx512f"}, "float32"),
        ("auto", "cpu", AVX2 | {"avx512_bf16"}, "bfloat16"),
        ("auto", "cpu", frozenset({"amx_bf16"}), "bfloat16"),
        ("auto", "cpu", frozenset({"asimd", "bf16"}), "bfloat16"),
        ("auto", "cuda", AVX2, "bfloat16"),
        ("float16", "cuda", AVX2, "float16"),
        ("bfloat16", "cpu", AVX2, "bfloat16"),
    ],
)
def test_auto_means_bfloat16_only_where_hardware_multiplies_it(
    requested: Any, device: Any, flags: frozenset[str], expected: str
) -> None:
    assert resolve_dtype(requested, device=device, cpu_flags=flags) == expected


def test_cpu_flags_are_read_from_x86_and_arm_and_missing_files(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nflags\t\t: fpu\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert read_cpu_flags(x86) == {"fpu", "avx2", "avx512_bf16"}
    assert "bf16" in read_cpu_flags(arm)
    assert read_cpu_flags(tmp_path / "none") == frozenset()


def test_environment_limits_threads_and_keeps_the_operators_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = cpu_environment(make(cpu_threads=3))
    assert values["OMP_NUM_THREADS"] == "3"
    assert values["VLLM_CONFIGURE_LOGGING"] == "0"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("VLLM_CONFIGURE_LOGGING", raising=False)
    import os

    apply_environment({"OMP_NUM_THREADS": "3", "VLLM_CONFIGURE_LOGGING": "0"})
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert os.environ["VLLM_CONFIGURE_LOGGING"] == "0"
