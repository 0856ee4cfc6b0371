"""Any weight-changing adapter to a plain LoRA of the same base. Needs torch and peft only."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from lorebase.serving.artifacts import (
    AdapterLimits,
    BaseShapes,
    base_revision,
    base_shapes,
    check_adapter,
)
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError

from ..directories import replace_directory
from .compare import likeness, logits_of, probe_tokens
from .delta import weight_changes
from .factor import Factors, factorise
from .files import CONFIG, WEIGHTS, load_fp32, load_peft, read_kind, source_sha256
from .kinds import CONVERT, KEEP, REFUSE, Kind
from .place import check_lora_place
from .report import ConversionReport, ConvertSettings

EXACT = 1.0 - 1e-6
"""Share of the energy above which what is lost is rounding."""
INSTEAD = "Give a transfer kit to let a LoRA learn its answers instead"


def convert_adapter(
    source_dir: Path,
    base_dir: Path,
    out_dir: Path,
    *,
    base_id: str = "",
    settings: ConvertSettings | None = None,
    texts: Sequence[str] = (),
) -> ConversionReport:
    """Writes a plain LoRA that does what an adapter of another PEFT type does on the same base.

    Args:
        source_dir: what PEFT saved; a plain LoRA is copied.
        base_dir: the base that it was trained on; loaded twice, one after the other, in fp32.
        out_dir: gets the PEFT directory; one that is there is replaced.
        base_id: name of the base in the result's config; the directory's name by default.
        settings: rank, and how much may be lost.
        texts: prompts on which original and result are compared, beside random tokens.

    Raises:
        InvalidArgumentError: unfit files, or a change that no LoRA can hold.
        FailedPreconditionError: this type can't be converted, or too much would be lost; what to
            do instead is in the message. Or something that is no PEFT directory is in its place.
    """
    settings = settings or ConvertSettings()
    check_lora_place(out_dir)
    kind = read_kind(source_dir)
    if kind.path not in (KEEP, CONVERT):
        raise FailedPreconditionError(
            kind.reason if kind.path == REFUSE else f"{kind.reason}. {INSTEAD}",
            reason="NOT_CONVERTIBLE",
        )
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".convert-", dir=out_dir.parent))
    try:
        if kind.path == KEEP:
            report = _copy(source_dir, base_dir, work, kind, settings)
        else:
            report = _convert(source_dir, base_dir, work, kind, base_id, settings, texts)
        (work / "README.md").write_text(report.page(), encoding="utf-8")
        work.chmod(0o755)
        replace_directory(work, out_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _copy(
    source_dir: Path, base_dir: Path, work: Path, kind: Kind, settings: ConvertSettings
) -> ConversionReport:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source_dir / name, work / name)
    limits = AdapterLimits(max_rank=settings.max_rank)
    manifest = check_adapter(work, base_shapes(base_dir), limits)
    return ConversionReport(
        peft_type=kind.name,
        path=KEEP,
        source_sha256=source_sha256(source_dir),
        base_revision=base_revision(base_dir),
        exact=True,
        kept_energy=1.0,
        kept_energy_least=1.0,
        ranks=dict.fromkeys(manifest.target_modules, manifest.rank),
        parameters=manifest.parameters,
        likeness=None,
    )


def _convert(
    source_dir: Path,
    base_dir: Path,
    work: Path,
    kind: Kind,
    base_id: str,
    settings: ConvertSettings,
    texts: Sequence[str],
) -> ConversionReport:
    shapes = base_shapes(base_dir)
    model, tokenizer = load_fp32(base_dir)
    probes = probe_tokens(tokenizer, texts)
    bare = logits_of(model, probes)
    adapted = load_peft(model, source_dir)
    original = logits_of(adapted, probes)
    factors = {
        name: factorise(delta, max_rank=settings.max_rank, tolerance=settings.tolerance)
        for name, delta in weight_changes(adapted, base_dir, shapes)
    }
    del adapted, model
    kept = _kept(factors, settings)
    ranks = _write(factors, shapes, work, base_id or base_dir.name, settings)
    manifest = check_adapter(work, shapes, AdapterLimits(max_rank=settings.max_rank))
    converted = load_peft(load_fp32(base_dir)[0], work)
    return ConversionReport(
        peft_type=kind.name,
        path=CONVERT,
        source_sha256=source_sha256(source_dir),
        base_revision=base_revision(base_dir),
        exact=min(kept.values()) >= EXACT,
        kept_energy=kept[""],
        kept_energy_least=min(kept.values()),
        ranks=ranks,
        parameters=manifest.parameters,
        likeness=likeness(original, logits_of(converted, probes), bare),
    )


def _kept(factors: Mapping[str, Factors], settings: ConvertSettings) -> dict[str, float]:
    """Returns the share of the change that is kept, by layer, and of all under "".

    Raises:
        InvalidArgumentError: the adapter changes nothing.
        FailedPreconditionError: too little is kept.
    """
    energy = sum(one.energy for one in factors.values())
    if energy == 0.0:
        raise InvalidArgumentError(
            "the adapter changes no weight of this base: is it trained, and for this base?",
            reason="NO_CHANGE",
        )
    kept = {name: one.kept / one.energy for name, one in factors.items() if one.energy}
    kept[""] = sum(one.kept for one in factors.values()) / energy
    if kept[""] < settings.min_kept_energy:
        raise FailedPreconditionError(
            f"a LoRA of rank {settings.max_rank} holds {kept['']:.1%} of this change, expected at "
            f"least {settings.min_kept_energy:.1%}. {INSTEAD}; or accept more loss, or a higher "
            "rank if engines allow it",
            reason="CONVERSION_LOSSY",
        )
    return kept


def _write(
    factors: Mapping[str, Factors],
    shapes: BaseShapes,
    work: Path,
    base_id: str,
    settings: ConvertSettings,
) -> dict[str, int]:
    """Writes the PEFT directory; returns the rank by kind of layer.

    Layers of a kind share a rank (the configuration stays short, whatever the depth), and layers
    of that kind which the adapter left alone get zeros: engines expect them.
    """
    ranks: dict[str, int] = {}
    for name, one in factors.items():
        kind = name.rpartition(".")[2]
        ranks[kind] = max(one.rank, ranks.get(kind, 1))
    tensors: dict[str, torch.Tensor] = {}
    dtype = getattr(torch, settings.dtype)
    for name, (outputs, inputs) in sorted(shapes.modules.items()):
        rank = ranks.get(name.rpartition(".")[2])
        if rank is None:
            continue
        a_RI, b_OR = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
        if name in factors:
            one = factors[name]
            a_RI[: one.rank], b_OR[:, : one.rank] = one.a_RI, one.b_OR
        tensors[f"base_model.model.{name}.lora_A.weight"] = a_RI.to(dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b_OR.to(dtype)
    top = max(ranks.values())
    pattern = {kind: rank for kind, rank in sorted(ranks.items()) if rank != top}
    config: Any = LoraConfig(
        r=top,
        lora_alpha=top,
        target_modules=sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_id,
        inference_mode=True,
    )
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted) + "\n"
    (work / CONFIG).write_text(text, encoding="utf-8")
    save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
    return dict(sorted(ranks.items()))
