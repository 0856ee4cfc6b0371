"""Which words a discriminator answers with: single tokens of its base, whichever that is."""

from typing import Any

from lorebase.serving.errors import InvalidArgumentError

from ..hf_generator import choice_tokens
from .kit import TransferKit

CHOICES = ((" yes", " no"), (" Yes", " No"), ("yes", "no"), ("Yes", "No"), (" 1", " 0"), ("1", "0"))
"""Tried in this order if the kit's own are not single tokens of the next base."""


def fitting_choices(tokenizer: Any, kit: TransferKit) -> tuple[str, str]:
    """Returns the discriminator's answers: the kit's own, or others that are single tokens.

    Raises:
        InvalidArgumentError: none of `CHOICES` is.
    """
    for choices in (kit.format.choices, *CHOICES):
        try:
            choice_tokens(tokenizer, choices)
        except InvalidArgumentError:
            continue
        return choices
    raise InvalidArgumentError(
        "neither the kit's choices nor any of "
        f"{', '.join('/'.join(pair) for pair in CHOICES)} are single tokens of this base"
    )
