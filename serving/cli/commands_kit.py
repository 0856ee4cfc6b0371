"""`lorebase kit ...`: what stays of a client's data, made and looked at where the data is."""

from pathlib import Path
from typing import Annotated

import typer

from .plugins import entry_point
from .session import Session, command

app = typer.Typer(
    help="Make the transfer kit with which an adapter can change its base.", no_args_is_help=True
)


@command(app, "build")
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
