"""AdapterService over real gRPC, catalog and store: refused means that nothing stays behind."""

import asyncio
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorebase.serving.artifacts import ArtifactStore
from lorebase.serving.catalog import Catalog
from lorebase.serving.errors import InvalidArgumentError
from lorebase.v1 import adapter_pb2, inference_pb2

from .gateway_harness import BASE, Gateway, archive, gateway, gateway_settings, reason_of, upload
from .tiny_models import make_tiny_adapter, make_tiny_base, spoil_shapes

KIT = adapter_pb2.ARTIFACT_KIND_KIT
EVALUATION = adapter_pb2.ARTIFACT_KIND_EVALUATION_SET


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def adapter_dir(tmp_path: Path, base_dir: Path) -> Path:
    return make_tiny_adapter(tmp_path / "adapter", base_dir)


@pytest.fixture
async def served(tmp_path: Path, base_dir: Path) -> AsyncIterator[Gateway]:
    settings = gateway_settings(tmp_path / "state", base_dir)
    async with gateway(settings, time.monotonic) as running:
        yield running


async def create(served: Gateway, data: bytes, name: str = "acme/x", **fields: Any) -> Any:
    uploaded = await served.adapters.UploadArtifact(upload(data))
    return await served.adapters.CreateAdapter(
        adapter_pb2.CreateAdapterRequest(
            name=name, base=BASE, adapter_digest=uploaded.digest, **fields
        )
    )


async def ask(served: Gateway, model: str) -> Any:
    return await served.inference.Generate(
        inference_pb2.GenerateRequest(model=model, prompt="say ")
    )


async def test_adapter_answers_as_soon_as_it_is_created(served: Gateway, adapter_dir: Path) -> None:
    created = (await create(served, archive(adapter_dir))).adapter
    assert (created.tenant, created.base, created.versions[0].rank) == ("acme", BASE, 4)
    assert created.versions[0].peft_type == "LORA"
    assert served.engines.loaded == [created.stable_version], "the engine has seen it before"
    answer = await ask(served, "acme/x")
    assert answer.served_by.adapter == "acme/x"
    assert answer.served_by.adapter_version == created.stable_version
    for pinned in (BASE, created.stable_version):
        assert (await ask(served, f"acme/x@{pinned}")).served_by.adapter == "acme/x"


async def test_deleted_adapter_is_gone_at_once_and_unloaded(
    served: Gateway, adapter_dir: Path
) -> None:
    created = (await create(served, archive(adapter_dir))).adapter
    stub = served.adapters
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name="acme/x", etag="r99"))
    assert caught.value.code() == grpc.StatusCode.ABORTED
    await stub.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name="acme/x", etag=created.etag))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, "acme/x")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    async with asyncio.timeout(5):
        while served.engines.dropped != [created.stable_version]:
            await asyncio.sleep(0.01)
    changes = await stub.ListRouteChanges(adapter_pb2.ListRouteChangesRequest(adapter="acme/x"))
    assert [change.reason for change in changes.changes] == ["create", "delete"]
    assert changes.changes[0].version == created.stable_version


def pickled(folder: Path) -> bytes:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return archive(folder)


def pickle_in_disguise(folder: Path) -> bytes:
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 64)
    return archive(folder)


def wrong_shapes(folder: Path) -> bytes:
    spoil_shapes(folder)
    return archive(folder)


def rank_too_high(folder: Path) -> bytes:
    file = folder / "adapter_model.safetensors"
    wide = {}
    for name, tensor in load_file(file).items():
        axis = 0 if "lora_A" in name else 1
        wide[name] = np.repeat(tensor, 8, axis=axis)
    save_file(wide, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 32}))
    return archive(folder)


def not_a_number(folder: Path) -> bytes:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name].flat[3] = np.nan
    save_file(tensors, file)
    return archive(folder)


def path_traversal(folder: Path) -> bytes:
    data = io.BytesIO(archive(folder))
    with tarfile.open(fileobj=data, mode="a") as tar:
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    return data.getvalue()


def symlink(folder: Path) -> bytes:
    data = io.BytesIO(archive(folder))
    with tarfile.open(fileobj=data, mode="a") as tar:
        member = tarfile.TarInfo("link")
        member.type = tarfile.SYMTYPE
        member.linkname = "/etc/passwd"
        tar.addfile(member)
    return data.getvalue()


def cut_short(folder: Path) -> bytes:
    return archive(folder)[:3000]


def noise(folder: Path) -> bytes:
    return b"\x00\xff" * 4096


@pytest.mark.parametrize(
    "spoil",
    [
        pickled,
        pickle_in_disguise,
        wrong_shapes,
        rank_too_high,
        not_a_number,
        path_traversal,
        symlink,
        cut_short,
        noise,
    ],
)
async def test_malformed_adapter_is_refused_and_nothing_stays(
    served: Gateway, adapter_dir: Path, tmp_path: Path, spoil: Any
) -> None:
    data = spoil(adapter_dir)
    before = served.kept
    outside = set(tmp_path.rglob("escaped"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.UploadArtifact(upload(data))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details() or "") > 20, "the message must say what is wrong"
    assert served.kept == before
    assert set(tmp_path.rglob("escaped")) == outside == set()


async def test_too_large_upload_is_cut_off(
    tmp_path: Path, base_dir: Path, adapter_dir: Path
) -> None:
    settings = gateway_settings(tmp_path / "state", base_dir, limits={"max_artifact_bytes": 10_000})
    async with gateway(settings, time.monotonic) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.adapters.UploadArtifact(upload(archive(adapter_dir) + b"\0" * (3 << 20)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert served.kept == set()


async def test_cancelled_upload_leaves_nothing(served: Gateway, adapter_dir: Path) -> None:
    data = archive(adapter_dir)
    started = asyncio.Event()

    async def endless() -> AsyncIterator[adapter_pb2.UploadArtifactRequest]:
        for message in upload(data[:2048]):
            yield message
        started.set()
        await asyncio.sleep(3600)

    call = served.adapters.UploadArtifact(endless())
    waiting = asyncio.ensure_future(call)
    await started.wait()
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0.5)
    assert served.kept == set()
    # The gateway goes on, the upload's thread has ended.
    await create(served, data)


async def test_upload_needs_a_header_and_a_known_base(served: Gateway, adapter_dir: Path) -> None:
    chunk = adapter_pb2.UploadArtifactRequest(chunk=b"x")
    for messages, code in (
        (iter([chunk]), grpc.StatusCode.INVALID_ARGUMENT),
        (iter([]), grpc.StatusCode.INVALID_ARGUMENT),
        (upload(b"x", kind=0), grpc.StatusCode.INVALID_ARGUMENT),
        (upload(archive(adapter_dir), base=""), grpc.StatusCode.INVALID_ARGUMENT),
        (upload(archive(adapter_dir), base="unknown"), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.adapters.UploadArtifact(messages)
        assert caught.value.code() == code


async def test_repeated_request_id_returns_the_first_result(
    served: Gateway, adapter_dir: Path
) -> None:
    data = archive(adapter_dir)
    first = await create(served, data, request_id="once")
    again = await create(served, data, request_id="once")
    assert again == first
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(served, data, name="acme/other", request_id="once")
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert reason_of(caught.value) == "REQUEST_ID_REUSED"


async def test_taken_name_unknown_digest_and_bad_name_are_refused(
    served: Gateway, adapter_dir: Path
) -> None:
    data = archive(adapter_dir)
    await create(served, data)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(served, data)
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(served, data, name="No Tenant")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    unknown = "sha256:" + "0" * 64
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(served, data, name="acme/y", kit_digest=unknown)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.CreateAdapter(
            adapter_pb2.CreateAdapterRequest(name="acme/y", base=BASE, adapter_digest=unknown)
        )
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_validate_only_creates_nothing(served: Gateway, adapter_dir: Path) -> None:
    shown = (await create(served, archive(adapter_dir), validate_only=True)).adapter
    assert shown.versions[0].rank == 4
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.GetAdapter(adapter_pb2.GetAdapterRequest(name="acme/x"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_engine_that_refuses_a_version_keeps_it_out_of_the_catalog(
    served: Gateway, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(version: Any) -> None:
        raise InvalidArgumentError("this engine does not like it")

    monkeypatch.setattr(served.engines, "ensure_adapter", refuse)
    with pytest.raises(grpc.aio.AioRpcError, match="does not like") as caught:
        await create(served, archive(adapter_dir))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    listed = await served.adapters.ListAdapters(adapter_pb2.ListAdaptersRequest())
    assert list(listed.adapters) == []


async def test_pages_cover_all_adapters_once(served: Gateway, adapter_dir: Path) -> None:
    data = archive(adapter_dir)
    names = [f"{tenant}/a{index}" for tenant in ("acme", "zeta") for index in range(3)]
    for name in names:
        await create(served, data, name=name)
    stub = served.adapters
    seen, token = [], ""
    while True:
        page = await stub.ListAdapters(
            adapter_pb2.ListAdaptersRequest(page_size=2, page_token=token)
        )
        seen += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
        if not token:
            break
    assert seen == names
    zeta = await stub.ListAdapters(adapter_pb2.ListAdaptersRequest(tenant="zeta"))
    assert [adapter.name for adapter in zeta.adapters] == names[3:]
    models, token = [], ""
    while True:
        shown = await served.inference.ListModels(
            inference_pb2.ListModelsRequest(page_size=3, page_token=token)
        )
        models += [model.id for model in shown.models]
        token = shown.next_page_token
        if not token:
            break
    assert models == [BASE, *names]


def check_any_kit(folder: Path, shapes: Any, limits: Any) -> None:
    """A kit check as the transfer package plugs it in."""
    if not (folder / "kit.json").is_file():
        raise InvalidArgumentError("a kit needs kit.json")
    assert limits.max_rank == 16


async def test_kit_and_evaluation_set_are_attached(
    tmp_path: Path, base_dir: Path, adapter_dir: Path
) -> None:
    settings = gateway_settings(
        tmp_path / "state", base_dir, gateway={"kit_check": f"{__name__}:check_any_kit"}
    )
    kit = tmp_path / "kit"
    kit.mkdir()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "evaluation.jsonl").write_text('{"input": "a", "target": "b"}\n')
    async with gateway(settings, time.monotonic) as served:
        stub = served.adapters
        (kit / "other.txt").write_text("x")
        with pytest.raises(grpc.aio.AioRpcError, match=r"kit needs kit\.json"):
            await stub.UploadArtifact(upload(archive(kit), kind=KIT))
        (kit / "kit.json").write_text("{}")
        kit_digest = (await stub.UploadArtifact(upload(archive(kit), kind=KIT))).digest
        created = await create(served, archive(adapter_dir), kit_digest=kit_digest)
        assert created.adapter.kit_digest == kit_digest
        sent = upload(archive(evaluation), kind=EVALUATION, base="")
        evaluation_digest = (await stub.UploadArtifact(sent)).digest
        changed = await stub.ImportKit(
            adapter_pb2.ImportKitRequest(name="acme/x", evaluation_digest=evaluation_digest)
        )
        assert changed.adapter.kit_digest == kit_digest, "what is not named stays"
        assert changed.adapter.evaluation_digest == evaluation_digest
        assert changed.adapter.etag != created.adapter.etag


async def test_imports_at_the_same_time_do_not_undo_each_other(
    served: Gateway, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "evaluation.jsonl").write_text('{"input": "a", "target": "b"}\n')
    sent = upload(archive(evaluation), kind=EVALUATION, base="")
    evaluation_digest = (await served.adapters.UploadArtifact(sent)).digest
    await create(served, archive(adapter_dir), kit_digest=evaluation_digest)
    newer = "sha256:" + "1" * 64
    catalog = Catalog.open(served.settings.catalog_url)
    real = ArtifactStore.path

    def path(store: ArtifactStore, digest: str) -> Path:
        catalog.set_kit("acme/x", kit_digest=newer, evaluation_digest=None)
        return real(store, digest)

    monkeypatch.setattr(ArtifactStore, "path", path)
    changed = await served.adapters.ImportKit(
        adapter_pb2.ImportKitRequest(name="acme/x", evaluation_digest=evaluation_digest)
    )
    catalog.close()
    assert changed.adapter.kit_digest == newer
    assert changed.adapter.evaluation_digest == evaluation_digest


async def test_kits_are_refused_where_nothing_can_check_them(
    served: Gateway, adapter_dir: Path
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.adapters.UploadArtifact(upload(archive(adapter_dir), kind=KIT))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(caught.value) == "KITS_NOT_SUPPORTED"
