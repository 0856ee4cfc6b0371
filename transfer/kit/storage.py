"""Kits on disk: `kit.json` and `discriminator/`, written whole or not at all."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lorebase.serving.artifacts import (
    AdapterLimits,
    BaseShapes,
    check_adapter,
    check_names,
    list_files,
    read_json,
)
from lorebase.serving.errors import InvalidArgumentError

from ..directories import check_replaceable, replace_directory
from .kit import MAX_SEEDS, MAX_TEXT_CHARS, SCHEMA_VERSION, TransferKit

KIT_FILE = "kit.json"
DISCRIMINATOR_DIR = "discriminator"
MAX_KIT_BYTES = 2 * MAX_SEEDS * MAX_TEXT_CHARS * 6
"""Room for every seed at full length, six bytes a character at most ("\\u1234"). Real inputs that a
tenant consented to share it."""
_NEW_IN_2 = {"discriminator": True, "real_inputs": (), "consent": None}
"""Fields that version 1 lacks, and what it means by that."""

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SCHEMA = TypeAdapter(TransferKit)


def check_kit_place(directory: Path) -> None:
    """Checks that a kit may be written to `directory`.

    Raises:
        FailedPreconditionError: something that is no kit is there.
    """
    check_replaceable(directory, kind="a kit", mark=KIT_FILE, names=(KIT_FILE, DISCRIMINATOR_DIR))


def save_kit(kit: TransferKit, discriminator: Path | None, directory: Path) -> None:
    """Writes a kit into `directory`, replacing a kit that is there.

    Args:
        kit: What goes into `kit.json`.
        discriminator: PEFT directory of the discriminator, which is moved into the kit; None for a
            kit that says that it has none.
        directory: The kit's directory; its parent must exist.

    Raises:
        InvalidArgumentError: the kit breaks its own bounds.
        FailedPreconditionError: something that is no kit is there.
    """
    check_kit_place(directory)
    if kit.discriminator != (discriminator is not None):
        raise ValueError(f"got {discriminator} for a kit with discriminator={kit.discriminator}")
    value = asdict(kit)
    if kit.schema_version == 1:
        for name, usual in _NEW_IN_2.items():
            if value[name] == usual:
                del value[name]
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except ValueError as error:
        raise InvalidArgumentError(
            f"the kit holds a figure that is not finite: {error}", reason="KIT_INVALID"
        ) from error
    if len(text) > MAX_KIT_BYTES:
        raise InvalidArgumentError(
            f"the kit takes {len(text)} bytes, expected at most {MAX_KIT_BYTES}: keep fewer real "
            "inputs",
            reason="KIT_INVALID",
        )
    _validated(json.loads(text))
    staging = Path(tempfile.mkdtemp(prefix=".kit-", dir=directory.parent))
    try:
        (staging / KIT_FILE).write_text(text)
        if discriminator is not None:
            shutil.move(discriminator, staging / DISCRIMINATOR_DIR)
        staging.chmod(0o755)
        replace_directory(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_kit(directory: Path) -> TransferKit:
    """Reads `kit.json`; the discriminator's weights are not looked at.

    Raises:
        InvalidArgumentError: missing, too big, not JSON, of an unknown schema or out of bounds.
    """
    path = directory / KIT_FILE
    if not path.is_file() or path.is_symlink():
        raise InvalidArgumentError(
            f"no {KIT_FILE} in the kit: expected a directory made by `lorebase kit build`",
            reason="KIT_INVALID",
        )
    return _validated(read_json(path, max_bytes=MAX_KIT_BYTES))


def discriminator_dir(directory: Path) -> Path:
    """Returns the PEFT directory of a kit's discriminator."""
    return directory / DISCRIMINATOR_DIR


def check_kit(directory: Path, base: BaseShapes, limits: AdapterLimits) -> TransferKit:
    """Checks everything about an uploaded kit before it is kept.

    Args:
        directory: The kit.
        base: Shapes of the base named in the kit's `base_id`.
        limits: Bounds of the discriminator's weights.

    Raises:
        InvalidArgumentError: what is wrong and what was expected.
    """
    weights = [f"{DISCRIMINATOR_DIR}/{name}" for name in _ADAPTER_FILES]
    check_names(list_files(directory), required=(KIT_FILE,), optional=weights)
    kit = load_kit(directory)
    check_names(list_files(directory), required=(KIT_FILE, *(weights if kit.discriminator else ())))
    if kit.discriminator:
        check_adapter(discriminator_dir(directory), base, limits)
    return kit


def _validated(value: Any) -> TransferKit:
    found = value.get("schema_version") if isinstance(value, dict) else None
    if found not in range(1, SCHEMA_VERSION + 1):
        raise InvalidArgumentError(
            f"the kit has schema version {found!r}, this lorebase reads 1 to {SCHEMA_VERSION}: "
            "build the kit again, or use the lorebase that made it",
            reason="KIT_SCHEMA",
        )
    try:
        kit = _SCHEMA.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InvalidArgumentError(
            f"{KIT_FILE} is not a valid kit: {where}: {first['msg']} "
            f"({error.error_count()} such problems)",
            reason="KIT_INVALID",
        ) from error
    _check_extras(kit)
    _check_texts(kit)
    return kit


def _check_extras(kit: TransferKit) -> None:
    """Checks what version 2 added."""
    extras = [name for name, usual in _NEW_IN_2.items() if getattr(kit, name) != usual]
    if kit.schema_version == 1 and extras:
        raise InvalidArgumentError(
            f"the kit has schema version 1 and {extras[0]}, which takes version 2",
            reason="KIT_SCHEMA",
        )
    if kit.real_inputs and kit.consent is None:
        raise InvalidArgumentError(
            f"the kit holds {len(kit.real_inputs)} real inputs but no consent to them: build it "
            "with `--consent`, or without real inputs",
            reason="KIT_INVALID",
        )
    for number, text in enumerate(kit.real_inputs, 1):
        if not text.strip() or len(text) > MAX_TEXT_CHARS:
            raise InvalidArgumentError(
                f"real input {number} is empty or longer than {MAX_TEXT_CHARS} characters",
                reason="KIT_INVALID",
            )


def _check_texts(kit: TransferKit) -> None:
    for number, seed in enumerate(kit.seeds, 1):
        if not seed.input.strip() or not seed.target.strip():
            raise InvalidArgumentError(
                f"seed {number} has an empty input or target", reason="KIT_INVALID"
            )
        longest = max(len(seed.input), len(seed.target))
        if longest > MAX_TEXT_CHARS:
            raise InvalidArgumentError(
                f"seed {number} has {longest} characters, at most {MAX_TEXT_CHARS} are allowed",
                reason="KIT_INVALID",
            )
    if "{input}" not in kit.format.prompt_template or not kit.format.stop:
        raise InvalidArgumentError(
            "the kit's format needs `{input}` in prompt_template and a stop that is not empty",
            reason="KIT_INVALID",
        )
