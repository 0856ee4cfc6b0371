"""`lorebase adapter ...`."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .plugins import entry_point
from .session import Session, command

if TYPE_CHECKING:
    from .client import LorebaseClient

app = typer.Typer(help="Register, show and remove adapters.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="tenant/name")]
KitOption = Annotated[
    Path | None,
    typer.Option(
        "--kit", metavar="DIR", exists=True, file_okay=False, help="Made by `lorebase kit build`."
    ),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(
        "--evaluation",
        metavar="FILE",
        exists=True,
        help='JSONL, one {"input", "target"} a line: lets the gate judge by your own data.',
    ),
]


@command(app, "create")
def create(
    session: Session,
    name: NameArgument,
    source: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", exists=True, file_okay=False, help="PEFT directory."),
    ],
    base: Annotated[str, typer.Option("--base", help="Base that the weights fit.")],
    base_dir: Annotated[
        Path | None,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="That base's files: a PEFT type other than LoRA is converted here first.",
        ),
    ] = None,
    kit: KitOption = None,
    evaluation: EvaluationOption = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Upload and check, create nothing.")
    ] = False,
) -> None:
    """Upload an adapter, with its kit and evaluation set if given, and route its name to it."""
    from . import render
    from .adapters import ADAPTER

    client = session.client
    with _servable(session, source, base, base_dir) as folder:
        adapter_digest = client.upload_artifact(folder, ADAPTER, base).digest
    kit_digest, evaluation_digest = _upload_extras(client, kit, evaluation, base)
    adapter = client.create_adapter(
        name,
        base,
        adapter_digest,
        kit_digest=kit_digest,
        evaluation_digest=evaluation_digest,
        request_id=str(uuid.uuid4()),
        validate_only=validate_only,
    )
    if validate_only and not session.as_json:
        session.console.print(f"{name} fits {base}; nothing was created.")
        return
    session.show(adapter, lambda: render.adapter(adapter))


@command(app, "convert")
def convert(
    session: Session,
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="What PEFT saved."),
    ],
    base_dir: Annotated[
        Path,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Weights and tokenizer of the base that it was trained on.",
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="That base's id in the cluster.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the LoRA goes.")
    ] = None,
    kit: KitOption = None,
    to_base_dir: Annotated[
        Path | None,
        typer.Option(
            "--to-base-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Another base that the LoRA shall be for; takes a kit.",
        ),
    ] = None,
    to_base: Annotated[str, typer.Option("--to-base", help="Its id.")] = "",
    max_rank: Annotated[int, typer.Option(min=1, help="Largest rank of the LoRA.")] = 64,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Take a LoRA that is not surely as good.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
) -> None:
    """Make a LoRA, which engines serve, of an adapter of any PEFT type. Needs no server.

    Changes of weights are converted, exactly where the rank allows; anything else, and a move to
    another base, takes a transfer kit, with which a LoRA learns the adapter's answers.
    """
    from . import render

    run = entry_point("lorebase.commands", "adapter-convert")
    summary = run(
        source=source,
        base_dir=base_dir,
        base_id=base or base_dir.name,
        out=out,
        kit=kit,
        to_base_dir=to_base_dir,
        to_base_id=to_base,
        max_rank=max_rank,
        accept_loss=accept_loss,
        dry_run=dry_run,
    )
    session.show(summary, lambda: render.facts(summary))


@command(app, "import-kit")
def import_kit(
    session: Session, name: NameArgument, kit: KitOption = None, evaluation: EvaluationOption = None
) -> None:
    """Attach a transfer kit, an evaluation set or both to an existing adapter."""
    from . import render

    if kit is None and evaluation is None:
        raise typer.BadParameter("give --kit DIR, --evaluation FILE or both")
    base = session.client.get_adapter(name).base
    kit_digest, evaluation_digest = _upload_extras(session.client, kit, evaluation, base)
    adapter = session.client.import_kit(
        name, kit_digest=kit_digest, evaluation_digest=evaluation_digest
    )
    session.show(adapter, lambda: render.adapter(adapter))


@command(app, "list")
def list_(
    session: Session, tenant: Annotated[str, typer.Option(help="Only this tenant's.")] = ""
) -> None:
    """List adapters."""
    from . import render

    adapters = session.client.list_adapters(tenant)
    session.show(adapters, lambda: render.adapters(adapters))


@command(app, "get")
def get(session: Session, name: NameArgument) -> None:
    """Show an adapter and its versions."""
    from . import render

    adapter = session.client.get_adapter(name)
    session.show(adapter, lambda: render.adapter(adapter))


@command(app, "history")
def history(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="All adapters if left out.")] = "",
) -> None:
    """Show every change of an adapter's route: the audit trail of swaps."""
    from . import render

    changes = session.client.list_route_changes(name)
    session.show(changes, lambda: render.route_changes(changes))


@command(app, "delete")
def delete(
    session: Session,
    name: NameArgument,
    etag: Annotated[str, typer.Option(help="Delete only if it still matches.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove an adapter with all its versions; requests in flight finish."""
    session.confirm(f"Delete {name} and all its versions?", yes=yes)
    session.client.delete_adapter(name, etag=etag)
    session.show({"deleted": name}, lambda: f"{name} is deleted.")


@contextmanager
def _servable(session: Session, source: Path, base: str, base_dir: Path | None) -> Iterator[Path]:
    """Yields a directory that the service takes: the source, or a LoRA made of it for this once."""
    if base_dir is None:
        yield source
        return
    import tempfile

    run = entry_point("lorebase.commands", "adapter-convert")
    with tempfile.TemporaryDirectory(prefix="lorebase-convert-") as work:
        folder = Path(work) / "adapter"
        told = run(source=source, base_dir=base_dir, base_id=base, out=folder)
        if told["path"] != "keep":
            typer.echo(
                f"{told['peft_type']} became a LoRA that holds {told['kept_energy']:.2%} of it",
                err=True,
            )
        yield folder


def _upload_extras(
    client: "LorebaseClient", kit: Path | None, evaluation: Path | None, base: str
) -> tuple[str, str]:
    from .adapters import EVALUATION_SET, KIT

    kit_digest = client.upload_artifact(kit, KIT, base).digest if kit else ""
    evaluation_digest = (
        client.upload_artifact(evaluation, EVALUATION_SET).digest if evaluation else ""
    )
    return kit_digest, evaluation_digest
