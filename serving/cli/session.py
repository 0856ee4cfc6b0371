"""What every command shares: endpoint, output format, time limit, console and client."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, cast

import typer

from . import DEFAULT_ENDPOINT
from .exits import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

    from .client import LorebaseClient

P = ParamSpec("P")

ENDPOINT_VARIABLE = "LOREBASE_ENDPOINT"
PIPE_COLUMNS = 240
CA_VARIABLE = "LOREBASE_CA"


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="HOST:PORT",
        help=f"Gateway's gRPC address (env {ENDPOINT_VARIABLE}, default {DEFAULT_ENDPOINT}).",
    ),
]
OutputOption = Annotated[
    Output | None, typer.Option("--output", "-o", help="Output format (default table).")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0.001, metavar="SECONDS", help="Deadline of each call (default 30)."
    ),
]

CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help=f"Connect with TLS and trust this PEM certificate (env {CA_VARIABLE}).",
    ),
]
_SHARED: dict[str, Any] = {
    "endpoint": EndpointOption,
    "output": OutputOption,
    "timeout": TimeoutOption,
    "ca": CaOption,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that may stand before or after the command's name; after wins."""

    endpoint: str = DEFAULT_ENDPOINT
    output: Output = Output.TABLE
    timeout_s: float = 30.0
    ca: Path | None = None
    """PEM file of the certificates to trust; None connects in clear text."""

    def updated(
        self,
        *,
        endpoint: str | None = None,
        output: Output | None = None,
        timeout: float | None = None,
        ca: Path | None = None,
    ) -> "Options":
        """Returns a copy with what is not None replaced."""
        return Options(
            endpoint=endpoint or self.endpoint,
            output=output or self.output,
            timeout_s=timeout or self.timeout_s,
            ca=ca or self.ca,
        )


def options_from(environment: Mapping[str, str] = os.environ) -> Options:
    """Returns the defaults, with endpoint and certificate from the environment if it names them."""
    ca = environment.get(CA_VARIABLE)
    return Options(
        endpoint=environment.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT,
        ca=Path(ca) if ca else None,
    )


class Session:
    """One run of one command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._client: LorebaseClient | None = None

    @property
    def as_json(self) -> bool:
        """Whether the result is to be printed as JSON."""
        return self.options.output is Output.JSON

    @property
    def client(self) -> "LorebaseClient":
        """The connection, opened at first use."""
        if self._client is None:
            # --help and local commands must not pay for importing the stubs.
            from .client import LorebaseClient, tls_credentials

            options = self.options
            self._client = LorebaseClient(
                options.endpoint,
                timeout_s=options.timeout_s,
                credentials=None if options.ca is None else tls_credentials(options.ca),
            )
        return self._client

    @functools.cached_property
    def console(self) -> "Console":
        """Standard output; off a terminal wide enough that no table folds its columns."""
        from rich.console import Console

        if sys.stdout.isatty() or "COLUMNS" in os.environ:
            return Console()
        return Console(width=PIPE_COLUMNS)

    def close(self) -> None:
        """Closes the connection if there is one."""
        if self._client is not None:
            self._client.close()

    def show(self, value: Any, render: "Callable[[], RenderableType]") -> None:
        """Prints `value` as JSON or what `render` makes of it, as the user chose.

        Args:
            value: protobuf message, a list or dict of them, or plain data.
            render: called only for the table format.
        """
        if self.as_json:
            self.print_json(value)
        else:
            self.console.print(render())

    def print_json(self, value: Any, *, indent: int | None = 2) -> None:
        """Prints JSON to standard output; protobuf fields are named as in the proto files."""
        sys.stdout.write(json.dumps(plain(value), indent=indent, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def confirm(self, question: str, *, yes: bool) -> None:
        """Asks before something that can't be undone; off a terminal `--yes` must say so.

        Raises:
            typer.BadParameter: not a terminal and no --yes.
            typer.Abort: the user said no.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"{question} This can't be undone: confirm it with --yes.")
        typer.confirm(question, abort=True)


def plain(value: Any) -> Any:
    """Turns protobuf messages, alone or in lists and dicts, into JSON data."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "DESCRIPTOR"):
        return _message_to_dict(value)
    return value


def _message_to_dict(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    # Fields without presence are always printed, so scripts need no defaults.
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


Command = Callable[Concatenate[Session, P], None]


def command(app: typer.Typer, name: str) -> Callable[[Command[P]], Command[P]]:
    """Registers a function as a command that also takes the shared options.

    The function's first parameter is the session, made for the run and closed after it; the rest
    are its own arguments and options, in Typer's notation.
    """

    def register(function: Command[P]) -> Command[P]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **arguments: Any) -> None:
            shared = {name: arguments.pop(name) for name in _SHARED}
            options = cast(Options | None, ctx.obj) or options_from()
            session = Session(options.updated(**shared))
            try:
                cast(Callable[..., None], function)(session, **arguments)
            except KeyboardInterrupt:
                raise typer.Exit(EXIT_INTERRUPTED) from None
            finally:
                session.close()

        own = list(inspect.signature(function).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", keyword, annotation=typer.Context),
            *(parameter.replace(kind=keyword) for parameter in own),
            *(
                inspect.Parameter(name, keyword, default=None, annotation=annotation)
                for name, annotation in _SHARED.items()
            ),
        ]
        # Typer reads both.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        app.command(name)(run)
        return function

    return register
