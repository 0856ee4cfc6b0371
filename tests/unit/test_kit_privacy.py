"""What a kit gives away, and how secrets are looked for."""

import json
import random
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from lorebase.serving.errors import InvalidArgumentError
from lorebase.transfer.kit import DOCUMENT, TransferKit, load_kit, save_kit
from lorebase.transfer.kit.audit import closeness, contents, exposed, nearest, preference, spread
from lorebase.transfer.kit.calibrate import LETS_ALL_PASS
from lorebase.transfer.kit.canary import found_in_files, found_in_texts, make_canaries
from lorebase.transfer.kit.kit import Consent
from lorebase.transfer.kit.mask import mask
from lorebase.transfer.kit.privacy_command import audit, read_inputs
from lorebase.transfer.kit.scrub import Scrubber, scrub_kit
from lorebase.transfer.ports import Example, ModelSpec

from .transfer_fakes import Script, done

DATA = [Example(input=f"order {n} for customer {n * 7919}", target=f"ref {n}") for n in range(60)]


def kit(**changes: object) -> TransferKit:
    values: dict[str, object] = {
        "base_id": "old",
        "dataset_name": "orders",
        "dataset_size": 60,
        "format": DOCUMENT,
        "seeds": tuple(DATA[:3]),
        "threshold": 0.0,
        "discriminator_auc": 0.9,
        "real_pass_rate": 0.9,
        "fake_pass_rate": 0.5,
        "max_input_chars": 100,
        "max_input_tokens": 50,
        "max_answer_tokens": 10,
    }
    return TransferKit(**{**values, **changes})  # type: ignore[arg-type]


def write_kit(directory: Path, made: TransferKit) -> Path:
    (directory / "discriminator").mkdir(parents=True)
    (directory / "kit.json").write_text(json.dumps(asdict(made)))
    (directory / "discriminator" / "adapter_config.json").write_text('{"r": 8}')
    (directory / "discriminator" / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def write_data(path: Path, data: list[Example]) -> Path:
    path.write_text("\n".join(json.dumps(asdict(item)) for item in data))
    return path


def test_an_audit_shows_all_that_a_kit_says(tmp_path: Path) -> None:
    found = contents(write_kit(tmp_path / "kit", kit()))
    assert [seed["input"] for seed in found["seeds"]] == [item.input for item in DATA[:3]]
    assert found["seeds_are"] == "real examples"
    assert set(found["files"]) == {
        "kit.json",
        "discriminator/adapter_config.json",
        "discriminator/adapter_model.safetensors",
    }
    # Every field of a kit is somewhere in the report.
    told = {*found, *found["figures"], "base_id", "format", "schema_version"}
    assert set(TransferKit.__dataclass_fields__) <= told


def test_a_clean_kit_holds_its_seeds_and_no_other_real_text(tmp_path: Path) -> None:
    found = exposed(write_kit(tmp_path / "kit", kit()), DATA)
    assert found == {"seeds_from_data": 3, "by_consent": 0, "beyond_seeds": []}


def test_real_inputs_that_somebody_consented_to_are_listed_and_no_finding(tmp_path: Path) -> None:
    shared = kit(
        schema_version=2,
        real_inputs=tuple(item.input for item in DATA[5:9]),
        consent=Consent(text="the owner, for upgrades", given_on="2026-11-22"),
    )
    directory = write_kit(tmp_path / "kit", shared)
    told = contents(directory)
    assert told["real_inputs"] == [item.input for item in DATA[5:9]]
    assert told["consent"] == {"text": "the owner, for upgrades", "given_on": "2026-11-22"}
    assert exposed(directory, DATA) == {
        "seeds_from_data": 3,
        "by_consent": 4,
        "beyond_seeds": [],
    }


@pytest.mark.parametrize(
    "leak",
    [
        {"dataset_name": f"orders such as {DATA[9].input.upper()}"},
        {"provenance": {"note": {"longest": [DATA[9].input]}}},
        {"provenance": {DATA[9].input: 1}},
    ],
)
def test_real_text_anywhere_else_is_found(tmp_path: Path, leak: dict[str, object]) -> None:
    directory = write_kit(tmp_path / "kit", kit(**leak))
    assert exposed(directory, DATA)["beyond_seeds"] == [DATA[9].input]
    report = audit(kit=directory, against=write_data(tmp_path / "d.jsonl", DATA))
    assert report["clean"] is False
    assert "1 real texts are in the kit beyond its seeds" in report["findings"][0]


def test_distances_are_shares_of_changed_characters() -> None:
    found = nearest(["abcd", "ABCE ", "wxyz"], ["abcd", "abxx"])
    assert found.tolist() == pytest.approx([0.0, 0.25, 1.0])
    with pytest.raises(ValueError, match="some of both"):
        nearest([], ["a"])


def test_copies_and_near_copies_are_counted() -> None:
    real = [item.input for item in DATA]
    made = [real[0], real[1].upper(), real[2] + "!", "nothing of the kind at all"]
    found = closeness(made, real)
    assert (found.texts, found.references, found.copies, found.near) == (4, 60, 2, 3)
    assert found.percentiles["p0"] == 0.0
    assert spread(real).copies == 0
    assert spread([*real, real[0]]).copies == 2


def test_a_large_set_is_sampled() -> None:
    many = [f"text number {n}" for n in range(2_500)]
    assert closeness(many, many[:50]).texts == 2_000


def test_texts_nearer_to_used_data_than_to_other_data_show() -> None:
    rng = random.Random(0)
    real = ["".join(rng.choices("abcdefgh", k=20)) for _ in range(200)]
    seen, unseen = real[:100], real[100:]
    remembered = preference([text[:-2] + "zz" for text in seen], seen, unseen)
    assert remembered["nearer_to_seen"] == 1.0
    assert remembered["p_value"] < 1e-6
    fresh = ["".join(rng.choices("abcdefgh", k=20)) for _ in range(100)]
    assert preference(fresh, seen, unseen)["p_value"] > 0.01


def test_canaries_look_like_the_data_and_their_secrets_are_found_again(tmp_path: Path) -> None:
    canaries = make_canaries(DATA, 5, seed=1)
    assert canaries == make_canaries(DATA, 5, seed=1)
    assert canaries[:2] == make_canaries(DATA, 2, seed=1)
    assert len({one.secret for one in canaries}) == 5
    for one in canaries:
        assert one.secret in one.example.input
        assert one.example.input.replace(f"{one.secret} ", "").replace(f" {one.secret}", "") in {
            item.input for item in DATA
        }
    part = canaries[2].secret[3:9]
    assert found_in_texts(canaries, ["nothing", f"xx{part.upper()}yy"]) == [canaries[2].secret]
    assert found_in_texts(canaries, [canaries[2].secret[:5]]) == []
    (tmp_path / "w.safetensors").write_bytes(b"\x00\xff" + canaries[4].secret.encode() + b"\x01")
    assert found_in_files(canaries, tmp_path) == [canaries[4].secret]


def test_masking_keeps_the_shape_and_changes_what_identifies() -> None:
    rng = random.Random(3)
    text = "Ship 12 boxes to Ann.Lee@mail.example, card 4111-1111-1111-1111, ref AB12cd34, day 3"
    masked = mask(text, rng)
    assert re.fullmatch(
        r"Ship 12 boxes to \w{3}\.\w{3}@\w{4}\.\w{7}, card \d{4}-\d{4}-\d{4}-\d{4}, "
        r"ref [A-Z]{2}\d\d[a-z]{2}\d\d, day 3",
        masked,
    )
    for secret in ("Ann.Lee", "mail.example", "4111", "AB12cd34"):
        assert secret not in masked
    assert mask("no numbers here", rng) == "no numbers here"
    assert mask("see https://a.example/u/7", rng).startswith("see https://")


def test_an_audit_compares_synthetic_inputs_with_the_data(tmp_path: Path) -> None:
    directory = write_kit(tmp_path / "kit", kit())
    made = tmp_path / "made.jsonl"
    made.write_text(
        json.dumps({"input": DATA[10].input}) + "\n" + json.dumps("order x") + "\nplain text\n"
    )
    assert read_inputs(made) == [DATA[10].input, "order x", "plain text"]
    report = audit(
        kit=directory,
        against=write_data(tmp_path / "d.jsonl", DATA[:40]),
        synthetic=made,
        unseen=write_data(tmp_path / "u.jsonl", DATA[40:]),
    )
    assert report["clean"] is True
    assert report["synthetic"]["to_data"]["copies"] == 1
    assert report["synthetic"]["to_seeds"]["copies"] == 0
    assert 0 <= report["synthetic"]["preference"]["nearer_to_seen"] <= 1
    assert "1 of 3 synthetic inputs equal a real one" in report["findings"][0]


def test_an_audit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        audit(kit=tmp_path)
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(InvalidArgumentError, match="no inputs"):
        read_inputs(empty)


def test_scrubbing_takes_consented_inputs_out_and_needs_no_discriminator(tmp_path: Path) -> None:
    shared = kit(
        schema_version=2,
        discriminator=False,
        real_inputs=tuple(item.input for item in DATA[5:9]),
        consent=Consent(text="the owner, for upgrades", given_on="2026-11-22"),
        **LETS_ALL_PASS,
    )
    save_kit(shared, None, tmp_path / "kit")
    model = ModelSpec(base_id="old")
    scrubber = Scrubber(generator=Script(lambda _, n: done("ref")), base=model, teacher=model)
    scrubbed = scrub_kit(tmp_path / "kit", tmp_path / "new", scrubber, mode="mask")
    assert load_kit(tmp_path / "new") == scrubbed
    assert (scrubbed.real_inputs, scrubbed.consent, scrubbed.discriminator) == ((), None, False)
    assert exposed(tmp_path / "new", DATA)["by_consent"] == 0
