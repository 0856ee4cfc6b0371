"""`lorebase upgrade ...`: plan, start, follow and steer the change of the base."""

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .session import Session, command

if TYPE_CHECKING:
    from lorebase.v1.upgrade_pb2 import Upgrade

app = typer.Typer(help="Move adapters to the next base under live traffic.", no_args_is_help=True)

ToOption = Annotated[str, typer.Option("--to", metavar="BASE", help="The next base's id.")]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", metavar="NAME", help="Only this adapter; repeatable."),
]
IdOption = Annotated[
    str, typer.Option("--id", metavar="UPGRADE", help="The upgrade; the newest if not given.")
]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Follow until all migrations have ended.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


@command(app, "plan")
def plan(session: Session, to: ToOption, adapter: AdapterOption = None) -> None:
    """Show what an upgrade would do, adapter by adapter. Changes nothing."""
    from . import render_upgrade

    response = session.client.plan_upgrade(to, adapter or ())
    session.show(response, lambda: render_upgrade.plan(response))


@command(app, "start")
def start(
    session: Session,
    to: ToOption,
    adapter: AdapterOption = None,
    watch: WatchOption = False,
    request_id: Annotated[
        str, typer.Option(help="Repeating a start with the same id starts nothing twice.")
    ] = "",
) -> None:
    """Start the next base's engine and migrate the adapters in the background."""
    upgrade = session.client.start_upgrade(
        to, adapter or (), request_id=request_id or str(uuid.uuid4())
    )
    if watch:
        _follow(session, upgrade.id)
        return
    _show(session, upgrade)
    if not session.as_json:
        session.console.print("Follow it: lorebase upgrade status --watch")


@command(app, "status")
def status(session: Session, id_: IdOption = "", watch: WatchOption = False) -> None:
    """Show an upgrade: stage, scores and verdict of every adapter.

    With --watch the exit code is 1 if the upgrade failed or was aborted.
    """
    if watch:
        _follow(session, id_)
        return
    _show(session, session.client.get_upgrade(id_))


@command(app, "list")
def list_(session: Session) -> None:
    """List all upgrades."""
    from . import render_upgrade

    upgrades = session.client.list_upgrades()
    session.show(upgrades, lambda: render_upgrade.upgrades(upgrades))


@command(app, "pause")
def pause(session: Session, id_: IdOption = "") -> None:
    """Stop background work at the next safe point; serving goes on."""
    _show(session, session.client.pause_upgrade(id_))


@command(app, "resume")
def resume(session: Session, id_: IdOption = "") -> None:
    """Go on with a paused or failed upgrade where it was."""
    _show(session, session.client.resume_upgrade(id_))


@command(app, "promote")
def promote(
    session: Session,
    adapter: Annotated[
        list[str], typer.Option("--adapter", "-a", metavar="NAME", help="Repeatable.")
    ],
    id_: IdOption = "",
) -> None:
    """Route adapters to their shadow versions although the gate did not say so."""
    _show(session, session.client.promote_upgrade(id_, adapter))


MarginOption = Annotated[
    float | None,
    typer.Option(help="Largest loss of accuracy that you accept; by default the service's."),
]
LooksOption = Annotated[
    int, typer.Option(min=1, help="Verdicts that you plan in all: they share the risk.")
]


@command(app, "judge")
def judge(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="tenant/name")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help='Your examples, JSONL, one {"input", "target"} a line. Sent as prompts only.',
        ),
    ] = None,
    verdict: Annotated[
        Path | None,
        typer.Option(
            "--verdict",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Judge by what somebody's --out wrote, in place of --data.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the verdict goes: no text of yours."),
    ] = None,
    id_: IdOption = "",
    task_format: Annotated[
        str, typer.Option("--format", help="Prompt format: document or paper.")
    ] = "document",
    shots: Annotated[
        int, typer.Option(min=0, max=16, help="Examples for the rival without an adapter.")
    ] = 5,
    margin: MarginOption = None,
    looks: LooksOption = 1,
    promote: Annotated[
        bool, typer.Option("--promote", help="Promote a rejected adapter if the verdict allows it.")
    ] = False,
) -> None:
    """Compare an adapter's old and new version on your own data, which stays with you."""
    from . import render
    from .plugins import entry_point

    run = entry_point("lorebase.commands", "upgrade-judge")
    summary = run(
        session.client,
        name,
        data=data,
        verdict=verdict,
        out=out,
        upgrade_id=id_,
        format=task_format,
        shots=shots,
        margin=margin,
        looks=looks,
        promote=promote,
    )
    session.show(summary, lambda: render.facts(summary))


@command(app, "rollback")
def rollback(session: Session, adapter: AdapterOption = None, id_: IdOption = "") -> None:
    """Move routes back to the old base at once: of all promoted adapters, or of those named."""
    _show(session, session.client.rollback_upgrade(id_, adapter or ()))


@command(app, "abort")
def abort(session: Session, id_: IdOption = "", yes: YesOption = False) -> None:
    """Stop the upgrade for good; what is promoted stays promoted."""
    session.confirm("Stop this upgrade for good?", yes=yes)
    _show(session, session.client.abort_upgrade(id_))


@command(app, "finish")
def finish(session: Session, id_: IdOption = "", yes: YesOption = False) -> None:
    """End the rollback window and retire the old base if nothing is routed to it."""
    session.confirm("End the rollback window and retire the old base?", yes=yes)
    _show(session, session.client.finish_upgrade(id_))


@command(app, "report")
def report(session: Session, id_: IdOption = "") -> None:
    """Show the gate's evidence for every adapter and where the time went."""
    from . import render_upgrade

    upgrade = session.client.get_upgrade(id_)
    session.show(upgrade, lambda: render_upgrade.report(upgrade, time.time()))


def _show(session: Session, upgrade: "Upgrade") -> None:
    from . import render_upgrade

    session.show(upgrade, lambda: render_upgrade.Progress(upgrade, time.time()))


def _follow(session: Session, upgrade_id: str) -> None:
    from .watch import exit_code_of, watch

    last = watch(session, session.client.watch_upgrade(upgrade_id))
    code = exit_code_of(last)
    if code:
        raise typer.Exit(code)
