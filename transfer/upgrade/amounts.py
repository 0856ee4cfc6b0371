"""How many inputs an attempt makes, keeps and holds out. Pure."""

from lorebase.transfer.kit import TransferKit
from lorebase.transfer.synthesis import to_write

from .settings import UpgradeSettings, retry_growth


def held_out_inputs(settings: UpgradeSettings, *, entrusted: bool) -> int:
    """Inputs to keep from training: none for an adapter with an entrusted evaluation set."""
    return 0 if entrusted else settings.choices.evaluation_samples


def wanted_inputs(
    settings: UpgradeSettings, kit: TransferKit, *, attempt: int, entrusted: bool
) -> int:
    """Filtered inputs that an attempt shall add.

    The first attempt wants the client's |D| (bounded by `samples`), as often as the recipe's pool
    says, and the held-out ones; each later one keeps what is carried over and doubles it. Where
    the kit has no discriminator, nobody knows |D|: `samples` are wanted.
    """
    choices = settings.choices
    size = kit.dataset_size if kit.discriminator else choices.samples
    training = min(choices.samples, max(size, settings.min_training_inputs))
    held_out = held_out_inputs(settings, entrusted=entrusted)
    # At most half may be held out, and the gate needs them all.
    pool = settings.recipe_for(kit).pool
    wanted = max(round(training * pool) + held_out, 2 * held_out)
    return wanted * retry_growth(max(1, attempt - 1))


def samples_to_write(
    settings: UpgradeSettings, kit: TransferKit, wanted: int, pass_rate: float | None
) -> int:
    """Inputs to synthesize so that about `wanted` are left after the recipe's filter."""
    return to_write(kit, settings.recipe_for(kit).filter, wanted, pass_rate)
