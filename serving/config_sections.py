"""The sections of the configuration file; config.py reads and joins them.

Sizes in bytes, times in seconds, lengths in tokens unless a field says otherwise.
"""

from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .errors import InvalidArgumentError
from .imports import load

_ID = r"^[a-z0-9][a-z0-9._-]{0,62}$"  # the catalog has the same rule (catalog/names.py)
_IMPORT = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


# pydantic-settings has no validation context, so the file's folder comes in through this one.
config_folder: ContextVar[Path | None] = ContextVar("lorebase_config_folder", default=None)


def _resolve(path: Path) -> Path:
    return ((config_folder.get() or Path.cwd()) / path.expanduser()).resolve()


ConfigPath = Annotated[Path, AfterValidator(_resolve)]
"""A path that is relative to the configuration file's folder, made absolute."""

ImportString = Annotated[str, Field(pattern=_IMPORT)]
"""`package.module:attribute`."""


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class ClusterSection(Section):
    """Where Ray runs and where this instance keeps its files."""

    address: str = "local"
    """`local` starts Ray in this process tree; `auto` or an address joins a running cluster."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local cluster; None takes what the machine has."""
    state_dir: ConfigPath = Path("lorebase-state")
    """Catalog, artifacts, metrics and the lock of this instance."""
    object_store_bytes: int = Field(default=128 << 20, ge=80 << 20)
    """Bound of Ray's shared memory. Requests travel by value, so it stays almost empty."""


class CatalogSection(Section):
    """The catalog: the truth about bases, adapters, routes and upgrades."""

    url: str | None = None
    """SQLAlchemy URL; None is SQLite in the state directory. Several nodes need Postgres."""


class ArtifactsSection(Section):
    """The content-addressed store of adapters, kits and evaluation sets."""

    root: ConfigPath | None = None
    """None is `artifacts` in the state directory. Several nodes need a shared file system."""


class BaseEntry(Section):
    """A base model that this instance may serve."""

    id: str = Field(pattern=_ID)
    path: ConfigPath
    """Directory with config.json, tokenizer.json and safetensors weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` takes the engine section's."""


class TlsSection(Section):
    """Server certificate for gRPC and HTTP."""

    cert: ConfigPath
    """PEM file with the certificate chain."""
    key: ConfigPath
    """PEM file with the private key."""


class ServingSection(Section):
    """The request plane: gateways, their ports and bounds."""

    base: str | None = None
    """Current base of a new catalog; None is the first of `bases`. A catalog that has a current
    base keeps it: after an upgrade the configuration need not change."""
    gateways: int = Field(default=2, ge=1, le=64)
    """Gateway replicas. They share the ports below; two or more survive the loss of one."""
    host: str = "127.0.0.1"
    """Address to bind. The default admits this machine only."""
    grpc_port: int = Field(default=19000, ge=0, le=65535)
    """0 takes a free port at start."""
    http_port: int = Field(default=18000, ge=0, le=65535)
    """0 takes a free port at start."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests that one gateway has at the engines at a time."""
    max_queue: int = Field(default=1024, ge=0)
    """Requests that one gateway lets wait; the next one gets RESOURCE_EXHAUSTED."""
    max_request_s: float = Field(default=600.0, gt=0, le=86_400)
    """Bound of one request, queue included, also where the client sets no deadline."""
    stream_wait_s: float = Field(default=0.04, ge=0, le=1)
    """Least time between two messages of a stream: tokens made meanwhile travel together. The
    first token never waits. A message costs a millisecond of CPU, whatever the model's size."""
    drain_s: float = Field(default=30.0, ge=0, le=600)
    """Seconds that requests in flight get to finish when a gateway stops."""
    resume_attempts: int = Field(default=30, ge=0, le=100)
    """Resubmissions of one request whose engine died. They wait 0.1 s to 1 s each, which covers
    the ~20 s that a single engine needs to come back."""
    publish_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds that a change of routes may take to reach all gateways."""
    tls: TlsSection | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServingSection":
        # Gateways share ports with SO_REUSEPORT: the kernel would let both servers have it, and
        # give each half of the other's clients.
        if self.grpc_port == self.http_port != 0:
            raise ValueError(f"grpc_port and http_port are both {self.grpc_port}, expected two")
        return self


class EngineSection(Section):
    """How every engine runs; engine/settings.py explains each field and checks their sum."""

    replicas: int = Field(default=1, ge=1, le=64)
    """Engine replicas per base."""
    replica_cpus: float = Field(default=0.0, ge=0)
    """CPUs that Ray reserves for one replica. 0: engines share what the machine has."""
    replica_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for one replica."""
    backend: Literal["async", "inprocess"] = "async"
    """`async` is vLLM's AsyncLLM; `inprocess` steps the engine on a thread: less memory, faster
    start, for tests."""
    scheduler: Literal["preempting", "priority"] = "preempting"
    """`preempting` takes slots from background work when a client waits."""
    lora_kernels: Literal["auto", "lorebase", "stock"] = "auto"
    """Whose LoRA code serves: ours, or vLLM's own. `auto`: ours on the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Used for bases that don't name one themselves."""
    max_model_len: int = 2048
    """Longest prompt plus answer, in tokens."""
    max_num_seqs: int = 32
    """Requests in one step."""
    max_batched_tokens: int = 2048
    """Tokens in one step."""
    max_loras: int | None = None
    """Distinct adapters in one step; None derives it from `adapter_slot_bytes`."""
    adapter_slot_bytes: int = 1 << 30
    """Memory for the adapters of one step."""
    max_cpu_loras: int = 4096
    """Adapter versions kept loaded, at most."""
    adapter_host_bytes: int = 2 << 30
    """Memory for the adapter versions kept loaded."""
    max_lora_rank: int = 64
    """Largest adapter rank."""
    kv_cache_bytes: int | None = None
    """None: 256 MiB on CPU; on GPU what profiling finds free."""
    block_size: int | None = None
    """Tokens per KV block; None chooses by device."""
    background_cap: int = 8
    """Background requests inside the engine while no client waits for one."""
    background_cap_busy: int = 2
    """The same while client requests are in flight."""
    background_queue: int = 4096
    """Background requests that may wait outside the engine."""
    stream_interval: int = 1
    """Tokens per streamed chunk, after the first."""
    adapter_wait_s: float = 10.0
    """Wait for a place when all versions that fit are in use."""
    adapter_load_timeout_s: float = 60.0
    """Bound of loading one version."""
    threads: int = 1
    """Compute threads on CPU."""
    seed: int = 0
    """Seed of sampling for requests that bring none."""


class GatewaySection(Section):
    """What is plugged into the gateways, as import strings.

    The request path never imports the background path; the two meet here.
    """

    extra_servicers: tuple[ImportString, ...] = ("lorebase.transfer.upgrade.servicer:install",)
    """`install(server, context)` functions that add gRPC services."""
    kit_check: ImportString | None = "lorebase.transfer.kit:check_kit"
    """`check(directory, base_shapes, limits)` for uploaded kits; None refuses kits."""


class LimitsSection(Section):
    """Sizes beyond which a request or an upload is refused."""

    max_prompt_chars: int = Field(default=200_000, ge=1)
    max_new_tokens: int = Field(default=4096, ge=1)
    max_adapter_rank: int = Field(default=64, ge=1)
    max_artifact_bytes: int = Field(default=1 << 30, ge=1)
    """Of one upload, unpacked."""
    max_evaluation_examples: int = Field(default=10_000, ge=1)


class UpgradeSection(Section):
    """Defaults of upgrades; the transfer package reads them."""

    margin: float = Field(default=0.05, gt=0, lt=1)
    """How much worse than the source the shadow may be, in accuracy (0 to 1)."""
    label_free_margin: float | None = Field(default=None, gt=0, lt=1)
    """Share of answers that may differ from the source's where true answers are unknown. None
    takes the margin: the only bound that holds whatever the differences are."""
    confidence: float = Field(default=0.96, gt=0.5, lt=1)
    """Of the gate's two-sided intervals: an adapter worse by the margin is promoted with a
    probability of at most (1 - confidence) / 2, over all attempts."""
    negative_flip_budget: float = Field(default=0.05, ge=0, lt=1)
    """Share of inputs that the source had right and the shadow may have wrong."""
    min_examples: int = Field(default=100, ge=1)
    """Fewer paired examples are inconclusive, whatever they say."""
    max_attempts: int = Field(default=2, ge=1, le=10)
    """Attempts at one migration, the first included; each later one uses more samples."""
    samples: int = Field(default=250, ge=1)
    """Synthetic inputs to distil on: |D| of the paper's experiments."""
    evaluation_samples: int = Field(default=200, ge=1)
    """Further synthetic inputs, held out for the gate of label-free adapters."""
    gather_rounds: int = Field(default=8, ge=1, le=8)
    """Rounds of writing and filtering until enough inputs have passed; each draws a bounded number.
    Fewer make an upgrade shorter where the filter lets little through."""
    recipe: Literal["lorebase", "lorebase-without-kit", "trans-lora", "titok"] = "lorebase"
    """How adapters are transferred: whose inputs, which filter, which losses, how long. An adapter
    whose kit has no discriminator migrates by `lorebase-without-kit`, unless this needs none."""
    recipe_options: dict[str, Any] = Field(default_factory=dict)
    """Single choices of the recipe changed, nested as in `transfer.recipes.Recipe`, for example
    `{pool: 2, selection: {by: confidence}}` or `{lora: {initialisation: eva}}`."""
    recipe_check: ImportString | None = "lorebase.transfer.upgrade.settings:configured_recipe"
    """Called with this section if it has recipe options; raises where they make no recipe."""
    steps: int | None = Field(default=None, ge=0)
    """Training steps of a distillation instead of the recipe's; 0 means 20 epochs."""
    batch_size: int | None = Field(default=None, ge=1)
    """Instead of the recipe's."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Instead of the recipe's, which is for bases of 2 to 13 billion parameters."""
    seed: int = 0
    workers: int = Field(default=1, ge=1, le=64)
    """Background training processes."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads of one training process."""
    generation_batch: int = Field(default=16, ge=1)
    """Background prompts in flight at one engine."""
    keep_checkpoints: bool = False
    """Keep intermediate training states after a migration has ended."""

    @model_validator(mode="after")
    def _options_make_a_recipe(self) -> "UpgradeSection":
        if self.recipe_options and self.recipe_check is not None:
            try:
                load(self.recipe_check)(self)
            except InvalidArgumentError as error:
                raise ValueError(error.message) from error
        return self
