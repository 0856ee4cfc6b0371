"""What `lorebase upgrade judge` runs: a tenant judges old and new on its own data."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from lorebase.serving.cli.client import generate_request
from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError
from lorebase.v1 import inference_pb2, upgrade_pb2

from ..kit.command import read_examples
from ..kit.format import FORMATS, TaskFormat
from ..ports import Example
from .gate import Decision, decide
from .policy import GatePolicy
from .verdict import TenantVerdict, judge, load_verdict, save_verdict

PARALLEL = 8
"""Requests in flight."""
MAX_ANSWER_TOKENS = 512


class Client(Protocol):
    """What is needed of `LorebaseClient`."""

    def get_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        """Returns an upgrade; the newest if no id is given."""
        ...

    def promote_upgrade(
        self, upgrade_id: str = "", adapters: Sequence[str] = ()
    ) -> upgrade_pb2.Upgrade:
        """Routes adapters to their shadow versions."""
        ...

    def generate(self, request: inference_pb2.GenerateRequest) -> inference_pb2.GenerateResponse:
        """Generates one completion."""
        ...


def run(
    client: Client,
    adapter: str,
    *,
    data: Path | None = None,
    verdict: Path | None = None,
    out: Path | None = None,
    upgrade_id: str = "",
    format: str = "document",
    shots: int = 5,
    margin: float | None = None,
    looks: int = 1,
    promote: bool = False,
) -> dict[str, Any]:
    """Judges a migration by a tenant's data, or by a verdict that a tenant handed over.

    Args:
        client: connection to the service.
        adapter: whose migration.
        data: the tenant's examples; they are sent as prompts and kept nowhere.
        verdict: file of an earlier judgement, in place of data.
        out: where to write the verdict; no text of the data is in it.
        upgrade_id: empty means the newest.
        format: how inputs and answers are written.
        shots: examples in the few-shot rival's prompt.
        margin: largest tolerated loss of accuracy; None takes the service's, as far as its
            decision shows it.
        looks: verdicts on this migration that are planned in all, this one included. Each gets an
            equal part of the risk: a verdict is a look of its own, beside the service's.
        promote: promote the shadow if the gate says so and it is not promoted yet.

    Returns:
        The gate's decision and what was done, as plain data.

    Raises:
        InvalidArgumentError: bad arguments, data or verdict.
        FailedPreconditionError: no shadow there yet, or the verdict is about other versions.
    """
    if (data is None) == (verdict is None):
        raise InvalidArgumentError("expected either data to judge by or a verdict, not both")
    upgrade = client.get_upgrade(upgrade_id)
    migration = _migration(upgrade, adapter)
    if data is not None:
        if format not in FORMATS:
            raise InvalidArgumentError(
                f"unknown task format {format!r}: expected {' or '.join(sorted(FORMATS))}"
            )
        found = _judge(client, upgrade, migration, read_examples(data), FORMATS[format], shots)
    else:
        assert verdict is not None, "one of the two is given"
        found = load_verdict(verdict)
        _check_about(found, upgrade, migration)
    if out is not None:
        save_verdict(found, out)
    policy = policy_of(migration, margin, looks)
    decision = decide(found.evidence(), policy)
    promoted = promote and decision.verdict == "promote" and migration.state == "rejected"
    if promoted:
        client.promote_upgrade(upgrade.id, [adapter])
    return _report(found, decision, migration.state, promoted) | {"risk": _risk(policy)}


def policy_of(
    migration: upgrade_pb2.Migration, margin: float | None = None, looks: int = 1
) -> GatePolicy:
    """Returns what a tenant's verdict is held to.

    The service's margin and flip budget, where its decision on an entrusted set tells them. A
    label-free decision tells bounds on changed answers, which may be wider: the usual ones stay,
    unless those are even stricter.

    Raises:
        InvalidArgumentError: a margin or a number of looks out of bounds.
    """
    usual, decision = GatePolicy(), migration.decision
    limits: dict[str, Any] = {
        "margin": usual.margin,
        "negative_flip_budget": usual.negative_flip_budget,
    }
    if decision.verdict:
        seen = {"margin": decision.margin, "negative_flip_budget": decision.negative_flip_budget}
        entrusted = decision.evidence == "entrusted"
        limits = {name: seen[name] if entrusted else min(limits[name], seen[name]) for name in seen}
    if margin is not None:
        limits["margin"] = margin
    try:
        return GatePolicy(attempts=looks, **limits)
    except ValueError as error:
        raise InvalidArgumentError(f"no such policy: {error}") from error


def _risk(policy: GatePolicy) -> str:
    return (
        "a second look, beside the service's gate: of versions that are worse by the margin, this "
        f"verdict promotes at most {policy.alpha:.1%}; each further verdict adds as much, unless "
        "all were planned for (`--looks`)"
    )


def _migration(upgrade: upgrade_pb2.Upgrade, adapter: str) -> upgrade_pb2.Migration:
    for migration in upgrade.migrations:
        if migration.adapter == adapter:
            if not migration.shadow_version:
                raise FailedPreconditionError(
                    f"{adapter!r} has no version for {upgrade.to_base!r} yet: it is "
                    f"{migration.state}; wait until it is evaluated",
                    reason="NO_SHADOW",
                )
            return migration
    raise FailedPreconditionError(f"upgrade {upgrade.id} does not migrate {adapter!r}")


def _judge(
    client: Client,
    upgrade: upgrade_pb2.Upgrade,
    migration: upgrade_pb2.Migration,
    items: Sequence[Example],
    format: TaskFormat,
    shots: int,
) -> TenantVerdict:
    # A token is at least a byte; longer answers than the longest right one are wrong anyway.
    longest = max((len(item.target.encode()) for item in items), default=0)
    max_tokens = min(MAX_ANSWER_TOKENS, longest + 8)

    def ask(model: str, prompts: Sequence[str]) -> list[str]:
        def one(prompt: str) -> str:
            request = generate_request(
                model, prompt, max_tokens=max_tokens, temperature=0.0, stop=(format.stop,)
            )
            return client.generate(request).text

        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(one, prompts))

    return judge(
        ask,
        items,
        adapter=migration.adapter,
        source_version=migration.source_version,
        shadow_version=migration.shadow_version,
        next_base=upgrade.to_base,
        format=format,
        shots=shots,
    )


def _check_about(
    verdict: TenantVerdict, upgrade: upgrade_pb2.Upgrade, migration: upgrade_pb2.Migration
) -> None:
    judged = (
        verdict.adapter,
        verdict.source_version,
        verdict.shadow_version,
        verdict.next_base,
    )
    wanted = (
        migration.adapter,
        migration.source_version,
        migration.shadow_version,
        upgrade.to_base,
    )
    if judged != wanted:
        raise FailedPreconditionError(
            f"the verdict is about {', '.join(judged)}; this migration is {', '.join(wanted)}: "
            "judge again",
            reason="VERDICT_STALE",
        )


def _report(
    verdict: TenantVerdict, decision: Decision, state: str, promoted: bool
) -> dict[str, Any]:
    wanted = (
        "verdict", "n", "source_score", "shadow_score", "bare_score", "few_shot_score",
        "difference", "interval_low", "interval_high", "margin", "negative_flip_rate", "power",
        "reason",
    )  # fmt: skip
    values = decision.as_dict()
    return {
        "adapter": verdict.adapter,
        "source_version": verdict.source_version,
        "shadow_version": verdict.shadow_version,
        "state": state,
        **{
            name: round(values[name], 4) if isinstance(values[name], float) else values[name]
            for name in wanted
        },
        "promoted_now": promoted,
    }
