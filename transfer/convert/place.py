"""Where a LoRA may be written. Free of torch, so that a bad place is told at once."""

from pathlib import Path

from ..directories import check_replaceable


def check_lora_place(directory: Path) -> None:
    """Checks that a LoRA may be written to `directory`.

    Raises:
        FailedPreconditionError: something that is no PEFT directory is there.
    """
    check_replaceable(
        directory,
        kind="a PEFT directory",
        mark="adapter_config.json",
        names=("adapter_config.json", "adapter_model.safetensors", "README.md"),
    )
