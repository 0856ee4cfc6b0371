"""The transfer kit: all that stays of a client's data so that its adapter can migrate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ..ports import Example
from .format import TaskFormat

SCHEMA_VERSION = 2
"""Newest that this code reads and writes. Version 1 knows no kits without a discriminator and no
real inputs; a kit with neither is written as version 1, for older readers."""
MAX_SEEDS = 16
MAX_TEXT_CHARS = 32_768
MAX_REAL_INPUTS = 1000
"""Consented inputs in a kit at most: more than any migration trains on."""
MIN_CONSENT_CHARS = 8
"""A shorter text names neither who consents nor to what."""
USABLE_AUC = 0.65
"""Below this the discriminator tells real from synthetic inputs hardly better than chance: in
trials it then removed good inputs as often as bad ones and harmed the result."""

_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """Leave to hand over real inputs, in the words of who gave it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=MIN_CONSENT_CHARS, max_length=2000)]
    """Who allows it, and for what."""
    given_on: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    """Day, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferKit:
    """Contents of `kit.json`; the discriminator's weights lie beside it.

    Holds the k seeds and figures about the data. More of the data itself is only in it where its
    owner consented, and the kit then says so.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = 1
    """The least that knows all that is in the kit."""
    base_id: Annotated[str, Field(min_length=1, max_length=256)]
    """Base that the discriminator fits and that the adapter was trained on."""
    dataset_name: Annotated[str, Field(min_length=1, max_length=256)]
    """Short description of the data, as a discriminator prompt names it."""
    dataset_size: _Count
    """Number of different examples that the client had, |D|; without a discriminator, of those that
    are left."""
    format: TaskFormat
    """How inputs and answers are written."""
    seeds: Annotated[tuple[Example, ...], Field(min_length=1, max_length=MAX_SEEDS)]
    """Real examples that the client agrees to leave."""
    discriminator: bool = True
    """False: made of a few examples, with which none can be trained. There are no weights then, the
    discriminator's figures mean nothing, and lengths are those of these few examples with room."""
    threshold: float
    """An input is kept when log p(real) - log p(not real) is greater."""
    discriminator_auc: _Share
    """Area under the ROC curve on held-out real and synthetic inputs of the source base."""
    real_pass_rate: _Share
    """Share of held-out real inputs above the threshold."""
    fake_pass_rate: _Share
    """Share of held-out synthetic inputs of the source base above the threshold."""
    real_score_quantiles: Annotated[tuple[float, ...], Field(max_length=101)] = ()
    """Scores of held-out real inputs at evenly spaced ranks, lowest first: what the next base's
    inputs are compared with, so that the filter is not trusted where it fits the source base's
    style only. Empty in kits made before this was kept."""
    max_input_chars: Annotated[int, Field(ge=1, le=MAX_TEXT_CHARS)]
    """A synthetic input may not be longer."""
    max_input_tokens: Annotated[int, Field(ge=1, le=MAX_TEXT_CHARS)]
    """Budget of tokens for a synthetic input."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=MAX_TEXT_CHARS)]
    """Budget of tokens for an answer."""
    real_inputs: Annotated[tuple[str, ...], Field(max_length=MAX_REAL_INPUTS)] = ()
    """Real inputs without their answers, which a migration trains on beside synthetic ones."""
    consent: Consent | None = None
    """To the real inputs; there are none without it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Seed, recipe, counts, base revision: enough to say how the kit came about."""

    @property
    def discriminates(self) -> bool:
        """Whether there is a discriminator, good enough to filter with."""
        return self.discriminator and self.discriminator_auc >= USABLE_AUC
