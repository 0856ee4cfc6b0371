"""What an upgrade's messages tell, as facts. Pure."""

from benchmarks.charts import GanttBar, GanttRow
from benchmarks.upgrades import seconds_of
from lorebase.v1 import upgrade_pb2

from .facts import GateWord


def gate_word(decision: upgrade_pb2.Decision) -> GateWord:
    """Returns the gate's decision as plain data."""
    if decision.verdict == upgrade_pb2.VERDICT_UNSPECIFIED:
        return GateWord()
    return GateWord(
        verdict=upgrade_pb2.Verdict.Name(decision.verdict).removeprefix("VERDICT_").lower(),
        evidence=decision.evidence,
        n=decision.n,
        source_score=decision.source_score,
        shadow_score=decision.shadow_score,
        interval_low=decision.interval_low,
        interval_high=decision.interval_high,
        margin=decision.margin,
        negative_flip_rate=decision.negative_flip_rate,
        reason=decision.reason,
    )


def stage_rows(upgrade: upgrade_pb2.Upgrade, origin: float) -> list[GanttRow]:
    """Returns every migration's stages for the Gantt chart; unfinished ones are left out."""
    rows = []
    for one in upgrade.migrations:
        bars = tuple(
            GanttBar(
                start_s=seconds_of(stage.start_time) - origin,
                end_s=seconds_of(stage.end_time) - origin,
                kind=stage.stage,
                label=f"{stage.stage} (attempt {stage.attempt})",
            )
            for stage in one.stages
            if stage.HasField("start_time") and stage.HasField("end_time")
        )
        rows.append(GanttRow(name=one.adapter, bars=bars, end_mark=one.state))
    return rows


def migration_seconds(one: upgrade_pb2.Migration) -> float:
    """Returns the seconds from the first stage's start to the last one's end."""
    begins = [seconds_of(s.start_time) for s in one.stages if s.HasField("start_time")]
    ends = [seconds_of(s.end_time) for s in one.stages if s.HasField("end_time")]
    return max(ends) - min(begins) if begins and ends else 0.0
