"""What becomes of an adapter by its PEFT type: a table, read by planning and by conversion. Pure.

Engines serve plain LoRA. Everything else must become one:

- `keep`: it is one already;
- `convert`: it changes the weights of linear layers, whatever its formula, so on the same base the
  change itself can be factorised. Exact where its rank allows it, else as near as the rank allows;
- `distill`: it can be run through PEFT but is no change of weights (virtual tokens, extra paths):
  a LoRA learns its answers;
- `refuse`: neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Path = Literal["keep", "convert", "distill", "refuse"]

KEEP: Path = "keep"
CONVERT: Path = "convert"
DISTILL: Path = "distill"
REFUSE: Path = "refuse"

LOW_RANK = frozenset(
    {"ADALORA", "DEFT", "DELORA", "GRALORA", "HRA", "LOHA", "MISS", "PEANUT", "PSOFT", "PVERA"}
    | {"TINYLORA", "UNILORA", "VBLORA", "VERA"}
)
"""The change has a low rank by construction (LoHa's is the square of its `r`): conversion is
exact where engines allow that rank."""

FULL_RANK = frozenset(
    {"BOFT", "C3A", "FOURIERFT", "FROD", "GLORA", "HIRA", "IA3", "LOKR", "OFT", "OSF"}
    | {"RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "WAVEFT"}
)
"""The change may have full rank: conversion keeps its largest part."""

VIRTUAL_TOKENS = frozenset({"CPT", "PROMPT_TUNING", "P_TUNING"})
"""Learned embeddings before the prompt."""

VIRTUAL_CACHE = frozenset({"CARTRIDGE", "PREFIX_TUNING"})
"""Learned keys and values before the prompt."""

UNMERGED = frozenset({"BEFT"})
"""Runs beside the weights and can't be added to them."""

_REFUSED = {
    "ADAMSS": "it needs scikit-learn at run time",
    "ADAPTION_PROMPT": "PEFT supports it for a few old models only",
    "BONE": "PEFT dropped it for MiSS; convert it to MiSS with the PEFT that saved it",
    "LILY": "it chooses its experts by all tokens of a batch, so it has no answer of its own",
    "LN_TUNING": "it changes norms, which no LoRA can",
    "MULTITASK_PROMPT_TUNING": "it needs a task id with every request",
    "POLY": "it needs a task id with every request",
    "SHADOW": "it runs a second model beside the base",
    "TRAINABLE_TOKENS": "it changes embeddings, which differ from base to base",
    "XLORA": "it mixes several adapters by a network of its own",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Starts of `init_lora_weights` that subtract the adapter's start from the base's own weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What becomes of one adapter."""

    name: str
    """PEFT type, or the LoRA variant (`DORA`)."""
    path: Path
    reason: str
    """For people."""


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Classifies an adapter by its adapter_config.json.

    Args:
        config: the parsed file.
    """
    peft_type = str(config.get("peft_type", "")).upper()
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        return Kind(
            name=peft_type,
            path=REFUSE,
            reason=(
                f"{peft_type} with whole modules or tokens saved beside it: no LoRA can hold them; "
                "train without them"
            ),
        )
    if peft_type == "LORA":
        return _lora(config)
    # MiSS' "bat" mode mixes the base's weights in.
    if peft_type in LOW_RANK and config.get("init_weights") != "bat":
        return Kind(
            name=peft_type,
            path=CONVERT,
            reason=f"{peft_type} is a change of low rank: as LoRA it is the same",
        )
    if peft_type in LOW_RANK | FULL_RANK:
        return Kind(
            name=peft_type,
            path=CONVERT,
            reason=(
                f"{peft_type} may be a change of full rank: a LoRA holds the largest part of it, "
                "and what is lost is measured"
            ),
        )
    if peft_type in VIRTUAL_TOKENS | VIRTUAL_CACHE | UNMERGED:
        return Kind(
            name=peft_type,
            path=DISTILL,
            reason=f"{peft_type} is no change of weights: a LoRA can only learn its answers",
        )
    why = _REFUSED.get(peft_type, "this PEFT type is not known here")
    return Kind(name=peft_type, path=REFUSE, reason=f"{peft_type or 'no PEFT type'}: {why}")


def _lora(config: Mapping[str, Any]) -> Kind:
    init = str(config.get("init_lora_weights", "")).lower()
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return Kind(name="LORA", path=DISTILL, reason="LoRA with biases: engines serve none")
    if config.get("use_dora"):
        return Kind(
            name="DORA",
            path=CONVERT,
            reason=(
                "DoRA scales whole rows of the base's weights: a LoRA holds the largest part of "
                "that, and what is lost is measured"
            ),
        )
    if init.startswith(_CHANGES_BASE):
        return Kind(
            name=f"LORA ({init})",
            path=CONVERT,
            reason=f"LoRA that starts from the base's own weights ({init}): as plain LoRA the same",
        )
    variants = ("alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config")
    variant = next((name for name in variants if config.get(name)), None)
    if variant is not None:
        return Kind(name="LORA", path=REFUSE, reason=f"LoRA with {variant}: no plain LoRA is that")
    return Kind(name="LORA", path=KEEP, reason="plain LoRA: served as it is")
