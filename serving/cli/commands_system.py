"""`lorebase serve`, `status`, `doctor` and `generate`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .exits import EXIT_FAILURE, EXIT_UNAVAILABLE
from .plugins import attribute
from .session import Session, command

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file.", exists=True, dir_okay=False)
]


def register(app: typer.Typer) -> None:
    """Adds this module's commands to the root."""
    command(app, "serve")(serve)
    command(app, "status")(status)
    command(app, "doctor")(doctor)
    command(app, "generate")(generate)


def serve(session: Session, config: ConfigArgument) -> None:
    """Start the cluster that CONFIG describes and serve until interrupted."""
    attribute("lorebase.serving.foreground:serve")(config)


def status(
    session: Session,
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0.0,
            help="Wait so long until gateway and engines answer.",
        ),
    ] = 0.0,
) -> None:
    """Show whether the gateway is healthy, what it serves, and the newest upgrade.

    The exit code is 5 unless it is serving.
    """
    from ..errors import LorebaseError, NotFoundError

    client = session.client
    if wait:
        client.wait_ready(wait)
    health = client.health()
    models: list[Any] = []
    upgrade: Any = None
    if health == "SERVING":
        models = client.list_models()
        try:
            upgrade = client.get_upgrade()
        except LorebaseError as error:
            # No upgrade yet, or a gateway without the background plane: both are fine.
            if not isinstance(error, NotFoundError) and error.reason != "UNIMPLEMENTED":
                raise
    value = {
        "endpoint": session.options.endpoint,
        "health": health,
        "models": models,
        "upgrade": upgrade,
    }
    session.show(value, lambda: _status_view(session, health, models, upgrade))
    if health != "SERVING":
        raise typer.Exit(EXIT_UNAVAILABLE)


def _status_view(session: Session, health: str, models: list[Any], upgrade: Any) -> Any:
    import time

    from rich.console import Group
    from rich.text import Text

    from . import render, render_upgrade

    style = "green" if health == "SERVING" else "red"
    parts: list[Any] = [Text(f"{session.options.endpoint}: {health.lower()}", style=style)]
    if models:
        parts += [Text(), render.models(models)]
    if upgrade is not None:
        parts += [Text(), Text(render_upgrade.headline(upgrade, time.time()))]
    return Group(*parts)


def doctor(
    session: Session,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", exists=True, dir_okay=False, help="Check its ports too."
        ),
    ] = None,
) -> None:
    """Check this machine: Python, packages, CPU, memory, disk, ports. Exit code 1 if one fails."""
    from . import doctor as checks

    settings = attribute("lorebase.serving.config:load_settings")(config) if config else None
    results = checks.run(settings)
    session.show([result.as_dict() for result in results], lambda: checks.view(results))
    if any(result.status == "fail" for result in results):
        raise typer.Exit(EXIT_FAILURE)


def generate(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="adapter, adapter@base, adapter@version or a base."),
    ],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text; - reads it from standard input.")
    ],
    stream: Annotated[bool, typer.Option("--stream", "-s", help="Print as it comes.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Default 128.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0, default: greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends before it; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    r"""Generate text; \n in PROMPT and --stop stands for a line break."""
    from .client import generate_request

    text = sys.stdin.read() if prompt == "-" else _unescape(prompt)
    request = generate_request(
        model,
        text,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=[_unescape(item) for item in stop or ()],
        seed=seed,
    )
    if stream:
        _stream(session, request)
        return
    response = session.client.generate(request)
    if session.as_json:
        session.print_json(response)
        return
    sys.stdout.write(response.text + "\n")
    _say_who(response.served_by, response.usage)


def _stream(session: Session, request: Any) -> None:
    last = None
    for last in session.client.generate_stream(request):
        if session.as_json:
            session.print_json(last, indent=None)
        else:
            sys.stdout.write(last.text)
            sys.stdout.flush()
    if last is not None and not session.as_json:
        sys.stdout.write("\n")
        _say_who(last.served_by, last.usage)


def _say_who(served_by: Any, usage: Any) -> None:
    # On stderr: a pipe gets the text and nothing else.
    who = served_by.base
    if served_by.adapter:
        who = f"{served_by.adapter} version {served_by.adapter_version} on {served_by.base}"
    typer.secho(
        f"[{who}, {usage.prompt_tokens} + {usage.completion_tokens} tokens]", dim=True, err=True
    )


def _unescape(text: str) -> str:
    return text.replace("\\n", "\n")
