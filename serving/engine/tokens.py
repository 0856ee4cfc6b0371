"""Text to token ids, apart from the engine so that prompts are checked before it sees them."""

import asyncio
import copy
import threading
from typing import Protocol, cast

from ..errors import InvalidArgumentError

INLINE_CHARS = 8_192
"""Prompts up to this length are encoded on the event loop (about 1 ms); longer ones on a thread."""


class _Encoding(Protocol):
    ids: list[int]


class _Core(Protocol):
    """The part of `tokenizers.Tokenizer` used here."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> _Encoding: ...
    def no_truncation(self) -> None: ...
    def no_padding(self) -> None: ...


class HfTokenizer(Protocol):
    """The part of a transformers tokenizer used here."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids."""
        ...


class TokenEncoder:
    """Encodes prompts as the base's tokenizer does, safely from several threads.

    A transformers tokenizer sets truncation on its core at every call, which fails when the
    engine's detokenizer holds that core on another thread. So fast tokenizers are copied and
    their core is used directly; others are used under a lock.

    Args:
        tokenizer: a transformers tokenizer, fast or not.
        vocab_size: rows of the base's embedding; ids from clients must be below.
    """

    def __init__(self, tokenizer: HfTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._choices: dict[str, int] = {}
        core = getattr(tokenizer, "backend_tokenizer", None)
        self._core: _Core | None = None
        if core is not None and hasattr(core, "no_truncation"):
            self._core = cast(_Core, copy.deepcopy(core))
            self._core.no_truncation()
            self._core.no_padding()

    async def encode(self, text: str) -> list[int]:
        """Returns the token ids of a prompt, with the special tokens the base expects."""
        if len(text) <= INLINE_CHARS:
            return self._encode(text, special=True)
        return await asyncio.to_thread(self._encode, text, special=True)

    def check_ids(self, ids: tuple[int, ...]) -> list[int]:
        """Checks token ids given by a client.

        Raises:
            InvalidArgumentError: an id is outside the vocabulary.
        """
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise InvalidArgumentError(
                    f"prompt_token_ids holds {token}, expected ids from 0 to "
                    f"{self._vocab_size - 1}; was it encoded for another base?"
                )
        return list(ids)

    def choice_ids(self, choices: tuple[str, ...]) -> list[int]:
        """Returns the token id of every choice, in order.

        Raises:
            InvalidArgumentError: a choice is not exactly one token, or two are the same token.
        """
        ids = [self._choice_id(choice) for choice in choices]
        if len(set(ids)) != len(ids):
            raise InvalidArgumentError(
                f"choices {choices!r} have the tokens {ids}, expected a different token for each"
            )
        return ids

    def _choice_id(self, choice: str) -> int:
        known = self._choices.get(choice)
        if known is not None:
            return known
        ids = self._encode(choice, special=False)
        if len(ids) != 1:
            raise InvalidArgumentError(
                f"choice {choice!r} is {len(ids)} tokens of this base's tokenizer, expected 1; "
                "choose strings that are single tokens, with their leading space"
            )
        if len(self._choices) < 1024:
            self._choices[choice] = ids[0]
        return ids[0]

    def _encode(self, text: str, *, special: bool) -> list[int]:
        if self._core is not None:
            return self._core.encode(text, add_special_tokens=special).ids
        with self._lock:
            return self._tokenizer.encode(text, add_special_tokens=special)
