"""Options of the plugin: an engine's own configuration, then the environment, then stock."""

from typing import Any

import pytest

from lorebase.kernels.vllm.options import VARIABLE, KernelOptions, options_of, served_config


def test_without_any_word_vllms_own_serves() -> None:
    assert options_of({}, {}) == KernelOptions(kernels="stock")
    assert options_of(None, {}).kernels == "stock"


def test_the_environment_is_for_engines_that_say_nothing_themselves() -> None:
    environment = {VARIABLE: "lorebase", "LOREBASE_LORA_HOST_BYTES": "1000"}
    assert options_of({"other": 1}, environment) == KernelOptions(
        kernels="lorebase", host_bytes=1000
    )
    own = KernelOptions(kernels="stock", host_bytes=5).additional_config()
    assert options_of(own, environment) == KernelOptions(kernels="stock", host_bytes=5)


def test_options_come_back_from_what_an_engine_is_given() -> None:
    options = KernelOptions(kernels="lorebase", pool_bytes=7, kernels_on_cpu="triton")
    assert options_of(options.additional_config(), {}) == options


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"kernels": "fast"}, "got kernels='fast'; expected one of lorebase, stock"),
        ({"kernels_on_cpu": "rust"}, r"expected one of c\+\+, triton"),
        ({"host_bytes": 0}, "got host_bytes=0; expected at least 1, or None"),
        ({"prefetch_threads": 0}, "prefetch_threads=0"),
        ({"prefetch_bytes": 0}, "prefetch_bytes=0"),
        ({"kernel": "lorebase"}, "kernel"),
    ],
)
def test_bad_options_are_refused_with_what_is_expected(own: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options_of({"lorebase": own}, {})


def test_what_serves_is_left_for_vllms_hash_of_compiled_models() -> None:
    options = KernelOptions(kernels="lorebase", pool_bytes=7)
    given = {"other": 1, **options.additional_config()}
    served = served_config(given, options)
    assert served.items() > given.items()
    assert served != served_config(given, KernelOptions(kernels="lorebase", pool_bytes=8))
    assert len(served["lorebase_served"]["sources"]) == 16
    assert options_of(served, {}) == options
    assert served_config(None, options) is None
