"""TLS on both of the gateway's ports, with a certificate made on the spot."""

import datetime
import ipaddress
import ssl
import time
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lorebase.v1 import inference_pb2, inference_pb2_grpc

from .gateway_harness import BASE, gateway, gateway_settings
from .tiny_models import make_tiny_base


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key files of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lorebase test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


async def test_both_ports_speak_tls_and_nothing_else(
    tmp_path: Path, base_dir: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    settings = gateway_settings(
        tmp_path, base_dir, serving={"tls": {"cert": str(cert), "key": str(key)}}
    )
    request = inference_pb2.GenerateRequest(model=BASE, prompt="say ")
    async with gateway(settings, time.monotonic) as served:
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        async with grpc.aio.secure_channel(served.target, credentials) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            assert (await stub.Generate(request, timeout=10)).text == "hello"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.inference.Generate(request, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        trusted = ssl.create_default_context(cafile=str(cert))
        url = served.url.replace("http:", "https:")
        async with httpx.AsyncClient(base_url=url, verify=trusted) as http:
            body = {"model": BASE, "prompt": "say "}
            answer = await http.post("/v1/completions", json=body)
            assert answer.json()["choices"][0]["text"] == "hello"
        async with httpx.AsyncClient(base_url=served.url) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/health")
