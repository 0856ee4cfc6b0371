"""Transfer kits: what stays of a client's data.

Building one needs torch and peft: see `lorebase.transfer.kit.build`.
"""

from .format import DOCUMENT, FORMATS, PAPER, TaskFormat
from .kit import TransferKit
from .storage import check_kit, discriminator_dir, load_kit, save_kit

__all__ = [
    "DOCUMENT",
    "FORMATS",
    "PAPER",
    "TaskFormat",
    "TransferKit",
    "check_kit",
    "discriminator_dir",
    "load_kit",
    "save_kit",
]
