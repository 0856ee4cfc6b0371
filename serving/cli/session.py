"""What every command shares: endpoint, output format, time limit, console and client."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, cast

import typer

from .exits import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

    from .client import LorebaseClient

P = ParamSpec("P")

ENDPOINT_VARIABLE = "LOREBASE_ENDPOINT"
DEFAULT_ENDPOINT = "127.0.0.1:19000"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that may stand before or after the command's name; after wins."""

    endpoint: str = DEFAULT_ENDPOINT
    output: Output = Output.TABLE
    timeout_s: float = 30.0

    def updated(
        self, endpoint: str | None, output: Output | None, timeout_s: float | None
    ) -> "Options":
        """Returns a copy with what is not None replaced."""
        return Options(
            endpoint=endpoint or self.endpoint,
            output=output or self.output,
            timeout_s=timeout_s or self.timeout_s,
        )


def options_from(environment: Mapping[str, str] = os.environ) -> Options:
    """Returns the defaults, with the endpoint from the environment if it names one."""
    return Options(endpoint=environment.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT)


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
            from .client import LorebaseClient

            self._client = LorebaseClient(self.options.endpoint, timeout_s=self.options.timeout_s)
        return self._client

    @functools.cached_property
    def console(self) -> "Console":
        """Standard output."""
        from rich.console import Console

        return Console()

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
            shared = [arguments.pop(key) for key in ("endpoint", "output", "timeout")]
            options = cast(Options | None, ctx.obj) or options_from()
            session = Session(options.updated(*shared))
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
            inspect.Parameter("endpoint", keyword, default=None, annotation=EndpointOption),
            inspect.Parameter("output", keyword, default=None, annotation=OutputOption),
            inspect.Parameter("timeout", keyword, default=None, annotation=TimeoutOption),
        ]
        # Typer reads both.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        app.command(name)(run)
        return function

    return register
