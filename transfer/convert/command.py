"""What `lorebase adapter convert` runs: a PEFT directory in, a servable LoRA out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError

from .kinds import CONVERT, KEEP, REFUSE
from .place import check_lora_place


def run(
    *,
    source: Path,
    base_dir: Path,
    base_id: str,
    out: Path | None = None,
    kit: Path | None = None,
    to_base_dir: Path | None = None,
    to_base_id: str = "",
    max_rank: int = 64,
    accept_loss: bool = False,
    dry_run: bool = False,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes a servable LoRA of an adapter of any PEFT type.

    On its own base the change of weights is converted; where that is impossible or loses too
    much, and for another base, a LoRA learns its answers, which takes a transfer kit.

    Args:
        source: what PEFT saved.
        base_dir: base that it was trained on.
        base_id: that base's id in the cluster.
        out: where the LoRA goes; needed unless `dry_run`.
        kit: transfer kit of the adapter.
        to_base_dir: base of the result, if another one.
        to_base_id: its id.
        max_rank: largest rank of a converted LoRA.
        accept_loss: whether a result is wanted that is not surely as good.
        dry_run: only say what would be done.
        training: fields of `DistillSettings`.

    Returns:
        Figures for people, as plain data.

    Raises:
        InvalidArgumentError: unfit files or arguments.
        FailedPreconditionError: it can't be done, or would lose too much.
    """
    if out is not None and not dry_run:
        check_lora_place(out)
    # torch and transformers take seconds to import: bad arguments are told at once.
    from .files import read_kind

    kind = read_kind(source)
    elsewhere = to_base_dir is not None and to_base_dir.resolve() != base_dir.resolve()
    direct = not elsewhere and kind.path in (KEEP, CONVERT)
    path = kind.path if direct or kind.path == REFUSE else "distill"
    if dry_run:
        return {"peft_type": kind.name, "path": path, "reason": kind.reason}
    if out is None:
        raise InvalidArgumentError("no place for the result: give --out")
    if direct:
        try:
            return _convert(source, base_dir, base_id, out, kit, max_rank, accept_loss)
        except FailedPreconditionError as error:
            if error.reason != "CONVERSION_LOSSY" or kit is None:
                raise
    if kind.path != REFUSE and kit is None:
        raise FailedPreconditionError(
            f"{kind.reason}. A LoRA can learn its answers"
            f"{' on another base' if elsewhere else ''}: give the adapter's transfer kit "
            "(`lorebase kit build`)",
            reason="KIT_NEEDED",
        )
    target = (to_base_id or to_base_dir.name, to_base_dir) if to_base_dir else (base_id, base_dir)
    return _distill(source, (base_id, base_dir), kit or out, out, target, accept_loss, training)


def _convert(
    source: Path,
    base_dir: Path,
    base_id: str,
    out: Path,
    kit: Path | None,
    max_rank: int,
    accept_loss: bool,
) -> dict[str, Any]:
    from ..kit import load_kit
    from .convert import convert_adapter
    from .report import ConvertSettings

    texts: list[str] = []
    if kit is not None:
        known = load_kit(kit)
        texts = [known.format.prompt(seed.input) for seed in known.seeds]
    settings = ConvertSettings(max_rank=max_rank)
    if accept_loss:
        settings = replace(settings, min_kept_energy=0.0)
    report = convert_adapter(source, base_dir, out, base_id=base_id, settings=settings, texts=texts)
    figures: dict[str, Any] = {
        "adapter": str(out),
        "peft_type": report.peft_type,
        "path": report.path,
        "exact": report.exact,
        "kept_energy": round(report.kept_energy, 6),
        "kept_energy_least": round(report.kept_energy_least, 6),
        "ranks": ", ".join(f"{kind} {rank}" for kind, rank in report.ranks.items()),
        "parameters": report.parameters,
    }
    if report.likeness is not None:
        figures |= {
            "same_top_token": round(report.likeness.top_token_agreement, 4),
            "divergence": report.likeness.divergence,
            "divergence_of_base": report.likeness.divergence_of_base,
        }
    return figures


def _distill(
    source: Path,
    base: tuple[str, Path],
    kit: Path,
    out: Path,
    target: tuple[str, Path],
    accept_loss: bool,
    training: dict[str, Any] | None,
) -> dict[str, Any]:
    from .distilled import BaseFiles, distill_adapter
    from .report import DistillSettings

    report = distill_adapter(
        source,
        BaseFiles(id=base[0], path=base[1]),
        kit,
        out,
        target_base=BaseFiles(id=target[0], path=target[1]),
        settings=DistillSettings(**{**(training or {}), "accept_loss": accept_loss}),
    )
    return {
        "adapter": str(out),
        "peft_type": report.peft_type,
        "path": report.path,
        "base": target[0],
        "inputs": report.inputs,
        "rank": report.rank,
        "parameters": report.parameters,
        "agreement": round(report.decision["shadow_score"], 4),
        "agreement_of_base": round(report.decision["bare_score"], 4),
        "gate": report.decision["verdict"],
        "reason": report.decision["reason"],
    }
