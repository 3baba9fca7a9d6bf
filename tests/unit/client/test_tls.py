"""The clients over TLS and mTLS, with certificates of the test's own."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.client.fake_router import FakeRouter, serving
from twinpath.client import AsyncClient, RetryPolicy, Tls, errors

ONCE = RetryPolicy(attempts=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certify(folder: Path, name: str, issuer: tuple | None) -> tuple:
    """Write NAME.pem and NAME.key; return the certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = _name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(minutes=5))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca, server and client."""
    authority = _certify(tmp_path, "ca", None)
    _certify(tmp_path, "server", authority)
    _certify(tmp_path, "client", authority)
    return tmp_path


async def test_mtls(certificates: Path) -> None:
    """With root, certificate and key a call is answered; without a certificate it is not."""
    router = FakeRouter()
    pair = [(certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes()]
    root = (certificates / "ca.pem").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(pair[0], pair[1])], root_certificates=root, require_client_auth=True
    )
    async with serving(router, credentials) as address:
        ca = certificates / "ca.pem"
        ours = Tls(ca=ca, certificate=certificates / "client.pem", key=certificates / "client.key")
        async with AsyncClient(address, token="t", tls=ours) as client:
            assert (await client.infer("t")).decision_id == "d1"
        for wrong in (Tls(ca=ca), Tls(), None):
            async with AsyncClient(address, tls=wrong, retries=ONCE) as client:
                with pytest.raises(errors.UnavailableError):
                    await client.infer("t", timeout_s=5.0)
    assert len(router.requests) == 1
