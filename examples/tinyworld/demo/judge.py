"""The outside judge: real held-out data, which neither gate nor training ever saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.load.records import RequestRecord, Workload
from benchmarks.load.statistics import Interval, paired_difference, wilson
from lorebase.transfer.kit import DOCUMENT, TaskFormat
from lorebase.transfer.ports import Example

from .facts import TextCheck

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One adapter as the judge sees it."""

    name: str
    examples: Pairs
    seeds: Pairs
    """Solved examples for the few-shot condition."""
    source_version: str
    shadow_version: str
    """Empty if no version for the next base was made."""


def workload(
    model: str, adapter: str, examples: Pairs, *, seeds: Pairs = (), form: TaskFormat = DOCUMENT
) -> Workload:
    """Returns requests for held-out examples, few-shot when seeds are given."""
    shots = [Example(input=text, target=target) for text, target in seeds]
    prompts = tuple(
        form.few_shot(shots, text) if shots else form.prompt(text) for text, _ in examples
    )
    return Workload(
        model=model, adapter=adapter, examples=examples, prompts=prompts, stop=(form.stop,)
    )


def conditions(candidate: Candidate, next_base: str) -> dict[str, Workload]:
    """Returns what to measure for one adapter, by condition."""
    name, examples = candidate.name, candidate.examples
    found = {
        "bare": workload(next_base, "", examples),
        "few_shot": workload(next_base, "", examples, seeds=candidate.seeds),
        "source": workload(f"{name}@{candidate.source_version}", name, examples),
    }
    if candidate.shadow_version:
        found["shadow"] = workload(f"{name}@{candidate.shadow_version}", name, examples)
    return found


def scores(answers: Mapping[str, Sequence[RequestRecord]]) -> dict[str, Interval]:
    """Returns each condition's accuracy with its Wilson interval."""
    return {
        condition: wilson(sum(r.correct for r in records), len(records))
        for condition, records in answers.items()
        if records
    }


def difference(answers: Mapping[str, Sequence[RequestRecord]]) -> Interval | None:
    """Returns accuracy of shadow minus source on the same examples; None without a shadow."""
    if "shadow" not in answers:
        return None
    return paired_difference(
        [r.correct for r in answers["shadow"]], [r.correct for r in answers["source"]]
    )


def compare_texts(
    foreground: Sequence[RequestRecord],
    pinned: Mapping[str, Mapping[str, Sequence[RequestRecord]]],
) -> TextCheck:
    """Compares live answers with the answers of the version that they say they come from.

    `ServedBy` is the engine's word; the text is evidence that does not depend on it.

    Args:
        foreground: closed-loop requests; their example indices are the judge's.
        pinned: the judge's answers, by adapter and condition (`source`, `shadow`).
    """
    texts: dict[tuple[str, str, int], str] = {}
    versions: dict[str, set[str]] = {}
    for adapter, answers in pinned.items():
        for condition in ("source", "shadow"):
            for record in answers.get(condition, ()):
                if record.ok:
                    texts[adapter, record.version, record.example] = record.text
                    versions.setdefault(adapter, set()).add(record.version)
    compared = as_pinned = other = 0
    for record in foreground:
        expected = texts.get((record.adapter, record.version, record.example))
        if not record.ok or expected is None:
            continue
        compared += 1
        if record.text == expected:
            as_pinned += 1
        elif any(
            texts.get((record.adapter, version, record.example)) == record.text
            for version in versions[record.adapter] - {record.version}
        ):
            other += 1
    return TextCheck(compared=compared, as_pinned=as_pinned, of_other_version=other)
