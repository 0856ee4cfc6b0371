"""Errors, exit codes and hints; options and confirmation."""

import json
from collections.abc import Sequence

import grpc
import pytest
import typer
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from lorebase.serving import errors
from lorebase.serving.cli.exits import EXIT_FAILURE
from lorebase.serving.cli.failures import error_of, failure_of
from lorebase.serving.cli.session import Options, Output, Session, options_from, plain
from lorebase.serving.cli.watch import exit_code_of
from lorebase.v1 import upgrade_pb2

from .cli_samples import adapter, upgrade


class _Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """A finished call as gRPC raises it."""

    def __init__(
        self, code: grpc.StatusCode, details: str, sent: Sequence[object] | None = ()
    ) -> None:
        self._code = code
        self._details = details
        self._sent = sent

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        if self._sent is None:
            return ()
        status = status_pb2.Status(code=self._code.value[0], message=self._details)
        for detail in self._sent:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)

    def _unused(self, *args: object) -> None:
        raise NotImplementedError

    initial_metadata = is_active = time_remaining = cancel = add_callback = _unused


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidArgumentError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.ConflictError,
        errors.ResourceExhaustedError,
        errors.UnavailableError,
        errors.DeadlineExceededError,
        errors.LorebaseError,
    ],
)
def test_the_client_raises_what_the_server_raised(kind: type[errors.LorebaseError]) -> None:
    code = errors.status_of(kind("x")).grpc_code
    info = error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="lorebase")
    got = error_of(_Failed(code, "got 3, expected 4", [info]), "host:1")
    assert type(got) is kind
    assert got.reason == "SOME_REASON"
    assert "got 3, expected 4" in got.message


def test_a_retry_delay_arrives() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=250_000_000))
    got = error_of(_Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [retry]), "host:1")
    assert got.retry_after_s == 0.25
    assert failure_of(got).hint == "retry in 0.25 s"


def test_a_dead_endpoint_is_told_from_a_draining_server() -> None:
    code = grpc.StatusCode.UNAVAILABLE
    dead = failure_of(error_of(_Failed(code, "connection refused", None), "host:1"))
    assert "host:1" in dead.line
    assert dead.hint is not None
    assert "lorebase serve" in dead.hint
    draining = failure_of(error_of(_Failed(code, "draining", ()), "host:1"))
    assert "host:1" not in draining.line
    assert dead.exit_code == draining.exit_code == 5


def test_exit_codes_are_the_documented_ones() -> None:
    codes = {
        errors.LorebaseError: 1,
        errors.NotFoundError: 3,
        errors.InvalidArgumentError: 4,
        errors.AlreadyExistsError: 4,
        errors.FailedPreconditionError: 4,
        errors.ConflictError: 4,
        errors.UnavailableError: 5,
        errors.EngineDeadError: 5,
        errors.DeadlineExceededError: 6,
        errors.ResourceExhaustedError: 7,
    }
    assert {kind: failure_of(kind("x")).exit_code for kind in codes} == codes


def test_a_server_without_the_call_is_explained() -> None:
    got = error_of(_Failed(grpc.StatusCode.UNIMPLEMENTED, "Method not found!", None), "host:1")
    assert got.reason == "UNIMPLEMENTED"
    assert failure_of(got).exit_code == 4


def test_options_after_the_command_win_over_those_before_and_the_environment() -> None:
    options = options_from({"LOREBASE_ENDPOINT": "env:1"})
    assert options.endpoint == "env:1"
    options = options.updated(endpoint="before:1", output=Output.JSON)
    options = options.updated(endpoint="after:1", timeout=2.0)
    assert options == Options(endpoint="after:1", output=Output.JSON, timeout_s=2.0)
    assert options_from({"LOREBASE_ENDPOINT": ""}).endpoint == "127.0.0.1:19000"


def test_json_keeps_proto_names_and_prints_unset_fields() -> None:
    value = plain({"adapters": [adapter()], "n": 1})
    assert value["adapters"][0]["stable_version"] == "v-2"
    assert value["adapters"][0]["evaluation_digest"] == ""
    json.dumps(value)


def test_what_cannot_be_undone_needs_yes_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(Options())
    session.confirm("Delete?", yes=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(typer.BadParameter, match="--yes"):
        session.confirm("Delete?", yes=False)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (upgrade_pb2.UPGRADE_STATE_COMPLETED, 0),
        (upgrade_pb2.UPGRADE_STATE_FINISHED, 0),
        (upgrade_pb2.UPGRADE_STATE_ROLLED_BACK, 0),
        (upgrade_pb2.UPGRADE_STATE_FAILED, 1),
        (upgrade_pb2.UPGRADE_STATE_ABORTED, 1),
    ],
)
def test_watching_ends_with_the_upgrades_own_success(
    state: upgrade_pb2.UpgradeState.ValueType, code: int
) -> None:
    assert exit_code_of(upgrade(state=state)) == code
    assert exit_code_of(None) == EXIT_FAILURE
