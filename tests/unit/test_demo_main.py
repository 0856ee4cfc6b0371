"""The demo's command line: what it may delete, and what it says when the world is incomplete."""

from pathlib import Path

import pytest

from examples.tinyworld.demo import __main__ as demo


def test_only_a_former_demos_directory_is_emptied(tmp_path: Path) -> None:
    state = tmp_path / "state"
    demo._clean(state)
    (state / "catalog.db").touch()
    demo._clean(state)
    assert not (state / "catalog.db").exists()


def test_a_strangers_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="not a former demo's"):
        demo._clean(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_options_become_settings(tmp_path: Path) -> None:
    settings = demo._settings(
        ["--clients", "3", "--think", "0.1", "0.2", "--only", "a/x", "--report-dir", str(tmp_path)]
    )
    assert (settings.load.clients, settings.load.think_s) == (3, (0.1, 0.2))
    assert (settings.only, settings.report_dir) == (("a/x",), tmp_path)
    assert settings.judge_examples >= settings.required_examples


def test_an_unknown_adapter_ends_it_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--only", "no/such", "--state-dir", str(tmp_path / "state")]) == 2
    assert "no/such" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()
