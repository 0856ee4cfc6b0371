"""`python -m examples.tinyworld.demo`: the base changes under live traffic, and a report says how.

Exit codes: 0 all checks passed, 1 a check failed, 2 the demo could not be run to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.traceback import Traceback

from benchmarks.cluster import ServedCluster
from benchmarks.load import LoadPlan

from .board import Board
from .report import write
from .settings import DemoSettings
from .story import Story
from .verdict import Check, check_all
from .world import TenantAdapter, find_adapters

GRPC_PORT, HTTP_PORT = 19000, 18000
"""Those of the README's examples; others are taken where these are in use."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    settings = _settings(arguments)
    console = Console()
    try:
        adapters = find_adapters(
            settings.adapters_dir, only=settings.only, judge_examples=settings.judge_examples
        )
    except (OSError, ValueError) as error:
        console.print(f"[red]The tiny world is incomplete:[/] {error}")
        return 2
    # Only ever a directory that this demo made: it carries its own mark.
    _clean(settings.state_dir)
    cluster = ServedCluster(
        settings.config, settings.state_dir, grpc_port=GRPC_PORT, http_port=HTTP_PORT
    )
    try:
        checks = asyncio.run(_run(settings, adapters, cluster, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("[yellow]stopped by hand[/]")
        return 2
    except Exception:
        console.print(Traceback(show_locals=False))
        console.print(f"[dim]last lines of {cluster.log_path}:[/]")
        console.print(cluster.log_tail(), markup=False, highlight=False)
        return 2
    finally:
        killed = cluster.stop(settings.limits.stop_s)
        if killed:
            console.print(f"[dim]had to kill {len(killed)} left-over processes[/]")
    return 0 if all(check.ok for check in checks) else 1


async def _run(
    settings: DemoSettings,
    adapters: list[TenantAdapter],
    cluster: ServedCluster,
    console: Console,
) -> list[Check]:
    task = asyncio.current_task()
    assert task is not None
    # Otherwise SIGTERM would end this process and leave the cluster behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with Board(console) as board:
        board.say(
            f"{len(adapters)} adapters, {settings.old_base} to {settings.next_base}; log: "
            f"{cluster.log_path}"
        )
        story = Story(settings, adapters, cluster, board)
        cluster.start()
        facts = await story.tell()
    checks = check_all(facts, settings)
    page, data = write(facts, checks, settings)
    for check in checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        console.print(f"{mark} {check.name}: {check.detail}", highlight=False)
    console.print(f"{len(facts.records):,} requests in {facts.seconds:.0f} s, report: {page}")
    console.print(f"figures: {data}")
    return checks


def _clean(state_dir: Path) -> None:
    mark = state_dir / ".lorebase-demo"
    if state_dir.exists():
        if not mark.exists() and any(state_dir.iterdir()):
            sys.exit(f"{state_dir} is not empty and not a former demo's: name another --state-dir")
        shutil.rmtree(state_dir)
    state_dir.mkdir(parents=True)
    mark.touch()


def _settings(arguments: list[str] | None) -> DemoSettings:
    defaults = DemoSettings()
    parser = argparse.ArgumentParser(prog="python -m examples.tinyworld.demo", description=__doc__)
    parser.add_argument("--config", type=Path, default=defaults.config)
    parser.add_argument("--state-dir", type=Path, default=defaults.state_dir)
    parser.add_argument("--report-dir", type=Path, default=defaults.report_dir)
    parser.add_argument("--only", nargs="+", default=defaults.only, metavar="ADAPTER")
    parser.add_argument("--all", action="store_true", help="every adapter there is, takes longer")
    parser.add_argument("--clients", type=int, default=defaults.load.clients)
    parser.add_argument("--think", type=float, nargs=2, default=defaults.load.think_s)
    parser.add_argument("--judge-examples", type=int, default=defaults.judge_examples)
    parser.add_argument("--required-promotions", type=int, default=defaults.required_promotions)
    options = parser.parse_args(arguments)
    low, high = options.think
    return dataclasses.replace(
        defaults,
        config=options.config.resolve(),
        state_dir=options.state_dir.resolve(),
        report_dir=options.report_dir.resolve(),
        only=() if options.all else tuple(options.only),
        load=LoadPlan(clients=options.clients, think_s=(low, high)),
        judge_examples=options.judge_examples,
        required_promotions=options.required_promotions,
    )


if __name__ == "__main__":
    sys.exit(main())
