"""The command line against a real gRPC server on loopback."""

import io
import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lorebase.serving.cli import doctor
from lorebase.serving.cli.client import LorebaseClient, generate_request
from lorebase.serving.cli.main import main
from lorebase.serving.errors import UnavailableError
from lorebase.v1 import upgrade_pb2
from tests.integration.cli_server import Server
from tests.unit.cli_samples import decision, migration, upgrade


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `lorebase ...`; returns exit code, stdout and stderr."""
    monkeypatch.setenv("LOREBASE_ENDPOINT", server.endpoint)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))

    def invoke(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return invoke


@pytest.fixture
def peft_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(1_500_000))
    return folder


def test_create_uploads_adapter_kit_and_evaluation_set(
    run: Run, server: Server, peft_dir: Path, tmp_path: Path
) -> None:
    kit = tmp_path / "kit"
    (kit / "discriminator").mkdir(parents=True)
    (kit / "kit.json").write_text("{}")
    (kit / "discriminator" / "adapter_config.json").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "a", "target": "b"}\n')
    code, out, _ = run(
        *("adapter", "create", "acme/x", "--from", str(peft_dir), "--base", "old"),
        *("--kit", str(kit), "--evaluation", str(rows), "-o", "json"),
    )
    assert code == 0
    assert json.loads(out)["name"] == "acme/x"
    (created,) = server.adapters.creates
    assert created.request_id
    assert server.adapters.largest_chunk == 512 * 1024
    contents = {}
    for digest in (created.adapter_digest, created.kit_digest, created.evaluation_digest):
        header, data = server.adapters.uploads[digest]
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            contents[header.kind] = (header.base, archive.getnames())
    assert contents == {
        1: ("old", ["adapter_config.json", "adapter_model.safetensors"]),
        2: ("old", ["discriminator/adapter_config.json", "kit.json"]),
        3: ("", ["evaluation.jsonl"]),
    }


def test_validate_only_creates_nothing(run: Run, server: Server, peft_dir: Path) -> None:
    code, out, _ = run(
        *("adapter", "create", "acme/x", "--from", str(peft_dir), "--base", "old"),
        "--validate-only",
    )
    assert code == 0
    assert "nothing was created" in out
    assert not server.adapters.by_name


def test_list_reads_every_page(run: Run, server: Server) -> None:
    with LorebaseClient(server.endpoint) as client:
        for number in range(5):
            client.create_adapter(f"acme/{number}", "old", "sha256:0")
    code, out, _ = run("adapter", "list", "-o", "json")
    assert code == 0
    assert [item["name"] for item in json.loads(out)] == [f"acme/{n}" for n in range(5)]


def test_a_missing_adapter_is_one_clear_line_and_exit_code_3(run: Run) -> None:
    code, out, err = run("adapter", "get", "acme/none")
    assert code == 3
    assert out == ""
    assert "no adapter 'acme/none' [ADAPTER_NOT_FOUND]" in err
    assert "lorebase adapter list" in err
    assert "Traceback" not in err


def test_delete_needs_yes_in_a_pipe(run: Run, server: Server) -> None:
    with LorebaseClient(server.endpoint) as client:
        client.create_adapter("acme/x", "old", "sha256:0")
    code, _, err = run("adapter", "delete", "acme/x")
    assert code == 2
    assert "--yes" in err
    assert "acme/x" in server.adapters.by_name
    assert run("adapter", "delete", "acme/x", "--yes")[0] == 0
    assert not server.adapters.by_name


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("adapter", "create", "acme/x")[0] == 2
    assert run("no-such-command")[0] == 2


def test_nothing_listening_is_exit_code_5(run: Run) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        code, _, err = run("--endpoint", dead, "adapter", "list")
    assert code == 5
    assert dead in err
    assert "lorebase serve" in err


def test_generate_prints_the_text_alone_on_stdout(run: Run, server: Server) -> None:
    code, out, err = run(
        *("generate", "acme/x", r"one\ntwo", "--max-tokens", "7", "--stop", r"\n", "--seed", "3")
    )
    assert (code, out) == (0, "ONE\nTWO\n")
    assert "acme/x version v-1 on old, 2 + 3 tokens" in err
    (request,) = server.inference.requests
    assert request.sampling.max_tokens == 7
    assert list(request.sampling.stop) == ["\n"]
    assert request.sampling.seed == 3
    assert not request.sampling.HasField("temperature")


def test_generate_reads_a_prompt_from_a_pipe_and_streams(run: Run, server: Server) -> None:
    code, out, _ = run("generate", "old", "-", "--stream")
    assert (code, out) == (0, "FROM A PIPE .\n")
    assert server.inference.requests[0].prompt == "from a pipe"


def test_closing_a_stream_ends_the_call(server: Server) -> None:
    with LorebaseClient(server.endpoint) as client:
        stream = client.generate_stream(generate_request("old", "one two three"))
        assert next(stream).text == "ONE "
        stream.close()  # type: ignore[attr-defined]
        assert server.inference.cancelled.wait(5)


def test_status_shows_models_and_lives_without_upgrades(run: Run) -> None:
    code, out, _ = run("status")
    assert code == 0
    assert "serving" in out
    assert json.loads(run("status", "-o", "json")[1])["upgrade"] is None


def test_status_of_a_draining_gateway_is_exit_code_5(run: Run, server: Server) -> None:
    server.set_serving(False)
    code, out, _ = run("status")
    assert code == 5
    assert "not_serving" in out


def test_status_waits_for_a_gateway_that_starts(run: Run, server: Server) -> None:
    server.set_serving(False)
    code, _, err = run("status", "--wait", "0.4")
    assert code == 5
    assert "not ready within 0.4 s" in err
    starts = threading.Timer(0.4, server.set_serving, [True])
    starts.start()
    code, out, _ = run("status", "--wait", "20")
    starts.join()
    assert code == 0
    assert "serving" in out
    assert [one.model for one in server.inference.requests] == ["old"], "its engine answered"


def test_status_waits_for_engines_too(run: Run, server: Server) -> None:
    server.inference.down = 2
    code, _, err = run("status", "--wait", "20")
    assert (code, err) == (0, "")
    assert len(server.inference.requests) == 3


def test_waiting_for_a_gateway_that_never_serves_ends_in_time(server: Server) -> None:
    server.set_serving(False)
    with (
        LorebaseClient(server.endpoint) as client,
        pytest.raises(UnavailableError, match="NOT_SERVING"),
    ):
        client.wait_ready(0.3, poll_s=0.05)
    server.set_serving(True)
    with LorebaseClient(server.endpoint) as client:
        client.wait_ready(5)


def _history(last: upgrade_pb2.UpgradeState.ValueType) -> list[upgrade_pb2.Upgrade]:
    return [
        upgrade(migration(state="pending", stage_progress=0.0)),
        upgrade(migration(state="evaluating", stage_progress=0.0)),
        upgrade(migration(state="promoted", decision=decision()), state=last),
        upgrade(migration(state="never shown"), state=last),
    ]


def test_watch_prints_plain_lines_in_a_pipe_and_stops_when_settled(
    run: Run, server: Server
) -> None:
    server.upgrades.history = _history(upgrade_pb2.UPGRADE_STATE_COMPLETED)
    code, out, _ = run("upgrade", "status", "--watch")
    assert code == 0
    lines = [line.partition(" ")[2] for line in out.splitlines()]
    assert lines[:3] == [
        "upgrade u-1: migrating",
        "acme/dates: pending",
        "acme/dates: evaluating",
    ]
    assert lines[3] == "upgrade u-1: completed"
    assert lines[4].startswith("acme/dates: promoted, gate: promote")
    assert "never shown" not in out


def test_watch_of_a_failed_upgrade_is_exit_code_1(run: Run, server: Server) -> None:
    server.upgrades.history = _history(upgrade_pb2.UPGRADE_STATE_FAILED)
    code, out, _ = run("upgrade", "status", "--watch", "-o", "json")
    assert code == 1
    states = [json.loads(line)["state"] for line in out.splitlines()]
    assert states[-1] == "UPGRADE_STATE_FAILED"


def test_start_names_the_base_and_adapters_and_a_request_id(run: Run, server: Server) -> None:
    server.upgrades.history = [upgrade()]
    code, out, _ = run("upgrade", "start", "--to", "next", "-a", "acme/dates")
    assert code == 0
    assert "old → next" in out
    (request,) = server.upgrades.starts
    assert (request.to_base, list(request.adapters)) == ("next", ["acme/dates"])
    assert request.request_id


def test_rollback_asks_nothing(run: Run, server: Server) -> None:
    server.upgrades.history = [upgrade()]
    assert run("upgrade", "rollback", "--adapter", "acme/dates")[0] == 0
    assert list(server.upgrades.rollbacks[0].adapters) == ["acme/dates"]


def test_finish_needs_yes_in_a_pipe(run: Run) -> None:
    assert run("upgrade", "finish")[0] == 2


def test_a_call_that_the_server_lacks_is_explained(run: Run) -> None:
    code, _, err = run("upgrade", "finish", "--yes")
    assert code == 4
    assert "does not offer this call" in err


def test_tls_needs_the_right_certificate(run: Run, tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path / "a"), tmp_path / "a.key"
    other = _self_signed(tmp_path / "b")
    secure = Server(grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())]))
    try:
        where = ("--endpoint", secure.endpoint.replace("127.0.0.1", "localhost"))
        assert run("status", *where, "--ca", str(certificate))[0] == 0
        assert run("status", *where, "--ca", str(other))[0] == 5
        assert run("status", *where, "--ca", str(key))[0] == 4
    finally:
        secure.stop()


def _self_signed(path: Path) -> Path:
    """Writes path.key and path.pem for localhost; returns the latter."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.with_suffix(".key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.with_suffix(".pem").write_bytes(certificate.public_bytes(pem))
    return path.with_suffix(".pem")


def test_the_doctor_tells_a_free_port_from_a_taken_one(server: Server) -> None:
    taken = int(server.endpoint.rpartition(":")[2])
    assert doctor.port(taken).found == "in use"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert doctor.port(probe.getsockname()[1]).found == "free"


def test_config_schema_is_a_json_schema_that_forbids_unknown_keys(run: Run) -> None:
    code, out, _ = run("config", "schema")
    assert code == 0
    assert json.loads(out)["additionalProperties"] is False


def test_a_bad_configuration_is_refused_with_exit_code_4(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("bases: []\nunknown: 1\n")
    code, _, err = run("config", "show", str(config))
    assert code == 4
    assert "unknown" in err
    assert "Traceback" not in err


def test_kit_build_reaches_the_builder_which_refuses_bad_data(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "no target"}\n')
    code, _, err = run(
        *("kit", "build", "--data", str(data), "--base-dir", str(tmp_path), "--base", "old"),
        *("--name", "tickets", "--out", str(tmp_path / "kit")),
    )
    assert code == 4
    assert f"{data}:1 is no example" in err
    assert not (tmp_path / "kit").exists()


def test_kit_build_takes_real_inputs_with_a_consent_only(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"input": "in {n}", "target": "{n}"}}\n' for n in range(4)))
    order = (
        *("kit", "build", "--data", str(data), "--base-dir", str(tmp_path), "--base", "old"),
        *("--name", "tickets", "--out", str(tmp_path / "kit"), "--seeds-only"),
    )
    code, _, err = run(*order, "--with-inputs", "3")
    assert code == 4
    assert "no consent" in err
    code, _, err = run(*order, "--consent", "A. Owner, for upgrades")
    assert code == 4
    assert "--with-inputs N" in err
    assert not (tmp_path / "kit").exists()


def test_serve_refuses_a_bad_configuration_before_it_starts_anything(
    run: Run, tmp_path: Path
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("bases: []\n")
    code, _, err = run("serve", str(config))
    assert code == 4
    assert "bases" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]
