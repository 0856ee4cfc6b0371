"""`lorebase kit ...`: what stays of a client's data, made and looked at where the data is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from .exits import EXIT_FAILURE
from .plugins import entry_point
from .session import Session, command

app = typer.Typer(
    help="Make the transfer kit with which an adapter can change its base.", no_args_is_help=True
)

SeedsOnlyOption = Annotated[
    bool,
    typer.Option(
        "--seeds-only",
        help="No discriminator: for an adapter of whose data five or more examples are left.",
    ),
]
InputsOption = Annotated[
    int,
    typer.Option(
        "--with-inputs",
        metavar="N",
        min=0,
        help="Real inputs, without answers, to hand over by consent.",
    ),
]
ConsentOption = Annotated[
    str, typer.Option("--consent", metavar="TEXT", help="Who allows that, and for what.")
]


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
    seeds_only: SeedsOnlyOption = False,
    with_inputs: InputsOption = 0,
    consent: ConsentOption = "",
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
        seeds_only=seeds_only,
        with_inputs=with_inputs,
        consent=consent,
    )
    session.show(summary, lambda: render.facts(summary))


KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", exists=True, file_okay=False, help="A kit's directory.")
]
BaseDirOption = Annotated[
    Path,
    typer.Option(
        "--base-dir",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Weights and tokenizer of the kit's base.",
    ),
]


@command(app, "audit")
def audit(
    session: Session,
    kit: KitArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The data that the kit was made of, JSONL: what of it is in the kit?",
        ),
    ] = None,
    synthetic: Annotated[
        Path | None,
        typer.Option(
            "--synthetic",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Inputs made with the kit, one a line: how near do they come to the data?",
        ),
    ] = None,
    unseen: Annotated[
        Path | None,
        typer.Option(
            "--unseen",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Real data that the kit was not made of, to compare with.",
        ),
    ] = None,
) -> None:
    """Show everything that is in a kit, and how near it comes to the data. Needs no server.

    The exit code is 1 if real texts are in it beyond the seeds.
    """
    from . import render

    run = entry_point("lorebase.commands", "kit-audit")
    report = run(kit=kit, against=against, synthetic=synthetic, unseen=unseen)
    session.show(report, lambda: render.facts(_flat(report)))
    if against is not None and not report["clean"]:
        raise typer.Exit(EXIT_FAILURE)


@command(app, "scrub")
def scrub(
    session: Session,
    kit: KitArgument,
    base_dir: BaseDirOption,
    adapter: Annotated[
        Path,
        typer.Option(
            "--adapter",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="The adapter: it answers the new seeds.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the new kit goes.")],
    mode: Annotated[
        str,
        typer.Option(
            help="synthetic: the base writes new seeds; mask: numbers, codes and addresses of the "
            "real ones become random."
        ),
    ] = "synthetic",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Make a kit without real examples of one with them. Needs no server."""
    from . import render

    run = entry_point("lorebase.commands", "kit-scrub")
    told = run(kit=kit, out=out, base_dir=base_dir, adapter=adapter, mode=mode, seed=seed)
    session.show(told, lambda: render.facts(told))


@command(app, "drill")
def drill(
    session: Session,
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="FILE", exists=True, dir_okay=False, help="As for `kit build`."
        ),
    ],
    base_dir: BaseDirOption,
    name: Annotated[str, typer.Option("--name", help="What the data set is called.")],
    task_format: Annotated[
        str, typer.Option("--format", help="Prompt format: document or paper.")
    ] = "document",
    canaries: Annotated[int, typer.Option(min=1, help="Secrets to plant.")] = 20,
    write: Annotated[int, typer.Option(min=1, help="Texts to search, of each kind.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Plant secrets in the data, build a throw-away kit and look for them. Needs no server.

    The exit code is 1 if one came out.
    """
    from . import render

    run = entry_point("lorebase.commands", "kit-drill")
    report = run(
        data=data,
        base_dir=base_dir,
        dataset_name=name,
        format=task_format,
        canaries=canaries,
        write=write,
        seed=seed,
    )
    session.show(report, lambda: render.facts(report))
    if not report["passed"]:
        raise typer.Exit(EXIT_FAILURE)


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Returns nested figures as one level, for a table."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key} / ")
        else:
            found[prefix + key] = value
    return found
