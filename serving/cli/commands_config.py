"""`lorebase config ...`: the configuration's schema and effective values."""

from pathlib import Path
from typing import Annotated

import typer

from .plugins import attribute
from .session import Session, command

app = typer.Typer(help="Check and explain configuration files.", no_args_is_help=True)


@command(app, "schema")
def schema(session: Session) -> None:
    """Print the JSON schema of the configuration file, for editors and checks."""
    session.print_json(attribute("lorebase.serving.config:json_schema")())


@command(app, "show")
def show(
    session: Session,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file.", exists=True, dir_okay=False)
    ],
) -> None:
    """Print the effective configuration: file, LOREBASE_* overrides and defaults."""
    import yaml

    settings = attribute("lorebase.serving.config:load_settings")(config)
    values = settings.model_dump(mode="json")
    session.show(values, lambda: yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
