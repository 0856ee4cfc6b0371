"""The runner's result files, and what the swap suite makes of a run."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import run as runner
from benchmarks.load import Acknowledgement, RouteHistory, RouteStep
from benchmarks.suite import SuiteResult
from benchmarks.swap_result import Run, summarise
from benchmarks.upgrades import OperatorMove
from tests.unit.demo_samples import NEXT, OLD, T0, record

NAME = "a/x"


def finished_run() -> Run:
    steps = [
        RouteStep(revision=1, adapter=NAME, version="v-1", base=OLD, at=T0 - 50, reason="create"),
        RouteStep(revision=2, adapter=NAME, version="v-2", base=NEXT, at=T0 - 5, reason="promote"),
        RouteStep(revision=3, adapter=NAME, version="v-1", base=OLD, at=T0 + 10, reason="rollback"),
        RouteStep(revision=4, adapter=NAME, version="v-2", base=NEXT, at=T0 + 20, reason="promote"),
    ]
    acks = [Acknowledgement(revision=s.revision, at=s.at + 0.02) for s in steps[1:]]
    history = RouteHistory(steps, acks)
    records = []
    for tick in range(300):
        at = tick / 10 + 0.001
        step = history.named(NAME, max(s.revision for s in steps if s.at <= T0 + at))
        assert step is not None
        near = min(abs(at - 10), abs(at - 20)) < 1
        records.append(
            record(
                at,
                NAME,
                latency_s=0.2 if near else 0.1,
                base=step.base,
                version=step.version,
                revision=step.revision,
            )
        )
    moves = [
        OperatorMove(adapter=NAME, action="rollback", called_at=T0 + 10, call_s=0.1, seen_s=0.2),
        OperatorMove(adapter=NAME, action="promote", called_at=T0 + 19, call_s=0.1, seen_s=1.2),
    ]
    return Run(started=T0, records=records, moves=moves, history=history, acks=acks, failures=[])


def test_the_swap_suite_names_the_promised_figures() -> None:
    result = summarise(finished_run(), adapters=1)
    summary = result.summary
    assert summary["swap_requests_failed"] == 0
    assert summary["swap_answers_wrong_version"] == 0
    assert summary["fg_p99_around_flip_ratio"] == pytest.approx(2.0)
    assert summary["flips"] == 2  # the promotion before the load does not count
    assert summary["requests_around_flips"] + summary["requests_elsewhere"] == 300
    assert summary["route_to_all_gateways_max_s"] == pytest.approx(0.02, abs=1e-3)
    assert summary["promote_seen_p50_s"] == pytest.approx(1.2)
    kinds = [row["kind"] for row in result.rows]
    assert (kinds.count("flip"), kinds.count("move")) == (2, 2)
    ElementTree.fromstring(result.figure_svg)


def test_failed_and_wrong_answers_are_counted() -> None:
    done = finished_run()
    done.records[5] = record(0.5, NAME, code="UNAVAILABLE")
    done.records[6] = record(0.6, NAME, version="v-1", base=OLD, revision=2)
    summary = summarise(done, adapters=1).summary
    assert summary["swap_requests_failed"] == 1
    assert summary["swap_answers_wrong_version"] == 1


def test_quick_results_never_replace_real_ones(tmp_path: Path) -> None:
    result = SuiteResult(rows=[{"a": 1}], summary={"b": 2}, figure_svg="<svg/>", failures=["no"])
    contents = runner.document("swap", result, quick=True, seconds=1.0)
    written = runner.write("swap", contents, result.figure_svg, tmp_path)
    assert [path.name for path in written] == ["swap.quick.json", "swap.quick.svg"]
    read = json.loads(written[0].read_text())
    assert {"cpu", "cores", "versions", "device", "commit", "date"} <= read["environment"].keys()
    assert (read["rows"], read["summary"], read["failures"]) == ([{"a": 1}], {"b": 2}, ["no"])


def test_a_suite_can_be_named_either_way_and_must_be_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "swap" in runner.suite_names()
    with pytest.raises(SystemExit) as ended:
        runner.main([])
    assert ended.value.code == 2
    assert "swap" in capsys.readouterr().err


def test_suites_are_named_with_hyphens_as_their_result_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Passing:
        @staticmethod
        async def run(context: object) -> SuiteResult:
            return SuiteResult(rows=[], summary={})

    asked = list[str]()
    monkeypatch.setattr(
        runner.importlib, "import_module", lambda name: asked.append(name) or Passing
    )
    assert {"lora-cpu", "lora-gpu"} <= set(runner.suite_names())
    assert not any("_" in name for name in runner.suite_names())
    assert runner.main(["lora-gpu", "--quick", "--results", str(tmp_path)]) == 0
    assert asked == ["benchmarks.suites.lora_gpu"]
    assert (tmp_path / "lora-gpu.quick.json").exists()


def test_a_failing_gate_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        @staticmethod
        async def run(context: object) -> SuiteResult:
            return SuiteResult(rows=[], summary={"x": 1}, failures=["wrong answers"])

    monkeypatch.setattr(runner.importlib, "import_module", lambda name: Failing)
    assert runner.main(["--suite", "swap", "--quick", "--results", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "swap.quick.json").read_text())["failures"] == ["wrong answers"]
