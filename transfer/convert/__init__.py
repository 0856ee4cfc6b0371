"""Adapters of any PEFT type become plain LoRAs, which engines serve.

Converting needs torch and peft: see `lorebase.transfer.convert.convert`.
"""

from .kinds import CONVERT, DISTILL, KEEP, REFUSE, Kind, kind_of

__all__ = ["CONVERT", "DISTILL", "KEEP", "REFUSE", "Kind", "kind_of"]
