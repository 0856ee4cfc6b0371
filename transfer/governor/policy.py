"""How much background work may run, from what the foreground feels. Pure.

Shrinks at once when the foreground waits, grows one step at a time after a calm spell, so that a
load near the edge does not make it swing. Capacity falls to the floor under saturation and always
comes back when the foreground is idle.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """One look at the cluster."""

    at: float
    """Seconds on a monotonic clock."""
    waiting_foreground: int
    """Client requests that wait for a slot, over all engines."""
    running_foreground: int
    """Client requests in the engines, over all engines."""
    probe_s: float
    """Slowest answer to the stats call, in seconds: rises when an engine's event loop is busy."""
    cpu_free: float
    """Share of the CPU that is idle or used by yielding (SCHED_IDLE, nice) work, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorPolicy:
    """Limits and thresholds. The defaults suit a node that also serves."""

    max_workers: int = 1
    """Training processes at once; they hold a model each, so memory is the bound."""
    max_batches: int = 2
    """Generation batches in the engines at once."""
    max_batch_size: int = 64
    """Prompts per batch; the engines' background cap bounds what really runs."""
    min_batch_size: int = 8
    """Prompts per batch when the capacity is smallest; smaller batches revoke faster."""
    slow_probe_s: float = 2.0
    """An answer slower than this means that the engine's loop is saturated."""
    calm_probe_s: float = 1.0
    """An answer faster than this is calm; between the two nothing changes."""
    patience_s: float = 1.0
    """Pressure must last this long before capacity shrinks: one waiting request is no load."""
    calm_s: float = 2.0
    """Calm must last this long before capacity grows by one level."""
    max_cooldown_s: float = 30.0
    """Each shrink doubles the calm that growth needs, up to this: load that the background itself
    causes would otherwise make it swing for ever. An idle foreground needs `calm_s` only."""
    min_cpu_free: float = 0.0
    """Below this share of free CPU training does not grow. 0: SCHED_IDLE workers yield anyway."""

    def __post_init__(self) -> None:
        """Checks the limits."""
        if self.max_workers < 1 or self.max_batches < 1:
            raise ValueError(
                f"got max_workers={self.max_workers}, max_batches={self.max_batches}; both must "
                "be at least 1, or no upgrade would ever end"
            )
        if not 1 <= self.min_batch_size <= self.max_batch_size:
            raise ValueError(
                f"got min_batch_size={self.min_batch_size}, max_batch_size={self.max_batch_size}; "
                "expected 1 <= min <= max"
            )
        if not 0 < self.calm_probe_s <= self.slow_probe_s:
            raise ValueError(
                f"got calm_probe_s={self.calm_probe_s}, slow_probe_s={self.slow_probe_s}; expected "
                "0 < calm <= slow, the gap is the hysteresis"
            )
        if not 0 < self.calm_s <= self.max_cooldown_s:
            raise ValueError(
                f"got calm_s={self.calm_s}, max_cooldown_s={self.max_cooldown_s}; expected "
                "0 < calm_s <= max_cooldown_s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What may run now."""

    workers: int
    """Training leases."""
    batches: int
    """Generation leases."""
    batch_size: int
    """Prompts per generation batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorState:
    """What the policy remembers between samples."""

    level: int
    """0 is nothing; `top_level` is everything."""
    cooldown_s: float
    """Calm that the next growth needs while the foreground runs."""
    pressed_since: float | None = None
    calm_since: float | None = None


NOTHING = Capacity(workers=0, batches=0, batch_size=1)


def top_level(policy: GovernorPolicy) -> int:
    """Returns the level at which everything is granted."""
    return max(policy.max_workers, policy.max_batches)


def start(policy: GovernorPolicy) -> GovernorState:
    """Returns the state before the first sample: nothing granted until the load is known."""
    return GovernorState(level=0, cooldown_s=policy.calm_s)


def step(state: GovernorState, sample: LoadSample, policy: GovernorPolicy) -> GovernorState:
    """Returns the state after one sample.

    Pressure that lasts `patience_s` halves the level with every sample (1 becomes 0). Calm that
    lasts the cooldown adds one level and starts a new spell. A sample that is neither restarts
    both spells: the gap between the thresholds is the hysteresis.
    """
    if _pressed(sample, policy):
        since = sample.at if state.pressed_since is None else state.pressed_since
        pressed = replace(state, pressed_since=since, calm_since=None)
        if sample.at - since < policy.patience_s or state.level == 0:
            return pressed
        cooldown = min(policy.max_cooldown_s, state.cooldown_s * 2)
        return replace(pressed, level=state.level // 2, cooldown_s=cooldown)
    if not _calm(sample, policy):
        return replace(state, pressed_since=None, calm_since=None)
    since = sample.at if state.calm_since is None else state.calm_since
    calm = replace(state, pressed_since=None, calm_since=since)
    spell = sample.at - since
    if state.level == top_level(policy):
        forgiven = spell >= 4 * state.cooldown_s
        return replace(calm, cooldown_s=policy.calm_s) if forgiven else calm
    needed = policy.calm_s if sample.running_foreground == 0 else state.cooldown_s
    if spell >= needed:
        return replace(calm, level=state.level + 1, calm_since=sample.at)
    return calm


def _pressed(sample: LoadSample, policy: GovernorPolicy) -> bool:
    return sample.waiting_foreground > 0 or sample.probe_s > policy.slow_probe_s


def _calm(sample: LoadSample, policy: GovernorPolicy) -> bool:
    return (
        sample.waiting_foreground == 0
        and sample.probe_s <= policy.calm_probe_s
        and (sample.running_foreground == 0 or sample.cpu_free >= policy.min_cpu_free)
    )


def capacity(state: GovernorState, policy: GovernorPolicy) -> Capacity:
    """Returns what a level grants: both kinds of lease grow with it, up to their maximum."""
    if state.level <= 0:
        return NOTHING
    share = state.level / top_level(policy)
    size = round(policy.max_batch_size * share)
    return Capacity(
        workers=min(policy.max_workers, state.level),
        batches=min(policy.max_batches, state.level),
        batch_size=max(policy.min_batch_size, min(policy.max_batch_size, size)),
    )
