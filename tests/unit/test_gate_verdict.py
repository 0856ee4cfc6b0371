"""A tenant judges with data of its own; only right-or-wrong leaves it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorebase.serving.errors import FailedPreconditionError, InvalidArgumentError
from lorebase.transfer.evaluate.command import run
from lorebase.transfer.evaluate.verdict import TenantVerdict, judge, load_verdict, save_verdict
from lorebase.transfer.kit import DOCUMENT
from lorebase.transfer.ports import Example
from lorebase.v1 import inference_pb2, upgrade_pb2

from .cli_samples import migration, upgrade

NAME = "acme/dates"
ITEMS = [Example(input=f"question {n}", target=f"secret {n}") for n in range(205)]


class Service:
    """Answers as each model would; knows one upgrade."""

    def __init__(self, *, shadow_right: int = 200, state: str = "rejected") -> None:
        self.shadow_right = shadow_right
        self.asked: list[inference_pb2.GenerateRequest] = []
        self.promoted: list[tuple[str, list[str]]] = []
        self.upgrade = upgrade(
            migration(NAME, state=state, source_version="v-1", shadow_version="v-2")
        )

    def get_upgrade(self, upgrade_id: str = "") -> upgrade_pb2.Upgrade:
        return self.upgrade

    def promote_upgrade(
        self, upgrade_id: str = "", adapters: Sequence[str] = ()
    ) -> upgrade_pb2.Upgrade:
        self.promoted.append((upgrade_id, list(adapters)))
        return self.upgrade

    def generate(self, request: inference_pb2.GenerateRequest) -> inference_pb2.GenerateResponse:
        self.asked.append(request)
        number = int(request.prompt.rsplit("question ", 1)[1].split("\n")[0])
        right = {
            f"{NAME}@v-1": True,
            f"{NAME}@v-2": number - 5 < self.shadow_right,
            "next": "secret" in request.prompt,  # solves it with examples only
        }[request.model]
        return inference_pb2.GenerateResponse(text=f"secret {number}" if right else "no idea")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"input": i.input, "target": i.target}) for i in ITEMS))
    return path


def test_a_good_shadow_is_promoted_on_the_tenants_word(data: Path, tmp_path: Path) -> None:
    service = Service()
    out = tmp_path / "verdict.json"
    report = run(service, NAME, data=data, out=out, promote=True)
    assert (report["verdict"], report["promoted_now"]) == ("promote", True)
    assert (report["n"], report["source_score"], report["bare_score"]) == (200, 1.0, 0.0)
    assert report["few_shot_score"] == 1.0
    assert service.promoted == [("u-1", [NAME])]
    assert {request.model for request in service.asked} == {f"{NAME}@v-1", f"{NAME}@v-2", "next"}


def test_nothing_of_the_data_is_in_the_verdict(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdict.json"
    run(Service(), NAME, data=data, out=out)
    text = out.read_text()
    assert not any(item.input in text or item.target in text for item in ITEMS)
    assert load_verdict(out).source == "1" * 200


def test_a_worse_shadow_is_not_promoted_whoever_asks(data: Path) -> None:
    service = Service(shadow_right=180)
    report = run(service, NAME, data=data, promote=True)
    assert (report["verdict"], report["promoted_now"]) == ("reject", False)
    assert service.promoted == []


def test_an_operator_promotes_by_a_verdict_that_was_handed_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdict.json"
    run(Service(), NAME, data=data, out=out)
    service = Service()
    report = run(service, NAME, verdict=out, promote=True)
    assert report["promoted_now"] is True
    assert service.asked == []


def test_the_services_limits_are_the_verdicts_too(data: Path) -> None:
    service = Service(shadow_right=185)
    decision = service.upgrade.migrations[0].decision
    assert run(service, NAME, data=data)["margin"] == 0.05, "the usual one: none was decided"
    decision.verdict = upgrade_pb2.VERDICT_REJECT
    decision.evidence, decision.margin, decision.negative_flip_budget = "entrusted", 0.2, 0.15
    wide = run(service, NAME, data=data)
    assert (wide["margin"], wide["verdict"]) == (0.2, "promote")
    assert run(service, NAME, data=data, margin=0.1)["margin"] == 0.1
    decision.evidence = "label-free"
    assert run(service, NAME, data=data)["margin"] == 0.05, "that margin is of changed answers"
    decision.margin = 0.02
    assert run(service, NAME, data=data)["margin"] == 0.02, "the service is stricter"


def test_a_verdict_tells_its_own_risk_and_planned_looks_share_it(data: Path) -> None:
    once = run(Service(), NAME, data=data)
    assert "promotes at most 2.0%" in once["risk"]
    thrice = run(Service(), NAME, data=data, looks=4)
    assert "promotes at most 0.5%" in thrice["risk"]
    assert thrice["interval_low"] < once["interval_low"]
    for wrong in ({"looks": 0}, {"margin": 1.5}):
        with pytest.raises(InvalidArgumentError, match="no such policy"):
            run(Service(), NAME, data=data, **wrong)  # type: ignore[arg-type]


def test_a_promoted_adapter_is_judged_but_not_promoted_again(data: Path) -> None:
    service = Service(state="promoted")
    assert run(service, NAME, data=data, promote=True)["promoted_now"] is False
    assert service.promoted == []


def test_a_verdict_on_other_versions_is_stale(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdict.json"
    run(Service(), NAME, data=data, out=out)
    service = Service()
    service.upgrade.migrations[0].shadow_version = "v-3"
    with pytest.raises(FailedPreconditionError, match="judge again"):
        run(service, NAME, verdict=out, promote=True)


def test_without_a_shadow_there_is_nothing_to_judge(data: Path) -> None:
    service = Service()
    service.upgrade.migrations[0].shadow_version = ""
    with pytest.raises(FailedPreconditionError, match="wait until it is evaluated"):
        run(service, NAME, data=data)
    with pytest.raises(FailedPreconditionError, match="does not migrate"):
        run(service, "acme/other", data=data)


def test_either_data_or_a_verdict_is_needed(data: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="either"):
        run(Service(), NAME)
    with pytest.raises(InvalidArgumentError, match="either"):
        run(Service(), NAME, data=data, verdict=data)
    with pytest.raises(InvalidArgumentError, match="unknown task format"):
        run(Service(), NAME, data=data, format="poem")


def verdict(**changes: Any) -> TenantVerdict:
    values: dict[str, Any] = {
        "adapter": NAME,
        "source_version": "v-1",
        "shadow_version": "v-2",
        "next_base": "next",
        "source": "110",
        "shadow": "101",
        "bare": "000",
        "data_sha256": "0" * 64,
    }
    return TenantVerdict(**{**values, **changes})


def test_a_verdict_survives_its_file_and_becomes_evidence(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    save_verdict(verdict(few_shot="111"), path)
    evidence = load_verdict(path).evidence()
    assert evidence.kind == "tenant"
    assert evidence.source_correct == (True, True, False)
    assert evidence.shadow_correct == (True, False, True)
    assert evidence.few_shot_correct == (True, True, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"shadow": "10"},
        {"few_shot": "1"},
        {"source": "", "shadow": "", "bare": ""},
        {"source": "1x0"},
        {"data_sha256": "mine"},
    ],
)
def test_a_verdict_that_does_not_fit_together_is_refused(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    path = tmp_path / "v.json"
    save_verdict(verdict(**changes), path)
    with pytest.raises(InvalidArgumentError):
        load_verdict(path)


def test_too_few_items_for_the_examples_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="expected 6 to"):
        judge(
            lambda model, prompts: [""] * len(prompts),
            ITEMS[:5],
            adapter=NAME,
            source_version="v-1",
            shadow_version="v-2",
            next_base="next",
            format=DOCUMENT,
            shots=5,
        )
