"""Plans, progress and reports of upgrades. Pure: messages in, Rich renderables or lines out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lorebase.v1 import upgrade_pb2

from .render import NOTHING, duration, moment, table

_STATE_STYLE = {
    "promoted": "green",
    "retired": "green",
    "rejected": "yellow",
    "rolled_back": "yellow",
    "aborted": "yellow",
    "failed": "red",
    "retrying": "magenta",
}
_VERDICT_STYLE = {"promote": "green", "retry": "magenta", "reject": "yellow"}
_ENDED = frozenset({"promoted", "retired", "rejected", "rolled_back", "aborted", "failed"})
_BAR_CELLS = 10

WIDE_COLUMNS = 120
"""Below it the live table leaves out what `upgrade report` shows anyway."""


def state_name(upgrade: upgrade_pb2.Upgrade) -> str:
    """Returns an upgrade's state in words: `migrating`, `rolled back`."""
    name = upgrade_pb2.UpgradeState.Name(upgrade.state)
    return name.removeprefix("UPGRADE_STATE_").lower().replace("_", " ")


def verdict_name(decision: upgrade_pb2.Decision) -> str:
    """Returns `promote`, `retry`, `reject`, or `-` if the gate has not spoken."""
    if not decision.verdict:
        return NOTHING
    return upgrade_pb2.Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower()


def plan(response: upgrade_pb2.PlanUpgradeResponse) -> RenderableType:
    """Shows what an upgrade would do, adapter by adapter."""
    made = table("ADAPTER", "PATH", "EVIDENCE", ">RANK", ">EXAMPLES", "WHY")
    for item in response.migrations:
        path = Text(item.path) if item.feasible else Text("stays", style="yellow")
        made.add_row(
            item.adapter,
            path,
            item.evidence or NOTHING,
            str(item.rank or NOTHING),
            str(item.dataset_size or NOTHING),
            item.reason,
        )
    moving = sum(item.feasible for item in response.migrations)
    staying = len(response.migrations) - moving
    summary = f"{moving} to migrate"
    if staying:
        summary += f", {staying} stay on {response.from_base}"
    head = Text(f"Upgrade {response.from_base} → {response.to_base}: {summary}", style="bold")
    return Group(head, Text(), made)


def headline(upgrade: upgrade_pb2.Upgrade, now_s: float) -> str:
    """Returns an upgrade in one line.

    Args:
        upgrade: its present state.
        now_s: seconds since the epoch, for the time it has taken so far.
    """
    counts = Counter(item.state for item in upgrade.migrations)
    ended = sum(count for state, count in counts.items() if state in _ENDED)
    parts = [
        f"{upgrade.id}  {upgrade.from_base} → {upgrade.to_base}  {state_name(upgrade)}",
        f"{ended}/{len(upgrade.migrations)} adapters done",
    ]
    end_s = upgrade.end_time.seconds or now_s
    parts.append(f"{duration(end_s - upgrade.create_time.seconds)} so far")
    if upgrade.end_time.seconds:
        parts[-1] = f"took {duration(end_s - upgrade.create_time.seconds)}"
    elif upgrade.eta_seconds > 0:
        parts.append(f"about {duration(upgrade.eta_seconds)} left")
    if upgrade.background_busy_seconds:
        parts.append(f"background work {duration(upgrade.background_busy_seconds)}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Progress:
    """An upgrade, one row an adapter with stage, scores and verdict; narrow where it must be."""

    upgrade: upgrade_pb2.Upgrade
    now_s: float
    """Seconds since the epoch."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        upgrade = self.upgrade
        yield Text(headline(upgrade, self.now_s), style="bold")
        yield Text()
        yield _progress_table(upgrade, wide=options.max_width >= WIDE_COLUMNS)
        if upgrade.error:
            yield Text()
            yield Text(f"error: {upgrade.error}", style="red")


def _progress_table(upgrade: upgrade_pb2.Upgrade, *, wide: bool) -> Table:
    columns = ["ADAPTER", "STATE", "PROGRESS", ">SOURCE", ">SHADOW", "VERDICT"]
    if wide:
        columns += [">TRY", ">BARE", "DIFFERENCE", ">N", "NOTE"]
    made = table(*columns)
    for item in upgrade.migrations:
        decision = item.decision
        verdict = verdict_name(decision)
        decided = bool(decision.verdict)
        cells: list[RenderableType] = [
            item.adapter,
            Text(item.state, style=_STATE_STYLE.get(item.state, "cyan")),
            NOTHING if item.state in _ENDED else bar(item.stage_progress),
            score(decision.source_score, decided),
            score(decision.shadow_score, decided),
            Text(verdict, style=_VERDICT_STYLE.get(verdict, "")),
        ]
        if wide:
            cells += [
                str(item.attempt or NOTHING),
                score(decision.bare_score, decided),
                interval(decision),
                str(decision.n or NOTHING),
                item.error or (decision.reason if verdict in ("reject", "retry") else ""),
            ]
        made.add_row(*cells)
    return made


def bar(share: float) -> str:
    """Returns a bar of ten cells and a percentage."""
    share = min(max(share, 0.0), 1.0)
    full = round(share * _BAR_CELLS)
    return f"{'█' * full}{'░' * (_BAR_CELLS - full)} {share:4.0%}"


def score(value: float, known: bool) -> str:
    """Returns a score between 0 and 1 with three digits, or `-` if it is not known yet."""
    return f"{value:.3f}" if known else NOTHING


def interval(decision: upgrade_pb2.Decision) -> str:
    """Returns shadow minus source with its confidence interval."""
    if not decision.verdict:
        return NOTHING
    return (
        f"{decision.difference:+.3f} [{decision.interval_low:+.3f}, {decision.interval_high:+.3f}]"
    )


def changes(before: upgrade_pb2.Upgrade | None, after: upgrade_pb2.Upgrade) -> list[str]:
    """Returns what changed as plain lines, for logs and pipes.

    Progress within a stage is reported in quarters only, so a log stays readable.
    """
    lines = []
    if before is None or before.state != after.state:
        lines.append(f"upgrade {after.id}: {state_name(after)}")
    if after.error and (before is None or before.error != after.error):
        lines.append(f"upgrade {after.id}: error: {after.error}")
    known = {item.adapter: item for item in before.migrations} if before is not None else {}
    for item in after.migrations:
        old = known.get(item.adapter)
        if old is None or (old.state, old.attempt) != (item.state, item.attempt):
            lines.append(_state_line(item))
        elif item.state not in _ENDED and int(item.stage_progress * 4) > int(
            old.stage_progress * 4
        ):
            lines.append(f"{item.adapter}: {item.state} {item.stage_progress:.0%}")
    return lines


def _state_line(item: upgrade_pb2.Migration) -> str:
    line = f"{item.adapter}: {item.state}"
    if item.attempt > 1:
        line += f" (attempt {item.attempt})"
    decision = item.decision
    if decision.verdict and item.state in _ENDED | {"ready", "retrying"}:
        line += (
            f", gate: {verdict_name(decision)}, source {decision.source_score:.3f}, shadow "
            f"{decision.shadow_score:.3f}, difference {interval(decision)}, n {decision.n}"
        )
    if item.error:
        line += f", {item.error}"
    return line


def upgrades(items: Sequence[upgrade_pb2.Upgrade]) -> RenderableType:
    """Shows upgrades, one a row."""
    if not items:
        return Text("No upgrade yet. See what one would do: lorebase upgrade plan --to BASE")
    made = table("UPGRADE", "FROM", "TO", "STATE", ">ADAPTERS", "STARTED", "ENDED")
    for item in items:
        made.add_row(
            item.id,
            item.from_base,
            item.to_base,
            state_name(item),
            str(len(item.migrations)),
            moment(item.create_time),
            moment(item.end_time),
        )
    return made


def report(upgrade: upgrade_pb2.Upgrade, now_s: float) -> RenderableType:
    """Shows the gate's evidence for every adapter and where the time went."""
    gate = table(
        "ADAPTER", "STATE", "EVIDENCE", ">N", ">SOURCE", ">SHADOW", ">BARE", ">FEW-SHOT",
        "DIFFERENCE", ">MARGIN", "FLIPS (BOUND ≤ BUDGET)", "VERDICT",
    )  # fmt: skip
    reasons: list[RenderableType] = []
    for item in upgrade.migrations:
        decision = item.decision
        decided = bool(decision.verdict)
        flips = (
            f"{decision.negative_flip_rate:.3f} ({decision.negative_flip_bound:.3f} ≤ "
            f"{decision.negative_flip_budget:.3f})"
        )
        gate.add_row(
            item.adapter,
            Text(item.state, style=_STATE_STYLE.get(item.state, "cyan")),
            decision.evidence or NOTHING,
            str(decision.n or NOTHING),
            score(decision.source_score, decided),
            score(decision.shadow_score, decided),
            score(decision.bare_score, decided),
            score(decision.few_shot_score, decided),
            interval(decision),
            score(decision.margin, decided),
            flips if decided else NOTHING,
            Text(verdict_name(decision), style=_VERDICT_STYLE.get(verdict_name(decision), "")),
        )
        reason = item.error or decision.reason
        if reason:
            reasons.append(Text(f"{item.adapter}: {reason}"))
    parts: list[RenderableType] = [Text(headline(upgrade, now_s), style="bold"), Text(), gate]
    if reasons:
        parts += [Text(), Text("Reasons", style="bold"), *reasons]
    parts += [Text(), _stage_times(upgrade)]
    return Group(*parts)


def _stage_times(upgrade: upgrade_pb2.Upgrade) -> Table:
    stages: dict[str, list[float]] = {}
    for item in upgrade.migrations:
        for record in item.stages:
            if record.end_time.seconds:
                seconds = (
                    record.end_time.ToNanoseconds() - record.start_time.ToNanoseconds()
                ) / 1e9
                stages.setdefault(record.stage, []).append(seconds)
    made = table("STAGE", ">RUNS", ">TOTAL", ">LONGEST")
    for stage, times in stages.items():
        made.add_row(stage, str(len(times)), duration(sum(times)), duration(max(times)))
    return made
