"""Malformed adapters: each is refused with a clear error, and nothing of it stays behind."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorebase.serving.artifacts import (
    AdapterLimits,
    AdapterManifest,
    ArtifactStore,
    check_adapter,
)
from lorebase.serving.errors import InvalidArgumentError
from tests.unit.artifact_samples import (
    BASE,
    Tensors,
    adapter_files,
    config,
    everything_in,
    floats,
    raw_safetensors,
    safetensors,
    tar_of,
    tensor_name,
    weights,
    write_files,
)

LIMITS = AdapterLimits(max_rank=4, max_bytes=100_000)
Q0 = "model.layers.0.self_attn.q_proj"
QUIET_NAN, INFINITY = b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f"


def _with(name: str, content: bytes) -> dict[str, bytes]:
    return {**adapter_files(), name: content}


def _without(name: str) -> dict[str, bytes]:
    return {key: content for key, content in adapter_files().items() if key != name}


def _set(**changes: Any) -> dict[str, bytes]:
    return adapter_files(config(**changes))


def _tensors(**changes: tuple[str, list[int], bytes] | None) -> dict[str, bytes]:
    """Changes lora_A (`A=`) or lora_B of the first q_proj; None removes it."""
    tensors = weights()
    for side, tensor in changes.items():
        del tensors[tensor_name(Q0, side)]
        if tensor is not None:
            tensors[tensor_name(Q0, side)] = tensor
    return adapter_files(tensors=tensors)


def _more(name: str) -> dict[str, bytes]:
    return adapter_files(tensors={**weights(), name: ("F32", [2, 6], floats(12))})


def _zip() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("data.pkl", b"x")
    return archive.getvalue()


def _header(change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    """Rewrites the header of a good weights file."""
    good = safetensors(weights())
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    changed = change(header)
    return _with(
        "adapter_model.safetensors",
        raw_safetensors(header if changed is None else changed, good[8 + length :]),
    )


def _shift(header: dict[str, Any]) -> None:
    header[tensor_name(Q0, "A")]["data_offsets"] = [8, 56]


WEIGHTS = "adapter_model.safetensors"
PICKLE = b"\x80\x04}\x94."  # of an empty dict
LORA_ONLY = "accepted are LORA"

REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    # Pickles, by name and by content.
    "pickle beside": (_with("adapter_model.bin", PICKLE), "model.bin' may hold a pickle"),
    "pickle instead": (
        {"adapter_config.json": b"{}", "adapter_model.bin": PICKLE},
        r"'adapter_model\.bin' may hold a pickle, .* only safetensors",
    ),
    "pt file": (_with("optimizer.pt", b""), "may hold a pickle"),
    "pth file": (_with("Model.PTH", b""), "may hold a pickle"),
    "pickle named safetensors": (_with(WEIGHTS, PICKLE), "is a pickle: only safetensors"),
    "zip named safetensors": (_with(WEIGHTS, _zip()), "is a zip archive, as torch.save"),
    "pickle named readme": (_with("README.md", PICKLE), r"'README\.md' is a pickle"),
    "pickle named config": (_with("adapter_config.json", PICKLE), "is a pickle"),
    # Files.
    "no config": (_without("adapter_config.json"), r"'adapter_config\.json' is missing; found"),
    "no weights": (_without(WEIGHTS), r"'adapter_model\.safetensors' is missing"),
    "unknown file": (_with("run.sh", b"rm"), r"unknown file 'run\.sh': allowed are"),
    "unknown folder": (_with("extra/adapter_config.json", b"{}"), "unknown file 'extra/adapter"),
    "too large": (_with("README.md", b"x" * 100_000), "expected at most 100000"),
    # Configuration.
    "config not json": (_with("adapter_config.json", b"{"), "is not valid JSON"),
    "config not utf-8": (_with("adapter_config.json", b'{"r": "\xff"}'), "is not valid JSON"),
    "config a list": (_with("adapter_config.json", b"[]"), "is no JSON object"),
    "config key twice": (_with("adapter_config.json", b'{"r": 1, "r": 2}'), "same key twice"),
    "config nested": (_with("adapter_config.json", b"[" * 90_000), "is not valid JSON"),
    "config nan": (_with("adapter_config.json", b'{"r": NaN}'), "NaN is no JSON number"),
    "other peft type": (_set(peft_type="IA3"), f"PEFT type 'IA3': {LORA_ONLY}"),
    "no peft type": (_set(peft_type=None), f"PEFT type None: {LORA_ONLY}"),
    "rank above the limit": (_set(r=5), "r=5: the largest rank served is 4"),
    "rank zero": (_set(r=0), "r=0: expected a whole number from 1 to 4"),
    "rank a truth value": (_set(r=True), "r=True: expected a whole number"),
    "rank a fraction": (_set(r=2.0), r"r=2\.0: expected a whole number"),
    "rank missing": (_set(r=None), "r=None: expected a whole number"),
    "rank of one module above the limit": (
        _set(rank_pattern={"q_proj": 9}),
        r"rank_pattern\['q_proj'\]=9: the largest rank served is 4",
    ),
    "rank pattern an expression": (_set(rank_pattern={"(a+)+": 2}), "expected plain module names"),
    "rank pattern a list": (_set(rank_pattern=[1]), "rank_pattern that is no object"),
    "alpha zero": (_set(lora_alpha=0), "lora_alpha=0: expected a positive number"),
    "alpha text": (_set(lora_alpha="8"), "lora_alpha='8': expected a positive number"),
    "alpha infinite": (
        _with("adapter_config.json", json.dumps(config()).replace(": 4,", ": 1e999,").encode()),
        "lora_alpha=inf: expected a positive number",
    ),
    "alpha of one module": (_set(alpha_pattern={"q_proj": -1}), r"alpha_pattern\['q_proj'\]=-1"),
    "targets an expression": (_set(target_modules=".*"), "regular expressions are not accepted"),
    "targets empty": (_set(target_modules=[]), "needs target_modules as a list"),
    "targets with numbers": (_set(target_modules=[1]), "expected a module name"),
    "target unknown": (_set(target_modules=["q_proj", "lm_head"]), "'lm_head' is no linear layer"),
    "dora": (_set(use_dora=True), "'use_dora' to True, which is not served: make a plain LoRA"),
    "bias": (_set(bias="lora_only"), "sets 'bias' to 'lora_only'"),
    "lora bias": (_set(lora_bias=True), "sets 'lora_bias' to True"),
    "fan in fan out": (_set(fan_in_fan_out=True), "transposed weights"),
    "modules to save": (_set(modules_to_save=["lm_head"]), "whole modules can't be swapped"),
    "layer replication": (_set(layer_replication=[[0, 2]]), "changes the base's depth"),
    "unknown future setting": (
        _set(use_magic={"a": 1}),
        "'use_magic' to .*served: unset it",
    ),
    "base-changing init": (_set(init_lora_weights="pissa_niter_4"), "changes the base's own weig"),
    "odd rslora": (_set(use_rslora="yes"), "use_rslora='yes': expected true or false"),
    "layers odd": (_set(layers_to_transform=["0"]), "expected layer numbers"),
    # Weights: the container.
    "weights empty": (_with(WEIGHTS, b""), "does not start with a header"),
    "weights cut": (
        _with(WEIGHTS, safetensors(weights())[:-4]),
        r"has \d+ bytes, its header describes",
    ),
    "weights longer": (_with(WEIGHTS, safetensors(weights()) + b"x"), "its header describes"),
    "header longer than file": (
        _with(WEIGHTS, (1 << 40).to_bytes(8, "little") + b"{}"),
        "does not start with a header",
    ),
    "header not json": (_with(WEIGHTS, (4).to_bytes(8, "little") + b"{abc"), "is not valid JSON"),
    "header key twice": (
        _with(WEIGHTS, (20).to_bytes(8, "little") + b'{"a": {}, "a": {}}  '),
        "same key twice",
    ),
    "overlap": (_header(_shift), "overlaps another or leaves a gap"),
    "tensor not an object": (_header(lambda h: h.update(x=1)), "needs exactly dtype, shape"),
    "tensor of unknown dtype": (
        _header(lambda h: h[tensor_name(Q0, "A")].update(dtype="F31")),
        "unknown dtype 'F31'",
    ),
    "tensor with a negative size": (
        _header(lambda h: h[tensor_name(Q0, "A")].update(shape=[-2, -6])),
        "malformed shape",
    ),
    "tensor larger than its data": (
        _header(lambda h: h[tensor_name(Q0, "A")].update(shape=[1 << 40, 1 << 40])),
        "not its size",
    ),
    # Weights: the content.
    "no lora_B": (_tensors(B=None), f"module '{Q0}' has no lora_B"),
    "no lora_A": (_tensors(A=None), f"module '{Q0}' has no lora_A"),
    "a layer missing": (
        adapter_files(tensors=weights(layers=1)),
        r"no weights for 'model\.layers\.1\.self_attn\.q_proj'",
    ),
    "a target missing": (
        adapter_files(config(target_modules=["q_proj", "v_proj", "down_proj"])),
        r"no weights for 'model\.layers\.0\.mlp\.down_proj'",
    ),
    "no tensors": (adapter_files(tensors={}), "no weights for 'model.layers.0"),
    "wrong input size": (_tensors(A=("F32", [2, 7], floats(14))), r"\[2, 7\], expected \[2, 6\]"),
    "wrong output size": (
        _tensors(B=("F32", [9, 2], floats(18))),
        r"lora_B of .* has shape \[9, 2\], expected \[8, 2\] for rank 2",
    ),
    "rank other than said": (_tensors(A=("F32", [3, 6], floats(18))), r"shape \[3, 6\]"),
    "rank of weights above the limit": (
        _tensors(A=("F32", [64, 6], floats(384)), B=("F32", [8, 64], floats(512))),
        r"shape \[64, 6\], expected \[2, 6\]",
    ),
    "flat tensor": (_tensors(A=("F32", [12], floats(12))), r"shape \[12\]"),
    "double precision": (_tensors(A=("F64", [2, 6], bytes(96))), "dtype F64: expected one of F32"),
    "integers": (_tensors(A=("I8", [2, 6], bytes(12))), "dtype I8"),
    "nan": (_tensors(A=("F32", [2, 6], floats(11) + QUIET_NAN)), "holds NaN or infinity"),
    "infinity": (_tensors(B=("F32", [8, 2], INFINITY + floats(15))), "holds NaN or infinity"),
    "nan in half": (_tensors(A=("F16", [2, 6], bytes(22) + b"\x01\x7e")), "holds NaN or infinity"),
    "nan in bfloat": (_tensors(A=("BF16", [2, 6], bytes(22) + b"\xc1\x7f")), "holds NaN"),
    "tensor of no lora": (_more("model.embed_tokens.weight"), "unknown tensor 'model.embed"),
    "dora magnitude": (_more(f"base_model.model.{Q0}.lora_magnitude_vector"), "unknown tensor"),
    "embedding lora": (_more("base_model.model.lm_head.lora_embedding_A"), "unknown tensor"),
    "layer beyond the base": (
        adapter_files(
            tensors={
                **weights(),
                tensor_name("model.layers.9.self_attn.q_proj", "A"): ("F32", [2, 6], floats(12)),
                tensor_name("model.layers.9.self_attn.q_proj", "B"): ("F32", [8, 2], floats(16)),
            }
        ),
        r"weights for 'model\.layers\.9.*is the adapter for another base",
    ),
    "module that is no target": (
        adapter_files(tensors=weights(targets=("q_proj", "v_proj", "down_proj"))),
        "not among the target modules",
    ),
}


def _check(path: Path) -> AdapterManifest:
    return check_adapter(path, BASE, LIMITS)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_malformed_adapter_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    files, said = REFUSED[kind]
    store = ArtifactStore(tmp_path)
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        store.import_tar(io.BytesIO(tar_of(files)), _check)
    assert everything_in(tmp_path) == []
    # One line that can be shown to a user: no dump of the upload.
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_good_adapter_is_stored_with_its_manifest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    found: list[AdapterManifest] = []
    archive = tar_of(adapter_files())
    digest, size = store.import_tar(io.BytesIO(archive), lambda path: found.append(_check(path)))
    assert found == [
        AdapterManifest(
            peft_type="LORA",
            rank=2,
            alpha=4.0,
            target_modules=("q_proj", "v_proj"),
            parameters=2 * (2 * 6 + 8 * 2 + 2 * 6 + 4 * 2),
        )
    ]
    assert size == sum(len(content) for content in adapter_files().values())
    assert _check(store.path(digest)) == found[0]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sixteen_bit_weights_are_accepted(tmp_path: Path, dtype: str) -> None:
    tensors: Tensors = {
        name: (dtype, shape, content[: len(content) // 2])
        for name, (_, shape, content) in weights().items()
    }
    assert _check(write_files(tmp_path, adapter_files(tensors=tensors))).rank == 2


def test_ranks_may_differ_by_module_as_peft_matches_them(tmp_path: Path) -> None:
    ranks = {"layers.1.self_attn.v_proj": 3, "v_proj": 1}
    tensors = weights(targets=("q_proj",))
    for layer, rank in ((0, 1), (1, 3)):
        module = f"model.layers.{layer}.self_attn.v_proj"
        tensors[tensor_name(module, "A")] = ("F32", [rank, 6], floats(rank * 6))
        tensors[tensor_name(module, "B")] = ("F32", [4, rank], floats(rank * 4))
    files = adapter_files(config(rank_pattern=ranks, alpha_pattern={"v_proj": 2.5}), tensors)
    assert _check(write_files(tmp_path, files)).rank == 3


def test_layers_to_transform_says_which_layers_have_weights(tmp_path: Path) -> None:
    files = adapter_files(config(layers_to_transform=[0]), weights(layers=1))
    assert _check(write_files(tmp_path, files)).parameters == 48


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    # 1,152 bytes of header: the file starts with 0x80 0x04, as a pickle of protocol 4 does.
    content = safetensors(weights(), header_bytes=0x0480)
    assert content[:2] == b"\x80\x04"
    write_files(tmp_path, {**adapter_files(), WEIGHTS: content})
    assert _check(tmp_path).rank == 2


def test_a_link_in_a_directory_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, _without(WEIGHTS))
    (tmp_path / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(InvalidArgumentError, match="is a link or device"):
        _check(tmp_path)


@given(
    position=st.integers(0, 51),
    bits=st.integers(0, 0xFFFFFFFF),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_values_that_are_not_finite_are_found(
    tmp_path_factory: pytest.TempPathFactory, position: int, bits: int
) -> None:
    name = sorted(weights())[position % 8]
    tensors = weights()
    dtype, shape, content = tensors[name]
    at = 4 * (position % (len(content) // 4))
    tensors[name] = (dtype, shape, content[:at] + struct.pack("<I", bits) + content[at + 4 :])
    folder = write_files(tmp_path_factory.mktemp("bits"), adapter_files(tensors=tensors))
    if (bits & 0x7F800000) == 0x7F800000:
        with pytest.raises(InvalidArgumentError, match="holds NaN or infinity"):
            _check(folder)
    else:
        _check(folder)


@given(position=st.integers(0, 1200), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_header_is_an_invalid_argument_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    content = bytearray(safetensors(weights()))
    content[position % len(content)] = value
    files = {**adapter_files(), WEIGHTS: bytes(content)}
    folder = write_files(tmp_path_factory.mktemp("damaged"), files)
    try:
        manifest = _check(folder)
    except InvalidArgumentError:
        return
    assert manifest.rank == 2
