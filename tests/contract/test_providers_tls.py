"""Vendors behind TLS: only a certificate that we trust, for this name, at this time, is spoken to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.chassis.errors import from_status
from services.remote import catalog
from services.remote.providers import mistakes
from services.remote.yaml_lines import CatalogError
from tests.contract.provider_cases import CASES, Case
from tests.contract.test_providers_contract import ask
from tests.support import MeshKeys
from tests.unit.remote.support import VENDOR_TOKEN, Remote, start_remote

both = pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("oip-http", "oip-grpc")], ids=str
)
HERE = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A throw-away certificate authority, with its certificate in a file."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    path: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        signed = _builder(subject, subject, key, days=30).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        certificate = signed.sign(key, hashes.SHA256())
        path = folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(key, certificate, path)

    def server(self, folder: Path, host: str = HERE, days: int = 30) -> ssl.SSLContext:
        """TLS of a server with a certificate for a host; below zero days it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = (
            x509.IPAddress(ipaddress.ip_address(host)) if host == HERE else x509.DNSName(host)
        )  # fmt: skip
        signed = _builder(_name(host), self.certificate.subject, key, days).add_extension(
            x509.SubjectAlternativeName([name]), critical=False
        )
        certificate = signed.sign(self.key, hashes.SHA256())
        path = folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=60))
        .not_valid_after(now + dt.timedelta(days=days))
    )


@contextlib.asynccontextmanager
async def behind_tls(
    context: ssl.SSLContext, behind: asyncio.Future[int], *, grpc: bool
) -> AsyncIterator[int]:
    """A port with TLS before another one, which may be known later."""
    context.set_alpn_protocols(["h2"] if grpc else ["http/1.1"])

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection(HERE, await behind)
        await asyncio.gather(pipe(reader, down), pipe(up, writer))

    server = await asyncio.start_server(through, HERE, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def served(
    case: Case, keys: MeshKeys, folder: Path, context: ssl.SSLContext, trusted: Path | None
) -> AsyncIterator[Remote]:
    """The service before a stand-in behind TLS."""
    extra = "" if trusted is None else f"ca_file: {trusted}"
    behind = asyncio.get_running_loop().create_future()
    async with behind_tls(context, behind, grpc=case.grpc) as port:
        url = f"https://{HERE}:{port}"
        standin = {"grpc_port": 0} if case.grpc else {}
        write = case.provider(extra=extra)
        async with start_remote(keys, folder, url, provider=write, standin=standin) as remote:
            behind.set_result(remote.standin.grpc_port if case.grpc else remote.standin.port)
            yield remote


@both
async def test_a_vendor_under_our_own_authority_is_asked(case: Case, keys, tmp_path) -> None:
    """As servers on the premises are: the provider file names the authority."""
    authority = Authority.make(tmp_path, "right")
    context = authority.server(tmp_path)
    async with served(case, keys, tmp_path, context, authority.path) as remote:
        result = await ask(case, remote)
        assert result.status.code == 0, result.status
        case.expected(result.outputs)
        assert remote.posts == 1


@both
@pytest.mark.parametrize("wrong", ["authority", "nobody", "host", "expired"])
async def test_what_we_cannot_trust_gets_nothing_and_is_told_apart(
    case: Case, keys, tmp_path, wrong
) -> None:
    """Another authority, none that the system knows, another host's name, a day too late."""
    right, other = Authority.make(tmp_path, "right"), Authority.make(tmp_path, "other")
    context = right.server(
        tmp_path,
        host="elsewhere.example" if wrong == "host" else HERE,
        days=-1 if wrong == "expired" else 30,
    )
    trusted = {"authority": other.path, "nobody": None}.get(wrong, right.path)
    async with served(case, keys, tmp_path, context, trusted) as remote:
        result = await ask(case, remote)
        assert remote.posts == 0
    assert from_status(result.status).reason == "VENDOR_TLS_FAILED"
    assert not result.metering.sent
    assert VENDOR_TOKEN not in str(result)


@pytest.mark.parametrize(
    ("base_url", "content"),
    [
        ("https://a.example", None),
        ("https://a.example", "no certificate"),
        ("http://127.0.0.1", ""),
    ],
)
def test_a_file_without_certificates_is_a_mistake(tmp_path, base_url, content) -> None:
    """Found when the catalog is read, with file and line; so is one where nothing is encrypted."""
    authority = tmp_path / "ca.pem"
    if content is not None:
        authority.write_text(content)
    folder = tmp_path / "providers"
    folder.mkdir()
    (tmp_path / "t").write_text("token")
    case = next(case for case in CASES if case.name == "oip-http")
    text = case.provider(extra=f"ca_file: {authority}")(base_url, tmp_path / "t")
    (folder / "standin.yaml").write_text(text)
    with pytest.raises(CatalogError, match=r"standin.yaml:\d+: ca_file: "):
        catalog.load(tmp_path, mistakes)
