"""mTLS from end to end, with a CA and certificates of the test's own."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.chassis import call as calls
from services.chassis import channels, errors
from services.chassis.settings import ServiceSettings
from tests.support import MeshKeys, client, refusal, settings_for, start_service
from tests.unit.chassis.probe import build_probe, request
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

Stub = inference_pb2_grpc.InferenceStub


@dataclass(frozen=True)
class Authority:
    """A CA; `path` is its certificate."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    path: Path

    def issue(self, name: str, *, service: str = "") -> dict[str, Path]:
        """Return settings with a certificate for 127.0.0.1: a service's, or just a name's."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if service:
            names.append(x509.UniformResourceIdentifier(f"spiffe://twinpath/service/{service}"))
        certificate = (
            _builder(name, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = name.replace(":", "-")
        return {
            "tls_cert": _write(self.folder / f"{file}.crt", _pem(certificate)),
            "tls_key": _write(self.folder / f"{file}.key", _pem(key)),
            "tls_ca": self.path,
        }


def _builder(name: str, issuer: x509.Name | None, key: Any) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


def _pem(thing: Any) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    data: bytes = thing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return data


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def authority(folder: Path) -> Authority:
    """Make a CA."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("test CA", None, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(folder, key, certificate, _write(folder / "ca.crt", _pem(certificate)))


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """The mesh's CA."""
    return authority(tmp_path / "ca")


async def test_a_certificate_is_a_services_identity(keys: MeshKeys, ca: Authority) -> None:
    """Without any token, the SPIFFE name of the peer's certificate is who it is."""
    seen: list[str] = []

    async def infer(_: Any, __: Any) -> Any:
        call = calls.current()
        assert call is not None
        seen.append(call.identity.subject)
        return inference_pb2.InferResponse()

    server = settings_for(ServiceSettings, keys, **ca.issue("local", service="local"))
    caller = settings_for(ServiceSettings, keys, **ca.issue("router", service="router"))
    async with (
        start_service(server, build_probe(infer)) as running,
        channels.connect(running.address, caller) as channel,
    ):
        await Stub(channel).Infer(request())
    assert seen == ["service:router"]


@pytest.mark.parametrize(
    ("name", "service", "kind"),
    [
        ("features", "features", errors.PermissionDeniedError),
        ("ann", "", errors.PermissionDeniedError),
        ("service:router", "", errors.UnauthenticatedError),
        ("role:operator", "", errors.UnauthenticatedError),
    ],
)
async def test_the_table_counts_for_certificates_too(
    keys: MeshKeys, ca: Authority, name: str, service: str, kind: type[errors.ServiceError]
) -> None:
    """Another service, an end caller, and common names that pose as more are refused."""
    server = settings_for(ServiceSettings, keys, **ca.issue("local", service="local"))
    caller = settings_for(ServiceSettings, keys, **ca.issue(name, service=service))
    async with (
        start_service(server, build_probe()) as running,
        channels.connect(running.address, caller) as channel,
    ):
        assert type(await refusal(Stub(channel).Infer(request()))) is kind


@pytest.mark.parametrize("thief_name", ["features", "ann", "service:router"])
async def test_a_stolen_token_does_not_make_another_service(
    keys: MeshKeys, ca: Authority, thief_name: str
) -> None:
    """A service's token counts only with that service's certificate; an end caller's does alone."""
    server = settings_for(ServiceSettings, keys, **ca.issue("local", service="local"))
    service = thief_name if thief_name == "features" else ""
    thief = settings_for(
        ServiceSettings, keys, service="router", **ca.issue(thief_name, service=service)
    )
    both = settings_for(
        ServiceSettings, keys, service="router", **ca.issue("router", service="router")
    )
    operator = settings_for(
        ServiceSettings,
        keys,
        token_file=keys.token_file("ann", roles=["operator"]),
        **ca.issue("ann"),
    )
    async with start_service(server, build_probe()) as running:
        async with channels.connect(running.address, thief) as channel:
            error = await refusal(Stub(channel).Infer(request()))
        async with channels.connect(running.address, both) as channel:
            await Stub(channel).Infer(request())
        async with channels.connect(running.address, operator) as channel:
            await Stub(channel).Describe(inference_pb2.DescribeRequest())
    assert (type(error), error.reason) == (errors.UnauthenticatedError, "IDENTITY_MISMATCH")


async def test_who_has_no_certificate_of_our_ca_does_not_get_a_connection(
    keys: MeshKeys, ca: Authority, tmp_path: Path
) -> None:
    """Plain text, no certificate, and another CA's: no call reaches the service."""
    called: list[bool] = []

    async def infer(_: Any, __: Any) -> Any:
        called.append(True)
        return inference_pb2.InferResponse()

    server = settings_for(ServiceSettings, keys, **ca.issue("local", service="local"))
    other = authority(tmp_path / "other")
    stranger = {**other.issue("router", service="router"), "tls_ca": ca.path}
    settings = settings_for(ServiceSettings, keys, **stranger)
    bare = grpc.ssl_channel_credentials(root_certificates=ca.path.read_bytes())
    token = keys.token("service:router")
    metadata = (("authorization", f"Bearer {token}"),)
    async with start_service(server, build_probe(infer)) as running:
        async with client(running.address, token) as channel:
            plain = await refusal(Stub(channel).Infer(request(), timeout=20))
        async with grpc.aio.secure_channel(running.address, bare) as channel:
            call = Stub(channel).Infer(request(), timeout=20, metadata=metadata)
            nobody = await refusal(call)
        async with channels.connect(running.address, settings) as channel:
            strange = await refusal(Stub(channel).Infer(request(), timeout=20))
    assert {type(e) for e in (plain, nobody, strange)} == {errors.UnavailableError}
    assert called == []


async def test_a_client_does_not_speak_to_a_server_of_another_ca(
    keys: MeshKeys, ca: Authority, tmp_path: Path
) -> None:
    """Identity goes both ways: a service at the right address with a wrong certificate."""
    other = authority(tmp_path / "other")
    mine = {**other.issue("local", service="local"), "tls_ca": ca.path}
    server = settings_for(ServiceSettings, keys, **mine)
    caller = settings_for(ServiceSettings, keys, **ca.issue("router", service="router"))
    async with (
        start_service(server, build_probe()) as running,
        channels.connect(running.address, caller) as channel,
    ):
        error = await refusal(Stub(channel).Infer(request(), timeout=20))
    assert type(error) is errors.UnavailableError
