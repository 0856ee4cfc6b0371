"""What `lorebase kit audit`, `scrub` and `drill` run. Free of any command-line library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lorebase.serving.errors import InvalidArgumentError

from ..ports import Example, ModelSpec
from .audit import closeness, contents, exposed, preference, seeds_of, spread
from .command import read_examples
from .format import FORMATS
from .storage import check_kit_place, load_kit

SHOWN = 5
"""Texts that a report quotes."""


def audit(
    *,
    kit: Path,
    against: Path | None = None,
    synthetic: Path | None = None,
    unseen: Path | None = None,
) -> dict[str, Any]:
    """Says what is in a kit and how near it, and what was made with it, comes to real data.

    Args:
        kit: the kit.
        against: the client's data, JSONL; only read here.
        synthetic: inputs that were made with the kit: JSONL, or one a line.
        unseen: real data that the kit was not made of, to compare with.

    Returns:
        Plain data; `findings` are what deserves a look, `clean` says that nothing real but the
        seeds is in the kit.

    Raises:
        InvalidArgumentError: unreadable files.
    """
    report: dict[str, Any] = {"kit": str(kit), "contents": contents(kit)}
    findings: list[str] = []
    if against is not None:
        data = read_examples(against)
        report["exposed"] = exposed(kit, data)
        beyond = report["exposed"]["beyond_seeds"]
        if beyond:
            findings.append(
                f"{len(beyond)} real texts are in the kit beyond its seeds, such as "
                f"{', '.join(map(repr, beyond[:SHOWN]))}"
            )
    if synthetic is not None:
        texts = read_inputs(synthetic)
        report["synthetic"] = _synthetic(kit, texts, against, unseen, findings)
    report["findings"] = findings
    report["clean"] = against is not None and not report["exposed"]["beyond_seeds"]
    return report


def _synthetic(
    kit: Path,
    texts: Sequence[str],
    against: Path | None,
    unseen: Path | None,
    findings: list[str],
) -> dict[str, Any]:
    seeds = seeds_of(load_kit(kit))
    found: dict[str, Any] = {"inputs": len(texts), "to_seeds": closeness(texts, seeds).as_dict()}
    if against is None:
        return found
    real = [item.input for item in read_examples(against) if item.input not in set(seeds)]
    to_data = closeness(texts, real)
    found["to_data"] = to_data.as_dict()
    found["data_to_itself"] = spread(real).as_dict()
    if to_data.copies:
        findings.append(
            f"{to_data.copies} of {to_data.texts} synthetic inputs equal a real one: look whether "
            "the task has so few different inputs"
        )
    if unseen is not None:
        other = [item.input for item in read_examples(unseen)]
        found["preference"] = preference(texts, real, other)
        if found["preference"]["p_value"] < 0.01:
            findings.append(
                f"{found['preference']['nearer_to_seen']:.0%} of the synthetic inputs are nearer "
                "to data that the kit was made of than to other real data"
            )
    return found


def scrub(
    *,
    kit: Path,
    out: Path,
    base_dir: Path,
    adapter: Path,
    mode: Literal["synthetic", "mask"] = "synthetic",
    seed: int = 0,
) -> dict[str, Any]:
    """Writes a kit without real seeds; see `scrub_kit`.

    Raises:
        InvalidArgumentError: unreadable files, or an unknown mode.
        FailedPreconditionError: something that is no kit is in the new one's place, or too little
            that is usable was written.
    """
    if mode not in ("synthetic", "mask"):
        raise InvalidArgumentError(f"unknown mode {mode!r}: expected synthetic or mask")
    old = load_kit(kit)
    check_kit_place(out)
    # Imports torch and transformers, which takes seconds: bad arguments are told at once.
    from lorebase.serving.engine.protocol import VersionRef

    from ..distill.distill import load_base
    from ..hf_generator import HfGenerator
    from .scrub import Scrubber, scrub_kit

    ref = VersionRef(id="teacher", base_id=old.base_id, digest="", path=str(adapter), rank=1)
    scrubber = Scrubber(
        generator=HfGenerator({old.base_id: load_base(base_dir)}),
        base=ModelSpec(base_id=old.base_id),
        teacher=ModelSpec(base_id=old.base_id, version=ref),
    )
    new = scrub_kit(kit, out, scrubber, mode=mode, seed=seed)
    kept = {item.input for item in old.seeds} & {item.input for item in new.seeds}
    return {
        "kit": str(out),
        "seeds": len(new.seeds),
        "seeds_are": new.provenance["seeds"],
        "real_seeds_left": len(kept),
        "new_seeds": "; ".join(f"{item.input!r} -> {item.target!r}" for item in new.seeds),
    }


def drill(
    *,
    data: Path,
    base_dir: Path,
    dataset_name: str,
    format: str = "document",
    canaries: int = 20,
    write: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Plants secrets in data, builds a throw-away kit and looks for them; see `canary_drill`.

    Raises:
        InvalidArgumentError: unreadable files, unknown format, too little data.
        FailedPreconditionError: the base writes no usable inputs.
    """
    if format not in FORMATS:
        raise InvalidArgumentError(
            f"unknown task format {format!r}: expected {' or '.join(sorted(FORMATS))}"
        )
    examples: list[Example] = read_examples(data)
    from ..distill.distill import load_base
    from .drill import canary_drill

    model, tokenizer = load_base(base_dir)
    return canary_drill(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        dataset_name=dataset_name,
        format=FORMATS[format],
        canaries=canaries,
        write=write,
        seed=seed,
    ).as_dict()


def read_inputs(path: Path) -> list[str]:
    """Reads inputs, one a line: JSON objects with `input`, JSON strings, or plain text.

    Raises:
        InvalidArgumentError: no such file, or nothing in it.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"no file {path}: expected one input a line")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = line
        text = value.get("input") if isinstance(value, dict) else value
        found.append(text if isinstance(text, str) else line)
    if not found:
        raise InvalidArgumentError(f"{path} holds no inputs")
    return found
