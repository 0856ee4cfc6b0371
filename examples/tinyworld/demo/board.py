"""Live progress: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.load.records import RequestRecord
from benchmarks.load.statistics import percentile
from benchmarks.upgrades import state_name
from lorebase.v1 import upgrade_pb2

from .watch import gate_word

WINDOW_S = 10.0
PLAIN_EVERY_S = 15.0
STYLES = {"promoted": "green", "retired": "green", "rejected": "yellow", "failed": "red"}


class Board:
    """What a spectator sees; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._interactive = console.is_terminal
        self._began = time.monotonic()
        self._phase = "starting"
        self._upgrade: upgrade_pb2.Upgrade | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=20_000)
        self._sent = Counter[str]()
        self._failed = 0
        self._answers_from: dict[str, str] = {}
        self._states: dict[str, str] = {}
        self._last_plain = 0.0
        # Last: it renders at once.
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Board:
        if self._interactive:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._interactive:
            self._live.stop()

    def say(self, message: str) -> None:
        """Prints a line that stays, with the time since the start."""
        # One line each, however narrow the terminal or log is.
        line = f"[dim]{self._elapsed()}[/]  {message}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Names what happens now."""
        self._phase = name
        self.say(f"[bold]{name}[/]")

    def record(self, record: RequestRecord) -> None:
        """Counts one request."""
        self._sent[record.kind] += 1
        self._failed += not record.ok
        if not record.ok and self._failed <= 5:
            self.say(f"[red]failed[/] {record.model}: {record.code} {record.error}")
        if record.kind == "foreground":
            self._recent.append((time.monotonic(), record.latency_s))
            if record.ok:
                self._answers_from[record.adapter] = record.base
        self._plain_status()

    def update(self, upgrade: upgrade_pb2.Upgrade) -> None:
        """Takes in the newest state of the upgrade."""
        self._upgrade = upgrade
        for one in upgrade.migrations:
            if self._states.get(one.adapter) == one.state:
                continue
            self._states[one.adapter] = one.state
            if one.state in {"promoted", "rejected", "failed", "rolled_back", "retrying"}:
                colour = STYLES.get(one.state, "cyan")
                self.say(f"[{colour}]{one.state}[/] {one.adapter}{self._why(one)}")
        self._plain_status()

    @staticmethod
    def _why(one: upgrade_pb2.Migration) -> str:
        word = gate_word(one.decision)
        if not word.verdict:
            return f": {one.error}" if one.error else ""
        return (
            f"  ({word.evidence}, n={word.n}: source {word.source_score:.2f}, shadow "
            f"{word.shadow_score:.2f}, difference {word.interval_low:+.3f} to "
            f"{word.interval_high:+.3f})"
        )

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60:2d}:{seconds % 60:02d}"

    def _figures(self) -> str:
        since = time.monotonic() - WINDOW_S
        latencies = [latency for at, latency in self._recent if at >= since]
        p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
        shown = (
            "" if p50 is None or p99 is None else f", p50 {p50 * 1e3:.0f} p99 {p99 * 1e3:.0f} ms"
        )
        text = (
            f"{sum(self._sent.values()):,} requests, {self._failed} failed, "
            f"{len(latencies) / WINDOW_S:.1f}/s from clients{shown}"
        )
        if self._upgrade is not None and self._upgrade.eta_seconds > 0:
            eta = int(self._upgrade.eta_seconds)
            text += f", upgrade ends in about {eta // 60}:{eta % 60:02d}"
        return text

    def _plain_status(self) -> None:
        if self._interactive or time.monotonic() - self._last_plain < PLAIN_EVERY_S:
            return
        self._last_plain = time.monotonic()
        states = Counter(self._states.values())
        summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        self.say(f"{self._phase}: {self._figures()}{'; ' + summary if summary else ''}")

    def _render(self) -> Group:
        head = Text(f"{self._elapsed()}  {self._phase}: {self._figures()}", style="bold")
        if self._upgrade is None:
            return Group(head)
        upgrade = self._upgrade
        table = Table(
            title=f"{upgrade.from_base} to {upgrade.to_base}: {state_name(upgrade.state)}",
            title_justify="left",
            header_style="dim",
            box=None,
            pad_edge=False,
        )
        for column in ("adapter", "state", "stage", "try", "source", "shadow", "answers from"):
            table.add_column(column, no_wrap=True)
        for one in upgrade.migrations:
            table.add_row(*self._cells(one))
        return Group(head, table)

    def _cells(self, one: upgrade_pb2.Migration) -> tuple[Text | ProgressBar, ...]:
        word = gate_word(one.decision)
        scores = (word.source_score, word.shadow_score) if word.verdict else (None, None)
        base = self._answers_from.get(one.adapter, "")
        moved = self._upgrade is not None and base == self._upgrade.to_base
        return (
            Text(one.adapter),
            Text(one.state, style=STYLES.get(one.state, "cyan")),
            ProgressBar(total=1.0, completed=one.stage_progress, width=16),
            Text(str(one.attempt or "")),
            *(Text("" if score is None else f"{score:.2f}") for score in scores),
            Text(base, style="green" if moved else ""),
        )
