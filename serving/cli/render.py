"""Adapters, models and routes as tables. Pure: messages in, Rich renderables out."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorebase.v1 import adapter_pb2, inference_pb2

NOTHING = "-"


def table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table in the house style; a column named `>x` is right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        right = column.startswith(">")
        # The first column is the name: the one thing that people copy, so it stays in one piece.
        made.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=number == 0,
        )
    return made


def facts(values: Mapping[str, object]) -> Table:
    """Returns names and values in two columns."""
    made = table("", "")
    made.show_header = False
    for key, value in values.items():
        made.add_row(key.replace("_", " "), str(value))
    return made


def duration(seconds: float) -> str:
    """Returns `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(byte_count: int) -> str:
    """Returns a size in binary units: `512 B`, `1.5 MiB`."""
    value = float(byte_count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def moment(timestamp: Timestamp) -> str:
    """Returns a time in UTC to the second, or `-` if it is unset."""
    if not timestamp.seconds:
        return NOTHING
    return f"{datetime.fromtimestamp(timestamp.seconds, UTC):%Y-%m-%d %H:%M:%SZ}"


def digest(value: str) -> str:
    """Shortens `sha256:<hex>` to what tells artifacts apart at a glance."""
    kind, _, hexadecimal = value.partition(":")
    return f"{kind}:{hexadecimal[:12]}" if hexadecimal else NOTHING


def adapters(items: Sequence[adapter_pb2.Adapter]) -> RenderableType:
    """Shows adapters, one a row."""
    if not items:
        return Text(
            "No adapters. Register one: lorebase adapter create NAME --from DIR --base BASE"
        )
    made = table("ADAPTER", "BASE", "VERSION", ">RANK", "KIT", "EVALUATION", "CREATED")
    for item in items:
        ranks = {version.id: version.rank for version in item.versions}
        made.add_row(
            item.name,
            item.base,
            item.stable_version,
            str(ranks.get(item.stable_version, NOTHING)),
            "yes" if item.kit_digest else "no",
            "yes" if item.evaluation_digest else "no",
            moment(item.create_time),
        )
    return made


def adapter(item: adapter_pb2.Adapter) -> RenderableType:
    """Shows one adapter and its versions; `*` marks the one that answers."""
    facts = table("", "")
    facts.show_header = False
    for label, value in (
        ("adapter", item.name),
        ("tenant", item.tenant),
        ("base", item.base),
        ("kit", digest(item.kit_digest)),
        ("evaluation", digest(item.evaluation_digest)),
        ("created", moment(item.create_time)),
        ("etag", item.etag or NOTHING),
    ):
        facts.add_row(Text(label, style="bold"), value)
    versions = table(
        "", "VERSION", "BASE", "TYPE", ">RANK", "TARGETS", "ORIGIN", "DIGEST", "CREATED"
    )
    for version in item.versions:
        versions.add_row(
            "*" if version.id == item.stable_version else "",
            version.id,
            version.base,
            version.peft_type,
            str(version.rank),
            ",".join(version.target_modules),
            version.origin,
            digest(version.digest),
            moment(version.create_time),
        )
    return Group(facts, Text(), versions)


def models(items: Sequence[inference_pb2.Model]) -> RenderableType:
    """Shows every name that `model` accepts."""
    made = table("MODEL", "KIND", "BASE", "VERSION")
    for item in items:
        kind = inference_pb2.Model.Kind.Name(item.kind).removeprefix("KIND_").lower()
        made.add_row(item.id, kind, item.base, item.adapter_version or NOTHING)
    return made


def route_changes(items: Sequence[adapter_pb2.RouteChange]) -> RenderableType:
    """Shows the audit trail of swaps, oldest first."""
    if not items:
        return Text("No route has changed yet.")
    made = table(">REVISION", "TIME", "ADAPTER", "REASON", "VERSION", "BASE")
    for item in items:
        made.add_row(
            str(item.revision),
            moment(item.time),
            item.adapter,
            item.reason,
            item.version or NOTHING,
            item.base or NOTHING,
        )
    return made
