"""`python -m benchmarks.run SUITE [--quick]`: runs one suite and writes its results.

Writes benchmarks/results/<suite>.json and .svg. Exit codes: 0 fine, 1 a correctness gate did not
hold, 2 the suite could not be run to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from . import suites
from .environment import environment
from .suite import Suite, SuiteContext, SuiteResult

RESULTS = Path(__file__).resolve().parent / "results"


def suite_names() -> list[str]:
    """Returns the suites that there are, by name: their module's, with hyphens."""
    modules = pkgutil.iter_modules(suites.__path__)
    return sorted(module.name.replace("_", "-") for module in modules)


def _module(name: str) -> str:
    return name.replace("-", "_")


def document(name: str, result: SuiteResult, *, quick: bool, seconds: float) -> dict[str, Any]:
    """Returns the contents of a result file."""
    return {
        "suite": name,
        "quick": quick,
        "seconds": round(seconds, 1),
        "environment": environment(),
        "summary": result.summary,
        "failures": result.failures,
        "rows": result.rows,
    }


def write(name: str, contents: dict[str, Any], figure_svg: str, folder: Path) -> list[Path]:
    """Writes a result file, and its plot if there is one; returns what was written.

    Quick runs go to <suite>.quick.json, so that a smoke test never replaces real figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}.quick" if contents["quick"] else name
    files = {folder / f"{stem}.json": json.dumps(contents, indent=1) + "\n"}
    if figure_svg:
        files[folder / f"{stem}.svg"] = figure_svg + "\n"
    for path, text in files.items():
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return list(files)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=suite_names(), help="which suite")
    parser.add_argument("--suite", dest="named", choices=suite_names(), help="the same")
    parser.add_argument("--quick", action="store_true", help="smoke run: few samples")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go")
    options, others = parser.parse_known_args(arguments)
    name = options.suite or options.named
    if name is None:
        parser.error(f"name a suite: {', '.join(suite_names())}")
    suite = cast(Suite, importlib.import_module(f"benchmarks.suites.{_module(name)}"))
    if others and not getattr(suite, "TAKES_ARGUMENTS", False):
        parser.error(f"suite {name} takes no arguments, got {' '.join(others)}")
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {message}", flush=True)

    work_dir = Path(tempfile.mkdtemp(prefix=f"lorebase-bench-{name}-"))
    try:
        context = SuiteContext(
            quick=options.quick, work_dir=work_dir, say=say, arguments=tuple(others)
        )
        result = asyncio.run(_run(suite, context))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped by a signal", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"{type(error).__name__}: {error}\nstate and logs: {work_dir}", file=sys.stderr)
        return 2
    shutil.rmtree(work_dir, ignore_errors=True)
    contents = document(name, result, quick=options.quick, seconds=time.monotonic() - began)
    for path in write(result.name or name, contents, result.figure_svg, options.results):
        say(f"wrote {path}")
    for key, value in result.summary.items():
        print(f"  {key}: {value}")
    for failure in result.failures:
        print(f"FAIL {failure}", file=sys.stderr)
    return 1 if result.failures else 0


async def _run(suite: Suite, context: SuiteContext) -> SuiteResult:
    task = asyncio.current_task()
    assert task is not None
    # Otherwise SIGTERM would end this process and leave a suite's cluster behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await suite.run(context)


if __name__ == "__main__":
    sys.exit(main())
