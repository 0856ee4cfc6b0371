"""Every adapter gets a path or a reason; nothing is skipped."""

from typing import Any

import pytest

from lorebase.serving.catalog.records import Adapter, AdapterVersion
from lorebase.transfer.kit import DOCUMENT, TransferKit
from lorebase.transfer.ports import Example
from lorebase.transfer.upgrade.plan import AdapterFacts, plan_adapter


def facts(
    *,
    base_id: str = "old",
    peft_type: str = "LORA",
    kit_base: str | None = "old",
    kit_problem: str = "none was imported",
    discriminator: bool = True,
    evaluation: str | None = None,
) -> AdapterFacts:
    kit = None
    if kit_base is not None:
        kit = TransferKit(
            base_id=kit_base,
            dataset_name="tickets",
            dataset_size=300,
            format=DOCUMENT,
            seeds=(Example(input="a", target="b"),),
            discriminator=discriminator,
            threshold=0.0,
            discriminator_auc=0.9,
            real_pass_rate=0.9,
            fake_pass_rate=0.5,
            max_input_chars=100,
            max_input_tokens=50,
            max_answer_tokens=10,
        )
    source: dict[str, Any] = {
        "id": "v-1",
        "adapter": "acme/triage",
        "base_id": base_id,
        "digest": "sha256:0",
        "peft_type": peft_type,
        "rank": 16,
        "target_modules": ("q_proj",),
        "origin": "upload",
        "created_at": 0.0,
    }
    return AdapterFacts(
        adapter=Adapter(
            name="acme/triage", tenant="acme", evaluation_digest=evaluation, created_at=0.0
        ),
        source=AdapterVersion(**source),
        kit=kit,
        kit_problem=kit_problem,
    )


def test_an_adapter_with_a_kit_is_distilled() -> None:
    planned = plan_adapter(facts(), "next")
    assert (planned.path, planned.feasible) == ("distill", True)
    assert (planned.rank, planned.dataset_size, planned.source_version) == (16, 300, "v-1")
    assert "1 seeds of 'tickets'" in planned.reason


def test_the_evidence_is_the_strongest_there_is() -> None:
    assert plan_adapter(facts(), "next").evidence == "label-free"
    assert plan_adapter(facts(evaluation="sha256:1"), "next").evidence == "entrusted"


def test_an_adapter_whose_data_is_gone_is_distilled_without_a_discriminator() -> None:
    planned = plan_adapter(facts(discriminator=False), "next")
    assert (planned.path, planned.feasible) == ("distill-no-kit", True)
    assert "1 seeds of 'tickets' and no discriminator" in planned.reason
    other = plan_adapter(facts(discriminator=False, kit_base="older"), "next")
    assert not other.feasible, "its lengths are in another base's tokens"


def test_an_adapter_on_the_target_base_is_kept() -> None:
    planned = plan_adapter(facts(base_id="next"), "next")
    assert (planned.path, planned.feasible) == ("keep", True)


@pytest.mark.parametrize(
    ("case", "path", "reason"),
    [
        ({"kit_base": None}, "distill-no-kit", "no transfer kit: none was imported"),
        ({"kit_base": None}, "distill-no-kit", "`--seeds-only` if only a few examples"),
        (
            {"kit_base": None, "kit_problem": "kit.json is not UTF-8"},
            "distill-no-kit",
            "kit.json is not UTF-8",
        ),
        ({"peft_type": "IA3"}, "convert", "IA3 may be a change of full rank"),
        ({"peft_type": "IA3"}, "convert", "`lorebase adapter convert`"),
        ({"peft_type": "PREFIX_TUNING"}, "distill", "PREFIX_TUNING is no change of weights"),
        ({"peft_type": "LN_TUNING"}, "convert", "it changes norms"),
        ({"peft_type": "LN_TUNING"}, "convert", "train a LoRA version for 'next'"),
        ({"kit_base": "older"}, "distill", "fits base 'older'"),
    ],
)
def test_what_can_not_migrate_says_why_and_what_to_do(
    case: dict[str, Any], path: str, reason: str
) -> None:
    planned = plan_adapter(facts(**case), "next")
    assert not planned.feasible
    assert planned.path == path
    assert reason in planned.reason
