"""Tokens from an exchange are refreshed ahead; the end of the others is warned of."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import time

import aiohttp
import pytest

from services.chassis.errors import from_status
from services.remote import meters
from services.remote.credentials import Credentials
from services.remote.tokens import expiry_of
from services.standin.oauth import CLIENT_ID
from tests.unit.remote.support import VENDOR_TOKEN, Remote, provider_yaml, start_remote
from twinpath.common.v1 import context_pb2


def jwt(**claims: object) -> str:
    """A JSON web token that nobody signed."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part(claims)}.c2ln"


@pytest.mark.parametrize(
    ("token", "stated", "ends"),
    [
        (jwt(exp=1_800_000_000), None, 1_800_000_000.0),
        (jwt(exp=1_800_000_000), dt.date(2030, 1, 1), 1_800_000_000.0),
        (jwt(sub="x"), None, None),
        ("opaque", dt.date(2026, 1, 1), 1_767_225_600.0),
        ("opaque", None, None),
        ("a.b.c", None, None),
        ("..", None, None),
    ],
)
def test_a_tokens_end_is_its_own_word_or_the_files(token, stated, ends) -> None:
    """A JSON web token says it itself; nonsense says nothing."""
    assert expiry_of(token, stated) == ends


class HeldClock:
    """A clock that stands still until it is told."""

    now_us = 1_790_000_000_000_000

    def unix_us(self) -> int:
        """The held time."""
        return self.now_us

    def monotonic(self) -> float:
        """The held time."""
        return self.now_us / 1e6


async def test_a_token_that_ends_soon_is_warned_of_once_a_day(tmp_path, caplog) -> None:
    """A week before; the gauge has the moment, and nothing shows the token."""
    from services.remote.catalog import Provider

    clock = HeldClock()
    ends = clock.now_us // 1_000_000 + 8 * 86_400
    (tmp_path / "t").write_text(jwt(exp=ends))
    entry = {"name": "x", "datatype": "FP32", "shape": [1]}
    provider = Provider.model_validate(
        {
            "name": "acme", "protocol": "oip-http", "base_url": "https://acme.example",
            "token": {"file": tmp_path / "t"}, "region": "eu", "max_data_class": "internal",
            "models": [{"name": "m", "version": "1", "inputs": [entry], "outputs": [entry]}],
        }
    )  # fmt: skip
    async with aiohttp.ClientSession() as session:
        credentials = Credentials(provider, object(), clock, session)
        for day, warnings in ((0, 0), (2, 1), (2.5, 1), (3.1, 2)):
            clock.now_us = HeldClock.now_us + int(day * 86_400e6)
            credentials.watch_expiry()
            assert caplog.text.count("ends soon") == warnings, day
    assert meters.TOKEN_EXPIRES.labels("acme", "")._value.get() == ends
    assert (tmp_path / "t").read_text() not in caplog.text


def oauth_provider(base_url: str, token_file) -> str:
    """The echo models behind client credentials."""
    config = (
        f"{{oauth2: {{token_url: {base_url}/oauth/token, client_id: {CLIENT_ID},"
        f" client_secret: {{file: {token_file}}}}}}}"
    )
    return provider_yaml(base_url, token_file).replace(f"{{file: {token_file}}}", config, 1)


def oauth(keys, tmp_path, lifetime_s: float, **fields):
    """The service with client credentials; the probes are held back, so that items count."""
    fields = {"probe_interval_s": 3600.0, **fields}
    return start_remote(
        keys, tmp_path, provider=oauth_provider, standin={"oauth_lifetime_s": lifetime_s}, **fields
    )


async def reason(remote: Remote) -> str:
    """Why an item failed; empty if it did not."""
    error = from_status((await remote.one()).status)
    return error.reason if error else ""


async def without_token(remote: Remote) -> None:
    """Have the vendor take back what was given: the next call needs an exchange."""
    for token in remote.standin.public.token_server.given:
        remote.standin.public.token_server.given[token] = 0.0
    assert await reason(remote) == "VENDOR_TOKEN_REJECTED"


async def test_one_exchange_serves_many_calls(keys, tmp_path) -> None:
    """Also those that arrive at once."""
    async with oauth(keys, tmp_path, 300.0) as remote:
        assert await asyncio.gather(*(reason(remote) for _ in range(10))) == [""] * 10
        assert len(remote.standin.public.token_server.given) == 1


async def test_a_token_is_refreshed_before_it_ends_and_nobody_waits(keys, tmp_path) -> None:
    """Over several lifetimes every call is answered."""
    async with oauth(keys, tmp_path, 1.0) as remote:
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            assert await reason(remote) == ""
            await asyncio.sleep(0.02)
        assert len(remote.standin.public.token_server.given) >= 3


async def test_while_the_token_server_is_away_the_token_serves_on(keys, tmp_path) -> None:
    """Until it ends; then the reason says that there is none."""
    async with oauth(keys, tmp_path, 2.0) as remote:
        assert await reason(remote) == ""
        remote.standin.public.token_server.available = False
        assert await reason(remote) == ""
        async with asyncio.timeout(10):
            while await reason(remote) != "VENDOR_TOKEN_MISSING":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        remote.standin.public.token_server.available = True
        assert await reason(remote) == ""


async def test_a_token_that_the_vendor_takes_back_is_exchanged_anew(keys, tmp_path) -> None:
    """One call learns of it, the next has a new one."""
    async with oauth(keys, tmp_path, 300.0) as remote:
        assert await reason(remote) == ""
        await without_token(remote)
        assert await reason(remote) == ""


async def test_a_token_that_may_not_use_a_model_is_no_worse_a_token(keys, tmp_path) -> None:
    """403 is about a right: another token of the same client would have no other."""
    async with oauth(keys, tmp_path, 300.0) as remote:
        await remote.faults({"fault": "error;status=403", "count": 3})
        for _ in range(3):
            assert await reason(remote) == "VENDOR_FORBIDDEN"
        assert await reason(remote) == ""
        assert len(remote.standin.public.token_server.given) == 1


async def test_a_token_server_that_hangs_is_told_within_the_callers_time(keys, tmp_path) -> None:
    """The exchange is part of the attempt: one deadline over both, and a reason of its own."""
    async with oauth(keys, tmp_path, 300.0) as remote:
        await without_token(remote)
        remote.standin.public.token_server.delay_s = 60.0
        posts = remote.posts
        context = context_pb2.ItemContext(id="short", time_left_us=400_000)
        result = await remote.one(context=context)
        error = from_status(result.status)
        assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "VENDOR_TOKEN_TIMEOUT")
        assert not result.metering.sent
        assert result.metering.latency_us > 0
        assert remote.posts == posts + 1  # the one to the token server


async def test_what_the_exchange_took_is_gone_from_the_vendors_time(keys, tmp_path) -> None:
    """A slow token server and a vendor that hangs: told before the caller stops to wait."""
    async with oauth(keys, tmp_path, 300.0) as remote:
        await without_token(remote)
        remote.standin.public.token_server.delay_s = 0.4
        await remote.faults({"fault": "hang"})
        result = await remote.one(timeout=0.8)
        assert from_status(result.status).reason == "VENDOR_TIMEOUT"
        assert result.metering.sent


async def test_neither_secret_nor_token_is_in_any_output(keys, tmp_path, caplog) -> None:
    """Of the exchange: the client's secret, and the tokens given for it."""
    from prometheus_client import REGISTRY, generate_latest

    caplog.set_level("DEBUG")
    async with oauth(keys, tmp_path, 300.0) as remote:
        results = [await remote.one()]
        remote.standin.public.token_server.given.clear()
        results.append(await remote.one())
        remote.standin.public.token_server.available = False
        results.append(await remote.one())
        planted = [VENDOR_TOKEN, *remote.standin.public.token_server.given]
    for place in (str(results), caplog.text, generate_latest(REGISTRY).decode()):
        for secret in planted:
            assert secret not in place
