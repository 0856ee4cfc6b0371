"""The `lorebase` command: puts the groups together and turns errors into exit codes."""

import sys
from typing import Annotated

import typer

from . import (
    commands_adapter,
    commands_config,
    commands_kit,
    commands_system,
    commands_upgrade,
)
from .exits import EXIT_CODES_HELP
from .session import CaOption, EndpointOption, OutputOption, TimeoutOption, options_from

app = typer.Typer(
    name="lorebase",
    help="Serve many LoRA adapters; upgrade the base model under them without anyone noticing.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
commands_system.register(app)
app.add_typer(commands_adapter.app, name="adapter")
app.add_typer(commands_kit.app, name="kit")
app.add_typer(commands_upgrade.app, name="upgrade")
app.add_typer(commands_config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lorebase {version('lorebase')}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    endpoint: EndpointOption = None,
    output: OutputOption = None,
    timeout: TimeoutOption = None,
    ca: CaOption = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    ctx.obj = options_from().updated(endpoint=endpoint, output=output, timeout=timeout, ca=ca)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; always ends with SystemExit.

    Args:
        arguments: without the program's name; None takes them from sys.argv.
    """
    try:
        app(args=arguments, prog_name="lorebase")
    except BrokenPipeError:
        # The reader (head, less) went away: nobody is left to be told.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        sys.exit(_report(error))


def _report(error: Exception) -> int:
    """Prints a lorebase error in one line and returns its exit code; raises any other."""
    # Imported only now: both bring gRPC with them.
    from ..errors import LorebaseError
    from .failures import failure_of

    if not isinstance(error, LorebaseError):
        raise error
    failure = failure_of(error)
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(failure.line, err=True)
    if failure.hint:
        typer.echo(f"  {failure.hint}", err=True)
    return failure.exit_code


if __name__ == "__main__":
    main()
