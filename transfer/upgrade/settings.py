"""Settings of upgrades; what users may choose comes from the configuration's `upgrade` section."""

from dataclasses import dataclass, field
from typing import Any

from lorebase.serving.config_sections import UpgradeSection
from lorebase.transfer.governor import GovernorPolicy
from lorebase.transfer.kit import TransferKit
from lorebase.transfer.recipes import WITHOUT_KIT, Recipe, recipe_named
from lorebase.transfer.recipes.options import with_options

MAX_RETRY_GROWTH = 8
"""No attempt adds more than this many times the first one's inputs, or trains for more than this
many times its steps: what eight times as much does not mend, more of it won't."""


def retry_growth(attempt: int) -> int:
    """Returns how many times the first attempt's inputs and steps an attempt uses: 1, 2, 4, 8, 8.

    Both grow alike: more inputs under the same number of steps would only be seen less often.

    Args:
        attempt: counted from 1.
    """
    return min(MAX_RETRY_GROWTH, 1 << (attempt - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSettings:
    """How migrations are run. Times in seconds."""

    choices: UpgradeSection = field(default_factory=UpgradeSection)
    """Margin, samples, recipe and attempts, as configured."""
    max_stage_failures: int = 3
    """Infrastructure failures of one stage before its migration fails; resume starts over."""
    max_stage_starts: int = 6
    """Starts of one stage, crashes of the controller included, before its migration fails: a stage
    that kills its process must not be tried for ever."""
    max_engine_failures: int = 3
    """Failed starts of the next base's engine before the upgrade fails."""
    retry_wait_s: float = 1.0
    """Wait before the first retry of a stage; doubles each time, up to a minute."""
    max_parallel_migrations: int = 4
    """Migrations that work at once; leases bound what really runs."""
    min_training_inputs: int = 16
    """Fewer usable inputs than this starve the attempt. A starved attempt never reaches the gate,
    so this only guards against training on next to nothing; the gate judges what came of it."""
    max_evaluation_inputs: int = 500
    """Items of an entrusted evaluation set that are used, drawn by seed."""
    ack_timeout_s: float = 5.0
    """Wait for gateways to acknowledge a route table; a slower one gets it later by itself."""
    drain_timeout_s: float = 60.0
    """Wait for requests in flight before an old engine is retired."""
    poll_s: float = 0.5
    """How often the controller reads the catalog."""
    governor_tick_s: float = 0.5
    """How often the governor looks at the load."""
    idle_worker_s: float = 20.0
    """Idle workers are stopped after this time, to free their memory."""
    garbage_every_s: float = 3600.0
    """How often the artifact store is swept."""
    garbage_age_s: float = 86_400.0
    """Artifacts that nothing names go when they are this old; an upload is named within minutes."""
    carry_kits: bool = True
    """Whether the worker that trains a shadow also teaches the next base the kit's discriminator,
    so that the adapter can migrate once more without its data; some percent of the training."""
    progress_step: float = 0.1
    """Progress within a stage is written to the catalog in steps of this size."""
    governor: GovernorPolicy = field(default_factory=GovernorPolicy)
    """Limits and thresholds of background work."""

    def __post_init__(self) -> None:
        """Checks what would make an upgrade endless or pointless."""
        for name in (
            "max_stage_failures",
            "max_stage_starts",
            "max_engine_failures",
            "max_parallel_migrations",
            "min_training_inputs",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name}={getattr(self, name)}, expected at least 1")

    @property
    def recipe(self) -> Recipe:
        """The recipe, with what the configuration changes about it."""
        return configured_recipe(self.choices)

    def recipe_for(self, kit: TransferKit) -> Recipe:
        """Returns the recipe of one migration: the configured one, if the kit has what it takes."""
        recipe = self.recipe
        if kit.discriminator or not recipe.filter.discriminator:
            return recipe
        return _without_kit(self.choices)

    @property
    def max_attempts(self) -> int:
        """Attempts of a migration before a gate's `retry` becomes a rejection."""
        return self.choices.max_attempts


PAPER_EPOCHS = 20.0
"""What `steps: 0` asks for."""


def configured_recipe(choices: UpgradeSection) -> Recipe:
    """Returns the recipe that a configuration names, with its own figures and options.

    Raises:
        InvalidArgumentError: options that make no recipe.
    """
    recipe = with_options(recipe_named(choices.recipe), choices.recipe_options)
    return recipe.trained(**_figures(choices))


def _without_kit(choices: UpgradeSection) -> Recipe:
    """Returns the recipe of an adapter without a discriminator.

    What stands in for the discriminator stays; the other options count here, too.
    """
    options = {
        name: value
        for name, value in choices.recipe_options.items()
        if name not in ("filter", "pool", "selection")
    }
    return with_options(WITHOUT_KIT, options).trained(**_figures(choices))


def _figures(choices: UpgradeSection) -> dict[str, Any]:
    """Returns what a configuration says of the training."""
    changes: dict[str, Any] = {
        name: value
        for name in ("batch_size", "learning_rate")
        if (value := getattr(choices, name)) is not None
    }
    if choices.steps == 0:
        changes["epochs"] = PAPER_EPOCHS
    elif choices.steps is not None:
        changes["steps"] = choices.steps
    return changes


MAX_BATCHES = 2
"""Generation batches at once: one for each base."""
CORES_PER_BATCH = 2
"""A generation batch keeps its engine stepping, on a CPU one core; the other serves clients."""


def settings_from(section: UpgradeSection, cores: int) -> UpgradeSettings:
    """Returns the settings of a configuration's `upgrade` section.

    Args:
        section: the configuration.
        cores: CPU cores that this node may use.
    """
    return UpgradeSettings(
        choices=section,
        max_parallel_migrations=2 + 2 * section.workers,
        governor=GovernorPolicy(
            max_workers=section.workers,
            max_batches=max(1, min(MAX_BATCHES, cores // CORES_PER_BATCH)),
            max_batch_size=section.generation_batch,
            min_batch_size=min(4, section.generation_batch),
        ),
    )
