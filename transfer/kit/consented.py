"""Real inputs in a kit, by consent: without their answers, which the adapter gives anew. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Example
from .kit import MAX_REAL_INPUTS, MIN_CONSENT_CHARS, SCHEMA_VERSION, Consent, TransferKit


def check_consent(count: int, consent: Consent | None) -> None:
    """Checks that real inputs and consent come together.

    Raises:
        InvalidArgumentError: one without the other, or more inputs than a kit may hold.
    """
    if not 0 <= count <= MAX_REAL_INPUTS:
        raise InvalidArgumentError(f"got {count} real inputs, expected 0 to {MAX_REAL_INPUTS}")
    if count and consent is None:
        raise InvalidArgumentError(
            f"got {count} real inputs and no consent: say who allows it and for what "
            '(`--consent "..."`)'
        )
    if consent is not None and not count:
        raise InvalidArgumentError(
            "got a consent but no real inputs: say how many (`--with-inputs N`), or leave it out"
        )
    if consent is not None and len(consent.text.strip()) < MIN_CONSENT_CHARS:
        raise InvalidArgumentError(
            f"got the consent {consent.text!r}, expected at least {MIN_CONSENT_CHARS} characters: "
            "who allows it, and for what"
        )


def with_real_inputs(
    kit: TransferKit, examples: Sequence[Example], count: int, consent: Consent | None
) -> TransferKit:
    """Returns the kit with the inputs of up to `count` examples, and the consent to them.

    Args:
        kit: where they go.
        examples: real ones, in the order in which they are taken; seeds among them are left out.
        count: how many; 0 returns the kit as it is.
        consent: goes with them.

    Raises:
        InvalidArgumentError: see `check_consent`; or there is no example beside the seeds.
    """
    check_consent(count, consent)
    if not count:
        return kit
    seeds = {seed.input for seed in kit.seeds}
    chosen = tuple(item.input for item in examples if item.input not in seeds)[:count]
    if not chosen:
        raise InvalidArgumentError(
            f"got {len(examples)} examples, all of them seeds: expected some more to share"
        )
    return replace(kit, schema_version=SCHEMA_VERSION, real_inputs=chosen, consent=consent)
