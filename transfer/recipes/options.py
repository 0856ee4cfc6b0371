"""A recipe with single choices changed, as a configuration gives them; what is wrong is told."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lorebase.serving.errors import InvalidArgumentError

from .recipe import Recipe

OWN_FIELDS = {
    "name": "`upgrade.recipe`",
    "training.steps": "`upgrade.steps`",
    "training.epochs": "`upgrade.steps: 0` (20 epochs) or the recipe's own",
    "training.batch_size": "`upgrade.batch_size`",
    "training.learning_rate": "`upgrade.learning_rate`",
    "training.seed": "`upgrade.seed`",
    "training.save_every": "nothing: workers save by themselves",
}
"""Not options: what says them instead."""


def with_options(
    recipe: Recipe, options: Mapping[str, Any], *, where: str = "upgrade.recipe_options"
) -> Recipe:
    """Returns the recipe with the options in place of its own choices.

    Args:
        recipe: what the options change.
        options: fields of `Recipe`, nested as there (`{"lora": {"initialisation": "eva"}}`); a
            nested mapping changes the fields that it names and leaves the others.
        where: what messages call the options.

    Raises:
        InvalidArgumentError: an unknown option, a value of another type or out of bounds; the
            message says what was got and what is expected.
    """
    return cast(Recipe, _changed(recipe, options, where, ""))


def _changed(value: Any, changes: Mapping[str, Any], where: str, path: str) -> Any:
    """Returns a dataclass with other values; `path` is where it lies, "" at the top."""
    made = _checked(type(value), changes, where, path, value)
    try:
        return replace(value, **made)
    except (InvalidArgumentError, ValueError) as error:
        raise InvalidArgumentError(f"{where}{_dot(path)}: {error}") from error


def _made(kind: type, values: Mapping[str, Any], where: str, path: str) -> Any:
    """Returns a new dataclass of the values."""
    made = _checked(kind, values, where, path, None)
    needed = [one.name for one in fields(kind) if _is_needed(one) and one.name not in made]
    if needed:
        raise InvalidArgumentError(
            f"{where}{_dot(path)}: {needed[0]!r} is missing; set {', '.join(needed)}"
        )
    return kind(**made)


def _checked(
    kind: Any, values: Mapping[str, Any], where: str, path: str, old: Any
) -> dict[str, Any]:
    """Returns the values of a dataclass's fields, each checked."""
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    made = {}
    for name, value in values.items():
        full = f"{path}.{name}" if path else str(name)
        if full in OWN_FIELDS:
            raise InvalidArgumentError(
                f"{where}.{full} is no option: what sets it is {OWN_FIELDS[full]}"
            )
        if name not in known:
            free = [one for one in known if (f"{path}.{one}" if path else one) not in OWN_FIELDS]
            raise InvalidArgumentError(
                f"unknown option {where}.{full}: expected one of {', '.join(free)}"
            )
        made[name] = _value(hints[name], value, where, full, getattr(old, name, None))
    return made


def _value(hint: Any, value: Any, where: str, path: str, old: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    nested = next((one for one in options if isinstance(one, type) and is_dataclass(one)), None)
    if nested is not None and not (value is None and type(None) in options):
        if not isinstance(value, Mapping):
            raise InvalidArgumentError(
                f"{where}.{path}: got {value!r}, expected a mapping with any of "
                f"{', '.join(one.name for one in fields(nested))}"
            )
        if old is None:
            return _made(nested, value, where, path)
        return _changed(old, value, where, path)
    # A configuration has lists only; a recipe is hashed, so it has tuples.
    plain = tuple(value) if isinstance(value, list) else value
    try:
        return TypeAdapter(hint).validate_python(plain, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidArgumentError(
            f"{where}.{path}: got {value!r}, expected {_told(hint)} ({first['msg']})"
        ) from error


def _told(hint: Any) -> str:
    """Returns a type in the words of a configuration."""
    return str(hint.__name__ if isinstance(hint, type) else hint).replace("typing.", "")


def _is_needed(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _dot(path: str) -> str:
    return f".{path}" if path else ""
