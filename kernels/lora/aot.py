"""Compiles every shipped kernel configuration for every architecture, without a GPU.

    python -m lorebase.kernels.lora.aot --check     compare with the checked-in record
    python -m lorebase.kernels.lora.aot --write     make the record anew

The record (gpu/compiled.json) holds for each kernel its registers, spills, stack and shared memory.
A check fails where one spills, takes more shared memory than the smallest device of its table has,
or differs from the record. Resources depend on the compiler: with another triton than the record's
only the first two are compared. Compiling goes into an empty cache: nothing old can hide a change.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .gpu.compiling import Resources, Variant, compile_variant, variants
from .gpu.config import arches

RECORD = Path(__file__).parent / "gpu" / "compiled.json"
SHARED_LIMIT = {"sm": 99 << 10, "gfx": 64 << 10}
"""Bytes a program may take: sm_86, sm_89 and sm_120 have the least of those that a table serves."""


def compile_all(wanted: Sequence[Variant], workers: int) -> dict[Variant, Resources]:
    """Compiles in `workers` fresh processes with an empty cache, the slow ones first."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="lorebase-aot-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # for the processes to come
        try:
            ordered = sorted(wanted, key=lambda variant: variant.kernel == "shrink")
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                return dict(zip(ordered, pool.map(compile_variant, ordered), strict=True))
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before


def as_record(found: Mapping[Variant, Resources]) -> dict[str, Any]:
    """What the checked-in file holds for these."""
    import triton

    kernels: dict[str, dict[str, Any]] = {}
    for variant in sorted(found):
        kernels.setdefault(variant.arch, {})[variant.key] = asdict(found[variant])
    return {"triton": triton.__version__, "kernels": kernels}


def as_text(record: Mapping[str, Any]) -> str:
    """JSON with a line for each kernel, so that a change reads well in a diff."""
    arches_text = []
    for arch, kernels in record["kernels"].items():
        lines = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in kernels.items()]
        arches_text.append(f'  "{arch}": {{\n' + ",\n".join(lines) + "\n  }")
    body = ",\n".join(arches_text)
    return f'{{\n "triton": {json.dumps(record["triton"])},\n "kernels": {{\n{body}\n }}\n}}\n'


def faults(found: Mapping[Variant, Resources]) -> list[str]:
    """What makes a kernel unfit, whatever the record says."""
    wrong = []
    for variant, resources in sorted(found.items()):
        limit = SHARED_LIMIT["sm" if variant.arch.startswith("sm_") else "gfx"]
        if resources.spills or resources.stack:
            wrong.append(f"{variant.arch} {variant.key} spills: {resources}")
        if resources.shared > limit:
            wrong.append(f"{variant.arch} {variant.key} takes over {limit} bytes: {resources}")
        if resources.narrow_loads and variant.loads_wide:
            wrong.append(f"{variant.arch} {variant.key} loads single elements: {resources}")
    return wrong


def differences(record: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where two records differ. Of another compiler's only the lists of kernels are compared."""
    same_compiler = record["triton"] == found["triton"]
    wrong = []
    for arch in sorted(record["kernels"].keys() | found["kernels"].keys()):
        old, new = record["kernels"].get(arch, {}), found["kernels"].get(arch, {})
        wrong += [f"{arch} {key} is not in the record" for key in new.keys() - old.keys()]
        wrong += [f"{arch} {key} is in the record only" for key in old.keys() - new.keys()]
        if same_compiler:
            wrong += [
                f"{arch} {key}: recorded {old[key]}, compiled {new[key]}"
                for key in old.keys() & new.keys()
                if old[key] != new[key]
            ]
    return sorted(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lorebase.kernels.lora.aot")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with the checked-in record")
    what.add_argument("--write", action="store_true", help="make the record anew")
    parser.add_argument("--arch", action="append", choices=arches(), help="only this one")
    parser.add_argument("--workers", type=int, default=min(8, len(os.sched_getaffinity(0))))
    options = parser.parse_args(arguments)
    chosen = options.arch or arches()
    found = compile_all([v for arch in chosen for v in variants(arch)], options.workers)
    wrong, new = faults(found), as_record(found)
    if options.write:
        old = json.loads(RECORD.read_text(encoding="utf-8"))["kernels"] if options.arch else {}
        new["kernels"] = dict(sorted({**old, **new["kernels"]}.items()))
        partial = RECORD.with_suffix(".partial")
        partial.write_text(as_text(new), encoding="utf-8")
        partial.replace(RECORD)
    else:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        record["kernels"] = {arch: record["kernels"].get(arch, {}) for arch in chosen}
        if record["triton"] != new["triton"]:
            print(f"the record is of triton {record['triton']}, this is {new['triton']}")
        wrong += differences(record, new)
    print(f"{len(found)} kernels compiled for {', '.join(chosen)}; {len(wrong)} faults")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
