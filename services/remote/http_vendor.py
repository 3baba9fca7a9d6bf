"""One vendor that speaks HTTP: one pool of connections, no retries, no redirects, all metered."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.remote import failures, tracing
from services.remote.catalog import Model, Provider
from services.remote.credentials import Credentials
from services.remote.prices import day_of, guess_tokens, price_on
from services.remote.provider import Answer, AnswerStream, Ask, Dialect, Tensors
from services.remote.tensor_fit import violations
from services.remote.tls import tls
from services.remote.vendor_pace import Pace
from services.remote.wire import (
    EVENTS_TYPE,
    AnswerError,
    Body,
    CutAnswerError,
    ErrorInsideError,
    EventReader,
    Parsed,
    Reply,
    Usage,
)
from twinpath.common.v1 import decision_pb2
from twinpath.inference.v1 import inference_pb2

# The last part of the caller's time is ours, to tell what happened: without it the call would be
# over at the same moment, and its metering lost.
_MARGIN_S = 0.025
_MARGIN_SHARE = 0.1
_NEVER_ROUND_UP = 1e9
_FILTERED = inference_pb2.FINISH_REASON_CONTENT_FILTER
_NOTHING_SAID: Mapping[str, str] = {}


class HttpVendor:
    """See `provider.Adapter`; what is particular to a protocol is the dialect's."""

    def __init__(
        self, provider: Provider, dialect: Dialect, clock: Clock, max_answer_bytes: int
    ) -> None:
        self._provider = provider
        self._dialect = dialect
        self._gen_ai: tracing.GenAi | None = getattr(dialect, "gen_ai", None)
        self._clock = clock
        self._max_answer = max_answer_bytes
        self._base = provider.base_url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=provider.max_connections, ttl_dns_cache=10, keepalive_timeout=30
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._url = lru_cache(maxsize=256)(self._whole_url)
        self._credentials = Credentials(provider, dialect, clock, self._session)
        self._pace = Pace(provider, clock)
        self._tls = tls(provider.ca_file)

    def streams(self, model: Model) -> bool:
        """See `Adapter`."""
        return self._dialect.streams(model)

    def longest_answer(self, model: Model) -> int:
        """See `Adapter`."""
        return self._dialect.longest_answer(model)

    async def infer(self, ask: Ask, metering: inference_pb2.Metering) -> Answer:
        """See `Adapter`."""
        body = self._dialect.body(ask, stream=False)
        async with self._exchange(ask, body, metering) as response:
            if response is None:
                return Answer((), _FILTERED)
            content = await self._read(response, metering)
            try:
                parsed = self._dialect.answer(ask, _reply(response, content))
            except (AnswerError, ErrorInsideError, CutAnswerError) as error:
                self._bill(ask.model, response.headers, metering, None, len(body.content))
                raise self._broken(error) from None
            self._meter(ask.model, response.headers, metering, parsed, len(body.content))
        self._check(ask.model, parsed.outputs, parsed.finish_reason)
        return Answer(parsed.outputs, parsed.finish_reason)

    async def stream(self, ask: Ask, metering: inference_pb2.Metering) -> AnswerStream:
        """See `Adapter`."""
        body = self._dialect.body(ask, stream=True)
        async with self._exchange(ask, body, metering) as response:
            if response is None:
                yield Answer((), _FILTERED)
                return
            # Until the vendor's own count comes, its cost is an estimate.
            parsed: Parsed | None = None
            try:
                if response.content_type != EVENTS_TYPE:
                    await self._not_a_stream(ask, response, metering)
                decoder, reader = self._dialect.decoder(ask), EventReader()
                async for part in self._parts(response, metering):
                    for event in reader.feed(part):
                        outputs = decoder.feed(event)
                        if outputs:
                            yield outputs
                try:
                    parsed = decoder.finish()
                except AnswerError:
                    raise failures.CUT_STREAM.error(self._provider.name) from None
            except (AnswerError, ErrorInsideError, CutAnswerError) as error:
                raise self._broken(error) from None
            finally:
                if parsed is None:
                    self._bill(ask.model, response.headers, metering, None, len(body.content))
                else:
                    self._meter(ask.model, response.headers, metering, parsed, len(body.content))
        yield Answer((), parsed.finish_reason)

    @property
    def dialect(self) -> Dialect:
        """The protocol, for what is asked in batches."""
        return self._dialect

    async def fetch(self, model: Model, body: Body, time_left_s: float) -> bytes:
        """Ask for something beside an answer: a file, a batch. Time-outs and failures as `infer`.

        Raises:
            ServiceError: A row of `failures`.
        """
        metering = inference_pb2.Metering()
        with tracing.errand(self._provider.name, body.path):
            ask = Ask(model, (), time_left_s, {})
            async with self._exchange(ask, body, metering) as response:
                if response is None:
                    raise failures.REFUSED_REQUEST.error(self._provider.name)
                return await self._read(response, metering)

    def read_one_of_many(
        self, ask: Ask, reply: Reply, metering: inference_pb2.Metering, bytes_out: int
    ) -> Answer:
        """Read the answer to one request of a batch, which costs the batch's price.

        Raises:
            ServiceError: As `infer`.
        """
        if reply.status != 200:
            special = self._dialect.refused(reply)
            if special is True:
                return Answer((), _FILTERED)
            if isinstance(special, failures.Failure):
                raise special.error(self._provider.name, http_status=str(reply.status))
            raise failures.of_status(self._provider.name, reply.status, {}, 0.0)
        try:
            parsed = self._dialect.answer(ask, reply)
        except (AnswerError, ErrorInsideError, CutAnswerError) as error:
            self._bill(ask.model, {}, metering, None, bytes_out, bulk=True)
            raise self._broken(error) from None
        self._meter(ask.model, {}, metering, parsed, bytes_out, bulk=True)
        self._check(ask.model, parsed.outputs, parsed.finish_reason)
        return Answer(parsed.outputs, parsed.finish_reason)

    async def probe(self, time_left_s: float) -> None:
        """See `Adapter`. Who answers 200 is there.

        So is who has nothing at that path (404, 405) or limits our rate (429), but for the protocol
        whose path says whether it is ready. Who does not take our token is of no use.
        """
        self._credentials.watch_expiry()
        path = self._provider.probe_path
        url = self._url(self._dialect.probe_path if path is None else path)
        until = self._until(time_left_s)
        asked = Body(b"", {}, "", method="GET")
        try:
            headers = await self._credentials.headers(None, asked, url, self._left_s(until))
            async with self._session.get(
                url,
                headers=headers,
                timeout=self._timeout(until),
                allow_redirects=False,
                ssl=self._tls,
            ) as response:
                if response.status in (404, 405, 429) and self._provider.protocol != "oip-http":
                    return
                if response.status != 200:
                    raise self._of_status(response)
        except (aiohttp.ClientError, OSError) as error:
            raise failures.of_exception(self._provider.name, error) from error

    async def aclose(self) -> None:
        """See `Adapter`."""
        await self._credentials.aclose()
        await self._session.close()

    @contextlib.asynccontextmanager
    async def _exchange(
        self, ask: Ask, body: Body, metering: inference_pb2.Metering
    ) -> AsyncIterator[aiohttp.ClientResponse | None]:
        """Send a request; give the response once its status is 200, None where it is a refusal.

        The connection closes with this context: also when a stream is left before its end.
        """
        self._pace.check(ask.model)
        url = self._url(body.path)
        until = self._until(ask.time_left_s)  # of the token's exchange and the request together
        shown = await self._credentials.headers(ask.model, body, url, self._left_s(until))
        headers = {**ask.headers, **shown}
        tracing.asking(body, url)
        tracing.asking_model(self._gen_ai, ask.model.on_wire, self.longest_answer(ask.model))
        _METERING.set(metering)
        status, said = 0, _NOTHING_SAID
        try:
            async with self._session.request(
                body.method,
                url,
                data=body.content,
                headers=headers,
                timeout=self._timeout(until),
                allow_redirects=False,
                ssl=self._tls,
            ) as response:
                status, said = response.status, response.headers
                tracing.answered(status)
                self._pace.heard(ask.model, response.status, response.headers)
                self._began(response)
                if response.status == 200:
                    yield response
                elif await self._refused(ask, response, metering):
                    yield None
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise failures.of_exception(self._provider.name, error) from error
        finally:
            _METERING.set(None)
            if metering.sent:
                metering.bytes_out = len(body.content)
                metering.wire_digest = hashlib.sha256(body.content).digest()
                metering.renderer_version = body.renderer
                # Timed out, cut, or nobody waits any more: the vendor may bill it all the same.
                if status in (0, 200) and not metering.HasField("cost"):
                    self._bill(ask.model, said, metering, None, len(body.content))

    async def _refused(
        self, ask: Ask, response: aiohttp.ClientResponse, metering: inference_pb2.Metering
    ) -> bool:
        """Return True for a refusal by content policy; raise for every other error status."""
        content = await self._read(response, metering)
        self._bill(ask.model, response.headers, metering, None, 0, answered=False)
        special = self._dialect.refused(_reply(response, content))
        if special is True:
            return True
        if isinstance(special, failures.Failure):
            raise special.error(self._provider.name, http_status=str(response.status))
        if response.status == 401:  # 403 is about a right, which another token has no more
            self._credentials.rejected(ask.model)
        raise self._of_status(response)

    def _whole_url(self, path: str) -> URL:
        url = URL(self._base + path, encoded=True)
        return url.extend_query(self._provider.query) if self._provider.query else url

    def _began(self, response: aiohttp.ClientResponse) -> None:
        """From the answer's head on another time-out counts, if the provider file has two."""
        connection = response.connection  # None once all has come
        if self._provider.first_byte_timeout_s is None or connection is None:
            return
        if connection.protocol is not None:
            connection.protocol.read_timeout = self._provider.silence_timeout_s
            connection.protocol.start_timeout()

    def _until(self, time_left_s: float) -> float:
        """Return when an attempt must be over, on the monotonic clock."""
        return self._clock.monotonic() + min(usable_s(time_left_s), self._provider.timeout_s)

    def _left_s(self, until: float) -> float:
        return max(0.001, until - self._clock.monotonic())  # aiohttp takes 0 for no limit

    def _timeout(self, until: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=self._left_s(until),
            sock_connect=self._provider.connect_timeout_s,
            sock_read=self._provider.first_byte_s,
            ceil_threshold=_NEVER_ROUND_UP,
        )

    async def _parts(
        self, response: aiohttp.ClientResponse, metering: inference_pb2.Metering
    ) -> AsyncIterator[bytes]:
        """Yield the body as it comes, bounded; what came counts even if the rest does not."""
        self._check_encoding(response)
        async for part in response.content.iter_any():
            metering.bytes_in += len(part)
            if metering.bytes_in > self._max_answer:
                raise failures.ANSWER_INVALID.error(self._provider.name, rule="too_large")
            yield part

    def _check_encoding(self, response: aiohttp.ClientResponse) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise failures.ANSWER_INVALID.error(self._provider.name, rule="content_encoding")

    async def _read(
        self, response: aiohttp.ClientResponse, metering: inference_pb2.Metering
    ) -> bytes:
        size = response.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > self._max_answer:
            return b"".join([part async for part in self._parts(response, metering)])
        self._check_encoding(response)
        try:  # no more than it said comes
            return await response.content.read()
        finally:
            metering.bytes_in = response.content.total_bytes

    async def _not_a_stream(
        self, ask: Ask, response: aiohttp.ClientResponse, metering: inference_pb2.Metering
    ) -> NoReturn:
        """Raise: the answer to a stream's request is none; an error inside is said as such."""
        content = await self._read(response, metering)
        self._dialect.answer(ask, _reply(response, content))
        raise AnswerError("content_type")

    def _of_status(self, response: aiohttp.ClientResponse) -> ServiceError:
        now_s = self._clock.unix_us() / 1e6
        return failures.of_status(self._provider.name, response.status, response.headers, now_s)

    def _broken(self, error: Exception) -> ServiceError:
        name = self._provider.name
        if isinstance(error, AnswerError):
            return failures.ANSWER_INVALID.error(name, rule=error.rule)
        if isinstance(error, CutAnswerError):
            return failures.ANSWER_CUT.error(name)
        return failures.ANSWER_IS_ERROR.error(name)

    def _check(self, model: Model, outputs: Tensors, finish: inference_pb2.FinishReason) -> None:
        if finish != _FILTERED and violations(outputs, model.outputs, "outputs"):
            raise failures.OUTPUT_MISMATCH.error(self._provider.name)

    def _meter(
        self,
        model: Model,
        headers: Mapping[str, str],
        metering: inference_pb2.Metering,
        parsed: Parsed,
        bytes_out: int,
        *,
        bulk: bool = False,
    ) -> None:
        tracing.model_answered(self._gen_ai, parsed)
        metering.reported_version = parsed.version[:128]
        if parsed.usage is not None:
            metering.input_tokens = parsed.usage.input_tokens
            metering.output_tokens = parsed.usage.output_tokens
        self._bill(model, headers, metering, parsed.usage, bytes_out, bulk=bulk)

    def _bill(
        self,
        model: Model,
        headers: Mapping[str, str],
        metering: inference_pb2.Metering,
        usage: Usage | None,
        bytes_out: int,
        *,
        answered: bool = True,
        bulk: bool = False,
    ) -> None:
        """Fill in the cost: as the vendor reports it, else by its usage report and the price book.

        Without a report both are estimates. Of a call that the vendor refused nothing is known
        unless it says so.
        """
        header = self._provider.cost_header
        nanos = None if header is None else nanos_of_usd(headers.get(header))
        basis = decision_pb2.COST_BASIS_REPORTED
        if nanos is None:
            price = price_on(model.price, day_of(self._clock.unix_us()))
            if price is None or not answered:
                return
            if usage is None or not price.exact(usage):
                basis = decision_pb2.COST_BASIS_ESTIMATED
            counted = usage or Usage(guess_tokens(bytes_out), guess_tokens(metering.bytes_in))
            nanos = price.nanos(counted, bytes_out, metering.bytes_in, bulk=bulk)
        metering.cost.currency_code = "USD"
        metering.cost.nanos = nanos
        metering.cost.basis = basis


def usable_s(time_left_s: float) -> float:
    """Return how much of the caller's time the vendor may have, in seconds."""
    return time_left_s - min(_MARGIN_S, time_left_s * _MARGIN_SHARE)


@lru_cache(maxsize=1024)  # decimals are dear, and most calls of a model cost the same
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


def _reply(response: aiohttp.ClientResponse, content: bytes) -> Reply:
    headers: Mapping[str, str] = response.headers
    return Reply(response.status, headers, response.content_type, content)


_METERING: ContextVar[inference_pb2.Metering | None] = ContextVar("metering", default=None)


class _Connector(aiohttp.TCPConnector):
    """Marks a request's metering as sent once there is a connection for it.

    The client's own signals say the same, and cost every request ten times as much.
    """

    async def connect(self, *args: Any, **more: Any) -> Any:
        """Return a connection; from here on bytes may leave."""
        connection = await super().connect(*args, **more)
        metering = _METERING.get()
        if metering is not None:
            metering.sent = True
        return connection
