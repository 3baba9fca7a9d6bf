"""Every row of the table of what goes wrong at a vendor, walked against the real stand-in."""

from __future__ import annotations

import asyncio
import socket

import pytest

from services.chassis.errors import FailedPreconditionError, from_status
from services.remote import catalog, failures
from services.remote.tokens import TokenSource
from tests.unit.remote.support import VENDOR_TOKEN, Remote, start_remote
from twinpath.common.v1 import context_pb2

NOW = 1_790_000_000.0

BY_STATUS = [
    (400, "INVALID_ARGUMENT", "VENDOR_REJECTED_INPUT"),
    (401, "FAILED_PRECONDITION", "VENDOR_TOKEN_REJECTED"),
    (403, "FAILED_PRECONDITION", "VENDOR_FORBIDDEN"),
    (404, "NOT_FOUND", "VENDOR_MODEL_UNKNOWN"),
    (405, "FAILED_PRECONDITION", "VENDOR_REFUSED"),
    (408, "UNAVAILABLE", "VENDOR_REQUEST_TIMEOUT"),
    (409, "ABORTED", "VENDOR_CONFLICT"),
    (413, "RESOURCE_EXHAUSTED", "VENDOR_TOO_LARGE"),
    (415, "FAILED_PRECONDITION", "VENDOR_REFUSED"),
    (422, "INVALID_ARGUMENT", "VENDOR_UNPROCESSABLE"),
    (429, "RESOURCE_EXHAUSTED", "VENDOR_RATE_LIMITED"),
    (500, "UNAVAILABLE", "VENDOR_ERROR"),
    (501, "UNIMPLEMENTED", "VENDOR_NOT_IMPLEMENTED"),
    (502, "UNAVAILABLE", "VENDOR_BAD_GATEWAY"),
    (503, "UNAVAILABLE", "VENDOR_UNAVAILABLE"),
    (504, "DEADLINE_EXCEEDED", "VENDOR_GATEWAY_TIMEOUT"),
    (529, "UNAVAILABLE", "VENDOR_OVERLOADED"),
    (599, "UNAVAILABLE", "VENDOR_ERROR"),
]

BY_FAULT = [
    ("reset", "UNAVAILABLE", "VENDOR_CONNECTION_LOST"),
    ("cut", "UNAVAILABLE", "VENDOR_CONNECTION_LOST"),
    ("truncated", "UNAVAILABLE", "VENDOR_ANSWER_INVALID"),
    ("wrong_content_type", "UNAVAILABLE", "VENDOR_ANSWER_INVALID"),
    ("garbage", "UNAVAILABLE", "VENDOR_ANSWER_INVALID"),
    ("error_inside", "UNAVAILABLE", "VENDOR_ERROR_INSIDE"),
    ("wrong_outputs", "UNAVAILABLE", "VENDOR_OUTPUT_MISMATCH"),
    ("hang", "DEADLINE_EXCEEDED", "VENDOR_TIMEOUT"),
    ("drip", "DEADLINE_EXCEEDED", "VENDOR_TIMEOUT"),
]


def test_the_table_below_covers_the_table_of_the_service() -> None:
    """No row of the service's table goes without a test."""
    assert failures.HTTP.keys() <= {status for status, _, _ in BY_STATUS}


@pytest.mark.parametrize(("status", "code", "reason"), BY_STATUS)
async def test_a_vendors_status_becomes_a_code_and_a_reason(
    remote: Remote, status, code, reason
) -> None:
    """Metered as sent, without a word of the vendor's own text, without a cost nobody reported."""
    await remote.faults({"fault": {"kind": "error", "status": status, "message": "patient 17"}})
    result = await remote.one()
    error = from_status(result.status)
    assert (error.code.name, error.reason) == (code, reason)
    assert error.metadata == {"provider": "standin", "http_status": str(status)}
    assert "patient" not in str(result)
    assert VENDOR_TOKEN not in str(result)
    assert result.metering.sent
    assert result.metering.bytes_out
    assert result.metering.bytes_in
    assert not result.metering.HasField("cost")
    assert remote.posts == 1  # no retry of our own


@pytest.mark.parametrize(("fault", "code", "reason"), BY_FAULT)
async def test_a_broken_answer_becomes_a_code_and_a_reason(
    remote: Remote, fault, code, reason
) -> None:
    """Nothing that is not a whole, right answer passes for one."""
    await remote.faults({"fault": fault})
    context = context_pb2.ItemContext(id="short", time_left_us=500_000)
    result = await remote.one(context=context)
    error = from_status(result.status)
    assert (error.code.name, error.reason) == (code, reason)
    assert not result.outputs
    assert result.metering.sent
    assert remote.posts == 1


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("99999999999", 3600.0),
        ("Mon, 21 Sep 2026 14:13:30 GMT", 10.0),
        ("Mon, 21 Sep 2026 14:13:10 GMT", 0.0),
        ("Mon, 21 Sep 2026 14:13:30 -0000", 10.0),
        ("soon", None),
        ("-3", None),
        ("", None),
        (None, None),
    ],
)
def test_both_kinds_of_retry_after_are_read(value, wait) -> None:
    """Seconds and HTTP dates, bounded; nonsense is no advice."""
    assert failures.retry_after(value, NOW) == wait


async def test_a_rate_limit_tells_the_router_when_to_come_back(remote: Remote) -> None:
    """It arrives as RetryInfo, and the service itself keeps to it."""
    await remote.faults({"fault": "rate_limit;retry_after=7", "count": 1})
    assert from_status((await remote.one()).status).retry_after == 7.0
    again = from_status((await remote.one()).status)
    assert again.reason == "VENDOR_RATE_LIMITED"
    assert again.metadata["origin"] == "remembered"
    assert 6 < again.retry_after <= 7
    assert remote.posts == 1  # nothing was sent before the vendor's "not before"


async def test_a_date_and_no_advice_are_read_too(remote: Remote) -> None:
    """A date becomes seconds; without advice there is none."""
    import email.utils
    import time

    await remote.faults({"fault": "rate_limit"})
    assert from_status((await remote.one()).status).retry_after is None
    when = email.utils.formatdate(time.time() + 100, usegmt=True)
    await remote.faults({"fault": f"rate_limit;retry_after={when}"})
    assert 90 < from_status((await remote.one()).status).retry_after <= 100


async def test_a_refused_connection_is_told_and_nothing_was_sent(remote: Remote) -> None:
    """An outage of the vendor: UNAVAILABLE, and a retry knows that nothing left."""
    await remote.faults({"fault": "outage"})
    result = await remote.one()
    error = from_status(result.status)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "VENDOR_UNAVAILABLE")
    assert not result.metering.sent
    assert not result.metering.wire_digest
    assert result.metering.bytes_out == 0


async def test_a_name_that_does_not_resolve_is_told_apart(keys, tmp_path) -> None:
    """DNS failures have their own reason."""
    url = "https://vendor.invalid"
    async with start_remote(keys, tmp_path, url) as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_DNS_FAILED"
    assert not result.metering.sent


async def test_a_connection_without_tls_that_we_trust_is_told_apart(keys, tmp_path) -> None:
    """A server that does not speak TLS gets nothing, and TLS failures have their own reason."""
    received = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4096))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, start_remote(keys, tmp_path, f"https://127.0.0.1:{port}") as remote:
        result = await remote.one()
    assert from_status(result.status).reason == "VENDOR_TLS_FAILED"
    assert not result.metering.sent
    assert not any(VENDOR_TOKEN.encode() in data for data in received)


async def test_a_vendor_that_does_not_take_the_connection_in_time_is_told_apart(
    keys, tmp_path
) -> None:
    """A full backlog: connecting has its own time-out, and nothing was sent."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(8):  # until the kernel completes no more handshakes
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        try:
            url, extra = f"http://127.0.0.1:{port}", "connect_timeout_s: 0.2"
            async with start_remote(keys, tmp_path, url, extra=extra) as remote:
                result = await remote.one(timeout=5.0)
        finally:
            for filler in fillers:
                filler.close()
    assert from_status(result.status).reason == "VENDOR_CONNECT_TIMEOUT"
    assert not result.metering.sent


OK_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ODD_ANSWERS = [
    (b"SSH-2.0-OpenSSH\r\n\r\n", "VENDOR_ANSWER_INVALID"),
    (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "VENDOR_REDIRECT"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "VENDOR_ANSWER_INVALID"),
    (OK_JSON + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "VENDOR_ANSWER_INVALID"),
    (OK_JSON + b"Content-Length: 4096\r\n\r\n" + b" " * 4096, "VENDOR_ANSWER_INVALID"),
    (b"", "VENDOR_CONNECTION_LOST"),
]


@pytest.mark.parametrize(("answer", "reason"), ODD_ANSWERS)
async def test_a_server_that_is_no_such_vendor_is_told(keys, tmp_path, answer, reason) -> None:
    """Other protocols, redirects, odd successes, compression, too much: each has its reason."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with server, start_remote(keys, tmp_path, url, max_answer_bytes=1024) as remote:
        result = await remote.one()
    assert from_status(result.status).reason == reason
    assert result.metering.sent


@pytest.mark.parametrize("token", [{"file": "/no/such/file"}, {"env": "NO_SUCH_VARIABLE"}])
def test_a_missing_token_is_told(token) -> None:
    """Not the caller's fault, and not for the caller to repair: FAILED_PRECONDITION."""
    provider = catalog.Provider.model_construct(name="acme", token=catalog.Token(**token))
    with pytest.raises(FailedPreconditionError) as caught:
        TokenSource(provider.name, provider.token).token()
    assert caught.value.reason == "VENDOR_TOKEN_MISSING"


@pytest.mark.parametrize("value", ["", "  ", "two\nlines", "sch\u00f6n"])
def test_a_token_that_no_header_can_hold_counts_as_missing(monkeypatch, value) -> None:
    """Nothing can be injected into the request by way of the token."""
    monkeypatch.setenv("ACME_TOKEN", value)
    provider = catalog.Provider.model_construct(name="acme", token=catalog.Token(env="ACME_TOKEN"))
    with pytest.raises(FailedPreconditionError):
        TokenSource(provider.name, provider.token).token()


async def test_a_rotated_token_is_used(remote: Remote, tmp_path) -> None:
    """The file is read again when it changes, both ways."""
    path = tmp_path / "vendor.token"
    for token, reason in (("stale", "VENDOR_TOKEN_REJECTED"), (VENDOR_TOKEN, "OK")):
        path.write_text(token)
        async with asyncio.timeout(10):
            while True:
                error = from_status((await remote.one()).status)
                if (error.reason if error else "OK") == reason:
                    break
                await asyncio.sleep(0.1)


async def test_our_token_is_in_no_log_no_answer_and_no_metric(remote: Remote, caplog) -> None:
    """Planted, and searched for in all that comes out, on good ways and bad ones."""
    from prometheus_client import REGISTRY, generate_latest

    caplog.set_level("DEBUG")
    results = [await remote.one()]
    for fault in ("error;status=401", "reset", "garbage", "error_inside"):
        await remote.faults({"fault": fault})
        results.append(await remote.one())
    assert VENDOR_TOKEN not in str(results)
    assert VENDOR_TOKEN not in caplog.text
    assert VENDOR_TOKEN.encode() not in generate_latest(REGISTRY)
