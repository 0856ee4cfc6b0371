"""Tokenizers and chat templates of the bases, without importing torch or transformers.

Used where a prompt must be tokens before it reaches an engine: chats with a template, and
requests that go on after an engine died. Everything else leaves tokenizing to the engine.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ..errors import FailedPreconditionError, InvalidArgumentError
from .calls import Message
from .resume import TextCodec

_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


def plain_chat(messages: tuple[Message, ...]) -> str:
    """Renders a chat for a base without chat template.

    A single user message is the prompt as it is, so that adapters trained on plain prompts work
    through the chat endpoint. Otherwise every message is a line `System: …`, `User: …` or
    `Assistant: …`, and `Assistant:` ends the prompt.
    """
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    lines = [f"{_ROLES.get(m.role, m.role.capitalize())}: {m.content}\n" for m in messages]
    return "".join(lines) + "Assistant:"


@dataclass(frozen=True, slots=True)
class _Codec:
    tokenizer: Tokenizer

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=True).ids)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assets:
    codec: _Codec | None
    template: jinja2.Template | None
    special_tokens: dict[str, str]


class BaseTokenizers:
    """Loads each base's files once, on a thread."""

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        """`path_of` returns a base's directory; it may block and is called on a thread."""
        self._path_of = path_of
        self._loaded: dict[str, _Assets] = {}

    async def codec(self, base_id: str) -> TextCodec:
        """Returns a base's tokenizer.

        Raises:
            FailedPreconditionError: the base has no tokenizer.json.
        """
        codec = (await self._assets(base_id)).codec
        if codec is None:
            raise FailedPreconditionError(
                f"base {base_id!r} has no tokenizer.json, which the gateway needs for this"
            )
        return codec

    async def render_chat(
        self, base_id: str, messages: tuple[Message, ...]
    ) -> str | tuple[int, ...]:
        """Renders with the base's chat template, otherwise as `plain_chat`.

        Returns:
            Token ids after a template, because templates write special tokens themselves and
            the engine would add them again; text otherwise.

        Raises:
            InvalidArgumentError: the template refuses the messages.
        """
        assets = await self._assets(base_id)
        if assets.template is None or assets.codec is None:
            return plain_chat(messages)
        try:
            text = assets.template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                **assets.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise InvalidArgumentError(
                f"the chat template of base {base_id!r} refuses these messages: {error}"
            ) from error
        encoded = assets.codec.tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoded.ids)

    async def _assets(self, base_id: str) -> _Assets:
        if base_id not in self._loaded:
            # Two first requests may both load; the results are equal.
            self._loaded[base_id] = await asyncio.to_thread(self._load, base_id)
        return self._loaded[base_id]

    def _load(self, base_id: str) -> _Assets:
        folder = self._path_of(base_id)
        config = _read_json(folder / "tokenizer_config.json")
        source = config.get("chat_template")
        template_file = folder / "chat_template.jinja"
        if template_file.is_file():
            source = template_file.read_text(encoding="utf-8")
        tokenizer_file = folder / "tokenizer.json"
        codec = None
        if tokenizer_file.is_file():
            codec = _Codec(Tokenizer.from_file(str(tokenizer_file)))
        return _Assets(
            codec=codec,
            template=_compile(source) if isinstance(source, str) else None,
            special_tokens=_special_tokens(config),
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _compile(source: str) -> jinja2.Template:
    # Templates come with weights from elsewhere: sandboxed, as transformers does it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(source)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
