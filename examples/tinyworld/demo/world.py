"""The adapters on disk: what each tenant brings to the demo, and what only the judge sees."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import load_examples
from lorebase.transfer.kit import load_kit

from .judge import Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantAdapter:
    """One adapter of the tiny world."""

    name: str
    adapter_dir: Path
    """PEFT directory for the old base."""
    kit_dir: Path
    evaluation_file: Path | None
    """Evaluation set that the tenant entrusts to the service; None for label-free adapters."""
    family: str
    benchmark: bool
    skewed: bool
    rank: int
    peft_type: str
    held_out: Pairs
    """For clients and the outside judge; neither gate nor training sees these."""
    seeds: Pairs
    """The kit's seeds, for the few-shot condition."""


def find_adapters(
    folder: Path, *, only: tuple[str, ...] = (), judge_examples: int = 200
) -> list[TenantAdapter]:
    """Reads every adapter below `folder`, by name.

    Raises:
        FileNotFoundError: there are none, or one that was asked for is missing.
        ValueError: an adapter's evaluation set and held-out data overlap.
    """
    found = {}
    for meta_path in sorted(folder.glob("*/train_meta.json")):
        adapter = _read(meta_path.parent, judge_examples)
        found[adapter.name] = adapter
    missing = sorted(set(only) - set(found))
    if missing or not found:
        raise FileNotFoundError(
            f"{folder}: expected {', '.join(missing) or 'adapters'}, found "
            f"{', '.join(found) or 'none'}"
        )
    return [adapter for name, adapter in found.items() if not only or name in only]


def _read(folder: Path, judge_examples: int) -> TenantAdapter:
    meta: dict[str, Any] = json.loads((folder / "train_meta.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    evaluation = folder / "evaluation.jsonl"
    held_out = load_examples(folder / "heldout.jsonl", judge_examples)
    if evaluation.exists():
        # The judge would be no outsider if the gate had seen its questions.
        seen = {text for text, _ in load_examples(evaluation)}
        shared = [text for text, _ in held_out if text in seen]
        if shared:
            raise ValueError(
                f"{folder}: {len(shared)} held-out inputs are in the evaluation set too, such as "
                f"{shared[0]!r}; the outside judge needs data of its own"
            )
    kit = load_kit(folder / "kit")
    return TenantAdapter(
        name=meta["adapter"],
        adapter_dir=folder / "adapter",
        kit_dir=folder / "kit",
        evaluation_file=evaluation if evaluation.exists() else None,
        family=meta["family"],
        benchmark=str(meta["adapter"]).startswith("bbh/"),
        skewed=bool(meta.get("skewed", False)),
        rank=int(config["r"]),
        peft_type="DoRA" if config.get("use_dora") else "LoRA",
        held_out=held_out,
        seeds=tuple((seed.input, seed.target) for seed in kit.seeds),
    )
