"""Between protos and the gateway's own data. Total both ways: every field is read or refused."""

import base64
import binascii
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from lorebase.v1 import adapter_pb2, inference_pb2

from ..catalog import records
from ..config_sections import LimitsSection
from ..engine.protocol import FinishReason
from ..errors import InvalidArgumentError
from ..routing.table import RouteTable, Track
from .calls import Answer, Call, Piece, ServedBy, Usage
from .checks import check_model, check_prompt, check_request_id, check_token_ids, sampling_of

_FINISH: "dict[FinishReason, inference_pb2.FinishReason.ValueType]" = {
    "stop": inference_pb2.FINISH_REASON_STOP,
    "length": inference_pb2.FINISH_REASON_LENGTH,
}
_TRACK: "dict[Track, inference_pb2.Track.ValueType]" = {
    "stable": inference_pb2.TRACK_STABLE,
    "canary": inference_pb2.TRACK_CANARY,
    "pinned": inference_pb2.TRACK_PINNED,
}


def call_of(
    request: inference_pb2.GenerateRequest,
    limits: LimitsSection,
    *,
    new_id: str,
    remaining_s: float | None,
) -> Call:
    """Checks a request and returns it as a call.

    Args:
        request: from the client.
        limits: bounds of sizes.
        new_id: request id where the client gave none.
        remaining_s: until the gRPC deadline, None if there is none.

    Raises:
        InvalidArgumentError: a field is missing or out of range.
    """
    given = request.sampling
    sampling = sampling_of(
        limits,
        max_tokens=given.max_tokens if given.HasField("max_tokens") else None,
        temperature=given.temperature if given.HasField("temperature") else None,
        top_p=given.top_p if given.HasField("top_p") else None,
        top_k=given.top_k if given.HasField("top_k") else None,
        stop=list(given.stop),
        seed=given.seed if given.HasField("seed") else None,
        ignore_eos=given.ignore_eos,
    )
    if request.deadline_ms < 0:
        raise InvalidArgumentError(f"deadline_ms is {request.deadline_ms}, expected 0 or more")
    timeouts = [request.deadline_ms / 1000] if request.deadline_ms else []
    if remaining_s is not None:
        timeouts.append(max(0.0, remaining_s))
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None
    if request.WhichOneof("input") == "prompt_token_ids":
        token_ids = check_token_ids(request.prompt_token_ids.ids, limits)
    else:
        prompt = check_prompt(request.prompt, limits)
    return Call(
        model=check_model(request.model),
        request_id=check_request_id(request.request_id) or new_id,
        prompt=prompt,
        prompt_token_ids=token_ids,
        sampling=sampling,
        timeout_s=min(timeouts, default=None),
    )


def response_of(answer: Answer, request_id: str) -> inference_pb2.GenerateResponse:
    """Returns the unary response."""
    return inference_pb2.GenerateResponse(
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=_FINISH[answer.finish_reason],
        usage=_usage(answer.usage),
        served_by=_served_by(answer.served_by),
        request_id=request_id,
    )


def stream_response_of(piece: Piece, request_id: str) -> inference_pb2.GenerateStreamResponse:
    """Returns one message of a stream."""
    message = inference_pb2.GenerateStreamResponse(
        text=piece.text,
        token_ids=piece.token_ids,
        served_by=_served_by(piece.served_by),
        request_id=request_id,
    )
    if piece.finish_reason is not None:
        message.finish_reason = _FINISH[piece.finish_reason]
    if piece.usage is not None:
        message.usage.CopyFrom(_usage(piece.usage))
    return message


def _usage(usage: Usage) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _served_by(served_by: ServedBy) -> inference_pb2.ServedBy:
    return inference_pb2.ServedBy(
        base=served_by.base_id,
        adapter=served_by.adapter,
        adapter_version=served_by.version_id,
        route_revision=served_by.revision,
        track=_TRACK[served_by.track],
    )


def models_of(table: RouteTable) -> list[inference_pb2.Model]:
    """Returns every name that `model` accepts by itself: bases, then adapters, each sorted."""
    bases = [
        inference_pb2.Model(id=base_id, kind=inference_pb2.Model.KIND_BASE, base=base_id)
        for base_id in sorted(table.serving_bases)
    ]
    adapters = [
        inference_pb2.Model(
            id=name,
            kind=inference_pb2.Model.KIND_ADAPTER,
            base=table.versions[table.routes[name].stable].base_id,
            adapter_version=table.routes[name].stable,
        )
        for name in sorted(table.routes)
    ]
    return bases + adapters


def page_size_of(requested: int, *, default: int, most: int) -> int:
    """Returns how many entries a page has, by Google's rules: 0 is the default, capped."""
    if requested < 0:
        raise InvalidArgumentError(f"page_size is {requested}, expected 0 to {most}")
    return min(requested or default, most)


def page_token_of(last: str) -> str:
    """Returns the token of the page after the entry named `last`."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def last_of(page_token: str) -> str | None:
    """Returns the entry that a page token points behind, None for the first page."""
    if not page_token:
        return None
    try:
        return base64.b64decode(page_token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError(
            "page_token is not one that this service gave out; start with an empty one"
        ) from error


def timestamp_of(seconds: float) -> Timestamp:
    """Returns seconds since the epoch as a proto timestamp."""
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp


def adapter_of(
    adapter: records.Adapter, versions: Sequence[records.AdapterVersion], stable: str
) -> adapter_pb2.Adapter:
    """Returns an adapter with its versions; `stable` is the version that answers now."""
    by_id = {version.id: version for version in versions}
    return adapter_pb2.Adapter(
        name=adapter.name,
        tenant=adapter.tenant,
        stable_version=stable,
        base=by_id[stable].base_id if stable in by_id else "",
        kit_digest=adapter.kit_digest or "",
        evaluation_digest=adapter.evaluation_digest or "",
        versions=[version_of(version) for version in versions],
        create_time=timestamp_of(adapter.created_at),
        etag=etag_of(adapter),
    )


def version_of(version: records.AdapterVersion) -> adapter_pb2.AdapterVersion:
    """Returns an adapter version."""
    return adapter_pb2.AdapterVersion(
        id=version.id,
        base=version.base_id,
        digest=version.digest,
        peft_type=version.peft_type,
        rank=version.rank,
        target_modules=version.target_modules,
        create_time=timestamp_of(version.created_at),
        origin=version.origin,
    )


def etag_of(adapter: records.Adapter) -> str:
    """Returns the etag: it changes with every write to the adapter."""
    return f"r{adapter.record_version}"


def record_version_of(etag: str) -> int | None:
    """Returns what an etag stands for, None if empty."""
    if not etag:
        return None
    if not (etag.startswith("r") and etag[1:].isdecimal()):
        raise InvalidArgumentError(
            f"etag is {etag[:40]!r}, expected one from GetAdapter or ListAdapters, or none"
        )
    return int(etag[1:])


def route_change_of(change: records.RouteChange) -> adapter_pb2.RouteChange:
    """Returns one entry of the audit trail."""
    return adapter_pb2.RouteChange(
        revision=change.revision,
        adapter=change.adapter,
        version=change.version_id or "",
        base=change.base_id or "",
        time=timestamp_of(change.at),
        reason=change.reason,
    )
