"""`lorebase upgrade judge` over a real connection."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorebase.serving.cli.main import main
from lorebase.transfer.kit import DOCUMENT
from tests.integration.cli_server import Server
from tests.unit.cli_samples import migration, upgrade


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def test_judging_asks_both_versions_and_the_next_base_and_promotes(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOREBASE_ENDPOINT", server.endpoint)
    server.upgrades.history = [
        upgrade(migration(state="rejected", source_version="v-1", shadow_version="v-2"))
    ]
    # The server answers every prompt with itself in capitals.
    rows = [{"input": f"q{n}", "target": DOCUMENT.prompt(f"q{n}").upper()} for n in range(120)]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("upgrade", "judge", "acme/dates", "--data", str(data), "--shots", "0"),
                *("--promote", "-o", "json"),
            ]
        )
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["n"], report["promoted_now"]) == ("promote", 120, True)
    models = {request.model for request in server.inference.requests}
    assert models == {"acme/dates@v-1", "acme/dates@v-2", "next"}
    assert len(server.inference.requests) == 3 * 120
    [promoted] = server.upgrades.promotions
    assert list(promoted.adapters) == ["acme/dates"]
