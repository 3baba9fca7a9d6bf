"""The Open Inference Protocol over gRPC, before the stand-in's gRPC side."""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import hashlib
import time

import grpc
import pytest
from prometheus_client import REGISTRY, generate_latest

from services.chassis.errors import from_status
from services.remote import catalog
from services.remote.providers import mistakes, oip_grpc
from services.remote.yaml_lines import CatalogError
from services.standin.app import StandIn
from services.standin.oauth import CLIENT_ID
from services.standin.oip_grpc import serve
from services.standin.settings import Settings
from tests.support import free_port
from tests.unit.remote.support import (
    VENDOR_TOKEN,
    features,
    make_item,
    provider_yaml,
    start_remote,
)
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


def provider(base_url: str, token_file) -> str:
    """The echo models over gRPC."""
    text = provider_yaml(base_url, token_file, extra="connect_timeout_s: 0.5")
    return text.replace("protocol: oip-http", "protocol: oip-grpc")


def served(keys, tmp_path, **options):
    """The service and the stand-in with a gRPC side."""
    return start_remote(keys, tmp_path, provider=provider, standin={"grpc_port": 0}, **options)


async def test_what_arrives_are_the_bytes_that_were_digested(keys, tmp_path) -> None:
    """Raw contents, byte for byte both ways; the record's facts fit what arrived."""
    async with served(keys, tmp_path) as remote:
        tensor = features(1.5, float("nan"), 0.0)
        (result,) = await remote.infer(make_item(keys, tensor))
        assert result.status.code == 0, result.status
        (entry,) = remote.standin.public.ledger.entries(10)
    assert list(result.outputs) == [tensor]
    assert tensor.raw in entry.body
    assert result.metering.wire_digest == hashlib.sha256(entry.body).digest()
    assert result.metering.bytes_out == len(entry.body)
    assert result.metering.bytes_in > 0
    assert result.metering.renderer_version == "oip-grpc/1"
    assert result.metering.reported_version == "1"
    assert result.metering.cost.nanos == 123_000
    assert result.metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


async def test_every_datatype_goes_and_comes_byte_for_byte(keys, tmp_path) -> None:
    """Also those that JSON has no form for."""
    async with served(keys, tmp_path) as remote:
        for datatype in tensors._CONTENTS:
            raw = (
                tensors.encode_bytes([b"\xff\x00", b""])
                if datatype == tensors.BYTES
                else b"\x01" * (2 * tensors._DTYPES[datatype].itemsize)
            )
            name = f"t_{tensors.datatype_name(datatype).lower()}"
            tensor = tensor_pb2.Tensor(name=name, datatype=datatype, shape=[1, 2], raw=raw)
            (result,) = await remote.infer(make_item(keys, tensor, model="echo_types"))
            assert result.status.code == 0, (name, result.status)
            assert list(result.outputs) == [tensor]


def test_the_table_covers_every_code() -> None:
    """All but OK."""
    assert set(oip_grpc._FAILURES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


async def test_the_table_of_codes_holds(keys, tmp_path) -> None:
    """Every row, without a word of the vendor's own."""
    async with served(keys, tmp_path) as remote:
        for code, failure in oip_grpc._FAILURES.items():
            fault = {"kind": "error", "code": str(code.value[0]), "message": "patient 17"}
            await remote.faults({"fault": fault})
            result = await remote.one()
            error = from_status(result.status)
            assert (type(error), error.reason) == (failure.kind, failure.reason), code
            assert "patient" not in str(result)
            assert result.metering.sent
        assert remote.posts == len(oip_grpc._FAILURES)  # no retry of our own


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("hang", "VENDOR_TIMEOUT"),
        ("truncated", "VENDOR_ANSWER_INVALID"),
        ("wrong_outputs", "VENDOR_OUTPUT_MISMATCH"),
    ],
)
async def test_nothing_that_is_no_whole_answer_passes_for_one(
    keys, tmp_path, fault, reason
) -> None:
    """Each has its reason, and no outputs."""
    async with served(keys, tmp_path) as remote:
        await remote.faults({"fault": fault})
        context = context_pb2.ItemContext(id="short", time_left_us=500_000)
        result = await remote.one(context=context)
    assert from_status(result.status).reason == reason
    assert not result.outputs


async def test_where_nobody_listens_nothing_was_sent(keys, tmp_path) -> None:
    """A retry may know that nothing left."""
    async with served(keys, tmp_path, base_url=f"http://127.0.0.1:{free_port()}") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_UNAVAILABLE"
    assert not result.metering.sent
    assert not result.metering.wire_digest


async def test_a_name_that_does_not_resolve_is_told_apart(keys, tmp_path) -> None:
    """As over HTTP; nothing was sent."""
    async with served(keys, tmp_path, base_url="https://vendor.invalid") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_DNS_FAILED"
    assert not result.metering.sent


async def test_a_connection_without_tls_that_we_trust_is_told_apart(keys, tmp_path) -> None:
    """A server that speaks no TLS gets nothing."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, served(keys, tmp_path, base_url=f"https://127.0.0.1:{port}") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_TLS_FAILED"
    assert not result.metering.sent


async def test_a_server_that_never_says_hello_is_a_connect_timeout(keys, tmp_path) -> None:
    """It takes the connection and is silent before anything may be sent."""
    ends = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        await ends.wait()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, served(keys, tmp_path, base_url=f"http://127.0.0.1:{port}") as remote:
        result = await remote.one()
        ends.set()
    assert from_status(result.status).reason == "VENDOR_CONNECT_TIMEOUT"
    assert not result.metering.sent


async def test_a_connection_that_breaks_under_a_call_is_told_apart(keys, tmp_path) -> None:
    """Sent, and what it cost is an estimate."""

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes.fromhex("000000040000000000"))  # HTTP/2's SETTINGS, with none
        seen = b""
        while b"input" not in seen and b"echo" not in seen:
            seen += await reader.read(4096)
        writer.transport.abort()

    server = await asyncio.start_server(breaks, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, served(keys, tmp_path, base_url=f"http://127.0.0.1:{port}") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_CONNECTION_LOST"
    assert result.metering.sent
    assert result.metering.cost.basis == decision_pb2.COST_BASIS_ESTIMATED


async def test_a_server_that_comes_back_is_asked_again(keys, tmp_path) -> None:
    """A failed connection is tried anew, without a restart."""
    port = free_port()
    async with served(keys, tmp_path, base_url=f"http://127.0.0.1:{port}") as remote:
        assert from_status((await remote.one()).status).reason == "VENDOR_UNAVAILABLE"
        server, _ = await serve(remote.standin.public, "127.0.0.1", port)
        try:
            async with asyncio.timeout(15):
                while (await remote.one()).status.code:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            await server.stop(0)


async def test_both_forms_of_a_time_to_wait_are_kept_to(keys, tmp_path) -> None:
    """RetryInfo of a server, and the metadata of a proxy."""
    when = email.utils.formatdate(time.time() + 300, usegmt=True)
    for wait in ("300", when):
        async with served(keys, tmp_path) as remote:
            await remote.faults({"fault": f"rate_limit;retry_after={wait}", "count": 1})
            for _ in range(2):
                error = from_status((await remote.one()).status)
                assert error.reason == "VENDOR_RATE_LIMITED"
                assert 290 < error.retry_after <= 300
            assert remote.posts == 1


async def test_headers_of_the_provider_file_go_as_metadata(keys, tmp_path) -> None:
    """Also the one that the token goes in."""

    def own(base_url: str, token_file) -> str:
        extra = "headers: {X-Route: blue}\nauth: {header: X-Own-Key, scheme: Key}"
        return provider(base_url, token_file) + extra

    async with start_remote(keys, tmp_path, provider=own, standin={"grpc_port": 0}) as remote:
        result = await remote.one()
        (entry,) = remote.standin.public.ledger.entries(10)
    assert entry.headers["x-route"] == "blue"
    assert entry.headers["x-own-key"].startswith("Key ")
    # The stand-in wants it elsewhere, and says so.
    assert from_status(result.status).reason == "VENDOR_TOKEN_REJECTED"


async def test_tokens_of_models_and_of_a_token_server_serve_here_too(keys, tmp_path) -> None:
    """One of its own for `echo`, and an exchange for the others; one taken back is exchanged anew."""
    async with StandIn(Settings(token=VENDOR_TOKEN)) as issuer:
        (tmp_path / "own.token").write_text(VENDOR_TOKEN)

        def own(base_url: str, token_file) -> str:
            exchange = (
                f"token: {{oauth2: {{token_url: {issuer.url}/oauth/token, client_id: {CLIENT_ID},"
                f" client_secret: {{file: {token_file}}}}}}}"
            )
            text = provider(base_url, token_file)
            text = text.replace(f"token: {{file: {token_file}}}", exchange)
            model = f'version: "1"\n    token: {{file: {tmp_path / "own.token"}}}'
            return text.replace('version: "1"', model, 1)

        async with start_remote(keys, tmp_path, provider=own, standin={"grpc_port": 0}) as remote:
            assert (await remote.one()).status.code == 0
            typed = tensor_pb2.Tensor(
                name="t_int8", datatype=tensor_pb2.DATATYPE_INT8, shape=[1, 1], raw=b"\x01"
            )
            exchanged = len(issuer.public.token_server.given)
            for _ in range(2):  # the stand-in knows only its own token server's
                (result,) = await remote.infer(make_item(keys, typed, model="echo_types"))
                assert from_status(result.status).reason == "VENDOR_TOKEN_REJECTED"
            assert len(issuer.public.token_server.given) > exchanged


async def test_a_token_that_ends_soon_is_warned_of(keys, tmp_path, caplog) -> None:
    """As over HTTP: the probe looks."""

    def soon(base_url: str, token_file) -> str:
        day = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=2)
        text = provider(base_url, token_file)
        return text.replace(f"{{file: {token_file}}}", f"{{file: {token_file}, expires: {day}}}")

    async with start_remote(keys, tmp_path, provider=soon, standin={"grpc_port": 0}) as remote:
        assert (await remote.one()).status.code == 0
    assert "ends soon" in caplog.text


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("query: {a: b}", "query"),
        ("cost_header: x-cost", "cost_header"),
        ("probe_path: /up", "probe_path"),
        ("max_connections: 3", "max_connections"),
        ("encoding: json", "encoding"),
    ],
)
def test_a_key_that_has_no_effect_is_a_mistake(tmp_path, line, place) -> None:
    """With file and line, as every other."""
    path = tmp_path / "providers" / "standin.yaml"
    path.parent.mkdir()
    path.write_text(provider("http://127.0.0.1:1", tmp_path / "t") + line)
    with pytest.raises(CatalogError, match=rf"standin.yaml:\d+: {place}: "):
        catalog.load(tmp_path, mistakes)


async def test_a_rotated_token_is_used_and_none_is_in_any_output(keys, tmp_path, caplog) -> None:
    """The file is read again; results, log and metrics hold no token."""
    caplog.set_level("DEBUG")
    results = []
    async with served(keys, tmp_path) as remote:
        for token, reason in (("stale", "VENDOR_TOKEN_REJECTED"), (VENDOR_TOKEN, "OK")):
            (tmp_path / "vendor.token").write_text(token)
            async with asyncio.timeout(10):
                while True:
                    results.append(await remote.one())
                    error = from_status(results[-1].status)
                    if (error.reason if error else "OK") == reason:
                        break
                    await asyncio.sleep(0.1)
    for place in (str(results), caplog.text, generate_latest(REGISTRY).decode()):
        assert VENDOR_TOKEN not in place


async def test_the_trace_goes_to_the_vendor(keys, tmp_path) -> None:
    """As gRPC metadata."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    context = context_pb2.ItemContext(id="t", trace=context_pb2.TraceContext(traceparent=trace))
    async with served(keys, tmp_path) as remote:
        await remote.infer(make_item(keys, context=context))
        (entry,) = remote.standin.public.ledger.entries(10)
    assert entry.headers["traceparent"].split("-")[1] == "a" * 32
    assert VENDOR_TOKEN not in str(entry.headers)
