"""The Open Inference Protocol v2 over HTTP with a bearer token (KServe, MLServer, Triton, …)."""

from __future__ import annotations

import hashlib
from decimal import Decimal, InvalidOperation
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp

from services.chassis.clock import Clock
from services.remote import failures
from services.remote.catalog import Model, Provider
from services.remote.oip_body import (
    HEADER_LENGTH,
    RENDERERS,
    AnswerError,
    ErrorInsideError,
    parse,
)
from services.remote.provider import Answer, Ask
from services.remote.tensor_fit import violations
from services.remote.tokens import TokenSource
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2

# The last part of the caller's time is ours, to tell what happened: without it the call would be
# over at the same moment, and its metering lost.
_MARGIN_S = 0.025
_MARGIN_SHARE = 0.1
_NEVER_ROUND_UP = 1e9


class OipHttp:
    """One vendor that speaks the protocol. One pool of connections, no retries, no redirects."""

    streaming = False

    def __init__(self, provider: Provider, clock: Clock, max_answer_bytes: int) -> None:
        self._provider = provider
        self._clock = clock
        self._max_answer = max_answer_bytes
        self._tokens = TokenSource(provider)
        self._render = RENDERERS[provider.encoding]
        self._base = provider.base_url.rstrip("/")
        tracing = aiohttp.TraceConfig(_Context)
        tracing.on_connection_create_end.append(_mark_sent)
        tracing.on_connection_reuseconn.append(_mark_sent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=provider.max_connections, ttl_dns_cache=10, keepalive_timeout=30
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[tracing],
        )

    async def infer(self, ask: Ask, metering: inference_pb2.Metering) -> Answer:
        """See `Adapter`."""
        body = self._render(ask.model, ask.tensors)
        digest = hashlib.sha256(body.content).digest()
        headers = {**ask.headers, **body.headers, **self._headers()}
        url = (
            f"{self._base}/v2/models/{quote(ask.model.name, safe='')}"
            f"/versions/{quote(ask.model.version, safe='')}/infer"
        )
        try:
            async with self._session.post(
                url,
                data=body.content,
                headers=headers,
                timeout=self._timeout(ask.time_left_s),
                allow_redirects=False,
                trace_request_ctx=metering,
            ) as response:
                if response.status != 200:
                    await self._read(response, metering)
                    self._bill(ask.model, response, metering, answered=False)
                    raise failures.of_status(
                        self._provider.name,
                        response.status,
                        response.headers,
                        self._clock.unix_us() / 1e6,
                    )
                content = await self._read(response, metering)
                self._bill(ask.model, response, metering, answered=True)
                return self._answer(ask.model, response, content, metering)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise failures.of_exception(self._provider.name, error) from error
        finally:
            if metering.sent:
                metering.bytes_out = len(body.content)
                metering.wire_digest = digest
                metering.renderer_version = body.renderer

    async def probe(self, time_left_s: float) -> None:
        """See `Adapter`."""
        try:
            async with self._session.get(
                f"{self._base}/v2/health/ready",
                headers=self._headers(),
                timeout=self._timeout(time_left_s),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise failures.of_status(
                        self._provider.name,
                        response.status,
                        response.headers,
                        self._clock.unix_us() / 1e6,
                    )
        except (aiohttp.ClientError, OSError) as error:
            raise failures.of_exception(self._provider.name, error) from error

    async def aclose(self) -> None:
        """See `Adapter`."""
        await self._session.close()

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._tokens.token()}",
            "Accept-Encoding": "identity",  # bytes are metered and bounded as they come
            "User-Agent": "twinpath",
        }

    def _timeout(self, time_left_s: float) -> aiohttp.ClientTimeout:
        total = min(usable_s(time_left_s), self._provider.timeout_s)
        return aiohttp.ClientTimeout(
            total=total,
            sock_connect=self._provider.connect_timeout_s,
            ceil_threshold=_NEVER_ROUND_UP,
        )

    async def _read(
        self, response: aiohttp.ClientResponse, metering: inference_pb2.Metering
    ) -> bytes:
        """Read the body, bounded; what came counts even if the rest does not."""
        parts = []
        async for part in response.content.iter_any():
            metering.bytes_in += len(part)
            if metering.bytes_in > self._max_answer:
                raise failures.ANSWER_INVALID.error(self._provider.name, rule="too_large")
            parts.append(part)
        return b"".join(parts)

    def _answer(
        self,
        model: Model,
        response: aiohttp.ClientResponse,
        content: bytes,
        metering: inference_pb2.Metering,
    ) -> Answer:
        name = self._provider.name
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise failures.ANSWER_INVALID.error(name, rule="content_encoding")
        try:
            parsed = parse(content, response.content_type, response.headers.get(HEADER_LENGTH))
        except AnswerError as error:
            raise failures.ANSWER_INVALID.error(name, rule=error.rule) from None
        except ErrorInsideError:
            raise failures.ANSWER_IS_ERROR.error(name) from None
        metering.reported_version = parsed.version[:128]
        if violations(parsed.outputs, model.outputs, "outputs"):
            raise failures.OUTPUT_MISMATCH.error(name)
        return Answer(parsed.outputs)

    def _bill(
        self,
        model: Model,
        response: aiohttp.ClientResponse,
        metering: inference_pb2.Metering,
        *,
        answered: bool,
    ) -> None:
        """Fill in the cost: as the vendor reports it, else by the price in the catalog.

        Of a call that the vendor refused nothing is known unless it says so.
        """
        header = self._provider.cost_header
        reported = None if header is None else nanos_of_usd(response.headers.get(header))
        if reported is not None:
            basis = decision_pb2.COST_BASIS_REPORTED
        elif answered and model.price is not None:
            bytes_out = int(response.request_info.headers.get("Content-Length", "0"))
            reported = model.price.estimate(bytes_out)
            basis = decision_pb2.COST_BASIS_ESTIMATED
        else:
            return
        metering.cost.currency_code = "USD"
        metering.cost.nanos = reported
        metering.cost.basis = basis


def usable_s(time_left_s: float) -> float:
    """Return how much of the caller's time the vendor may have, in seconds."""
    return time_left_s - min(_MARGIN_S, time_left_s * _MARGIN_SHARE)


def nanos_of_usd(value: str | None) -> int | None:
    """Read an amount of US dollars as billionths; None if it is absent or makes no sense."""
    if value is None:
        return None
    try:
        nanos = Decimal(value.strip()) * 10**9
    except InvalidOperation:
        return None
    if not nanos.is_finite() or not 0 <= nanos < 2**63:
        return None
    return int(nanos.to_integral_value())


class _Context(SimpleNamespace):
    """What the HTTP client's signals get: the metering of the request that they are about."""

    def __init__(self, trace_request_ctx: inference_pb2.Metering | None = None) -> None:
        super().__init__(metering=trace_request_ctx)


async def _mark_sent(_: object, context: SimpleNamespace, __: object) -> None:
    """From here on bytes may leave: there is a connection for this request."""
    if context.metering is not None:
        context.metering.sent = True
