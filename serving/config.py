"""One YAML file for the whole system, checked at the edge.

Order of precedence: `LOREBASE_*` environment variables (`__` for nesting, for example
`LOREBASE_SERVING__GRPC_PORT=6000`), then the file, then the defaults of config_sections.py.
Unknown keys are errors. Relative paths are relative to the file's folder, so a configuration and
its weights can be moved together.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .config_sections import (
    ArtifactsSection,
    BaseEntry,
    CatalogSection,
    ClusterSection,
    EngineSection,
    GatewaySection,
    ImportString,
    LimitsSection,
    ServingSection,
    UpgradeSection,
    config_folder,
)
from .engine.settings import EngineSettings
from .errors import InvalidArgumentError, NotFoundError

_NOT_THE_ENGINES = {"replicas", "replica_cpus", "replica_gpus"}
"""Fields of the engine section about its deployment, not about one engine."""


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="LOREBASE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    # A factory: the default state directory depends on the file's folder.
    cluster: ClusterSection = Field(default_factory=lambda: ClusterSection())
    catalog: CatalogSection = CatalogSection()
    artifacts: ArtifactsSection = ArtifactsSection()
    bases: tuple[BaseEntry, ...] = Field(min_length=1)
    serving: ServingSection = ServingSection()
    engine: EngineSection = EngineSection()
    gateway: GatewaySection = GatewaySection()
    limits: LimitsSection = LimitsSection()
    upgrade: UpgradeSection = UpgradeSection()
    background_plugin: ImportString | None = "lorebase.transfer.ray_controller:start"
    """`start(settings)`, called once serving is up; None runs no background plane."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file; the file's content comes in as init arguments."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Settings":
        ids = [base.id for base in self.bases]
        twice = sorted({base_id for base_id in ids if ids.count(base_id) > 1})
        if twice:
            raise ValueError(f"bases: id {', '.join(twice)} given more than once")
        if self.serving.base is not None and self.serving.base not in ids:
            raise ValueError(
                f"serving.base: got {self.serving.base!r}, expected one of {', '.join(ids)}"
            )
        if self.limits.max_adapter_rank > self.engine.max_lora_rank:
            raise ValueError(
                f"limits.max_adapter_rank is {self.limits.max_adapter_rank}, but engines take "
                f"ranks up to engine.max_lora_rank = {self.engine.max_lora_rank}"
            )
        try:
            for base_id in ids:
                self.engine_settings(base_id)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def catalog_url(self) -> str:
        """SQLAlchemy URL of the catalog."""
        return self.catalog.url or f"sqlite:///{self.cluster.state_dir / 'catalog.db'}"

    @property
    def artifact_root(self) -> Path:
        """Directory of the artifact store."""
        return self.artifacts.root or self.cluster.state_dir / "artifacts"

    @property
    def metrics_dir(self) -> Path:
        """Directory of prometheus-client's multiprocess files."""
        return self.cluster.state_dir / "metrics"

    def base_entry(self, base_id: str) -> BaseEntry:
        """Returns the configured base of that id.

        Raises:
            NotFoundError: no base of that id in the configuration.
        """
        for entry in self.bases:
            if entry.id == base_id:
                return entry
        raise NotFoundError(
            f"base {base_id!r} is not in the configuration (bases: "
            f"{', '.join(entry.id for entry in self.bases)}); add it under `bases` and restart",
            reason="BASE_NOT_FOUND",
        )

    def engine_settings(self, base_id: str) -> EngineSettings:
        """Returns how to run the engine of one base.

        Raises:
            NotFoundError: no base of that id in the configuration.
        """
        base = self.base_entry(base_id)
        values = self.engine.model_dump(exclude=_NOT_THE_ENGINES)
        values["cpu_threads"] = values.pop("threads")
        if base.dtype != "auto":
            values["dtype"] = base.dtype
        return EngineSettings(base_id=base_id, model_path=str(base.path), **values)


def load_settings(path: str | Path) -> Settings:
    """Reads and checks a configuration file, with the environment's overrides.

    Raises:
        NotFoundError: no such file.
        InvalidArgumentError: not YAML, an unknown key or a bad value; the message names each.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(f"can't read {path} as YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InvalidArgumentError(
            f"{path}: got a YAML {type(data).__name__}, expected a mapping of sections"
        )
    return settings_of(data, folder=path.resolve().parent)


def settings_of(data: dict[str, Any], *, folder: Path) -> Settings:
    """Checks configuration data; relative paths are relative to `folder`.

    Raises:
        InvalidArgumentError: an unknown key or a bad value; the message names each.
    """
    token = config_folder.set(folder.resolve())
    try:
        return Settings(**data)
    except ValidationError as error:
        lines = [f"  {_where(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise InvalidArgumentError(
            "the configuration has errors:\n" + "\n".join(lines), reason="INVALID_CONFIG"
        ) from error
    finally:
        config_folder.reset(token)


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "configuration"


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of the configuration file, for editors and checks."""
    schema = Settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "lorebase configuration"
    return schema
