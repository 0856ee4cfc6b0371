"""`lorebase adapter ...` and `lorebase kit build`."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .plugins import entry_point
from .session import Session, command

if TYPE_CHECKING:
    from .client import LorebaseClient

app = typer.Typer(help="Register, show and remove adapters.", no_args_is_help=True)
kit_app = typer.Typer(
    help="Make the transfer kit with which an adapter can change its base.", no_args_is_help=True
)

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
        typer.Option(
            "--from", metavar="DIR", exists=True, file_okay=False, help="PEFT directory (LoRA)."
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="Base that the weights fit.")],
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
    adapter_digest = client.upload_artifact(source, ADAPTER, base).digest
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


@command(kit_app, "build")
def build(
    session: Session,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help='The task\'s examples, JSONL, one {"input", "target"} a line. They stay here.',
        ),
    ],
    base_dir: Annotated[
        Path,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Weights and tokenizer of the base that the adapter runs on now.",
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="That base's id in the cluster.")],
    name: Annotated[str, typer.Option("--name", help="What the data set is called.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the kit goes.")],
    task_format: Annotated[
        str, typer.Option("--format", help="Prompt format: document or paper.")
    ] = "document",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    seeds: Annotated[int, typer.Option(help="Examples that the kit keeps.", min=1)] = 5,
) -> None:
    """Make a transfer kit where the data is: a discriminator, a few seeds, no data.

    Needs no server. The kit goes to the cluster with `lorebase adapter create --kit DIR`.
    """
    from . import render

    run = entry_point("lorebase.commands", "kit-build")
    summary = run(
        data=data,
        base_dir=base_dir,
        base_id=base,
        dataset_name=name,
        out=out,
        format=task_format,
        seed=seed,
        seeds=seeds,
    )
    session.show(summary, lambda: render.facts(summary))


def _upload_extras(
    client: "LorebaseClient", kit: Path | None, evaluation: Path | None, base: str
) -> tuple[str, str]:
    from .adapters import EVALUATION_SET, KIT

    kit_digest = client.upload_artifact(kit, KIT, base).digest if kit else ""
    evaluation_digest = (
        client.upload_artifact(evaluation, EVALUATION_SET).digest if evaluation else ""
    )
    return kit_digest, evaluation_digest
