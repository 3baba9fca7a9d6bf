"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from twinpath.client import connection
from twinpath.client.base import DEFAULT_TIMEOUT_S, Attempts, BaseClient, BaseStream
from twinpath.client.connection import AsyncTokenSource, Tls
from twinpath.client.errors import from_rpc_error
from twinpath.client.replies import BatchItem, Chunk, Decision, Explanation
from twinpath.client.request import Ask, Request
from twinpath.client.retry import RetryPolicy
from twinpath.router.v1 import router_pb2


class AsyncClient(BaseClient):
    """Asks a mesh's router; belongs to the event loop in which it was made.

    Args and errors as for `Client`; the token's function may be asynchronous. A call that is
    cancelled is cancelled in the mesh, too.
    """

    _grpc = grpc.aio

    def __init__(
        self,
        target: str,
        *,
        token: AsyncTokenSource | None = None,
        tls: Tls | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: RetryPolicy | None = None,
        auto_key: bool = False,
        plaintext_token: bool = False,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        super().__init__(
            target,
            token=token,
            tls=tls,
            timeout_s=timeout_s,
            retries=retries,
            auto_key=auto_key,
            plaintext_token=plaintext_token,
            options=options,
        )

    async def infer(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> Decision:
        """Make one decision. Arguments and errors as for `Client.infer`."""
        request = self._request(task, ask)
        message = await self._call(
            self._stub.Infer,
            request.message,
            request.keyed,
            timeout_s,
            (traceparent, tracestate),
        )
        return Decision.from_message(message)

    async def batch_infer(
        self,
        items: Mapping[str, Request] | Sequence[Request],
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
    ) -> list[BatchItem]:
        """Make many decisions; each item fails alone. As `Client.batch_infer`."""
        batch, keyed = self._batch(items)
        reply = await self._call(
            self._stub.BatchInfer, batch, keyed, timeout_s, (traceparent, tracestate)
        )
        return [BatchItem.from_message(result) for result in reply.results]

    async def explain(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> Explanation:
        """Return the plan that `infer` would follow now. As `Client.explain`."""
        message = router_pb2.ExplainRequest(request=Request(task, **ask).message)
        # It changes nothing, so it may be repeated like a request with a key.
        reply = await self._call(
            self._stub.Explain, message, True, timeout_s, (traceparent, tracestate)
        )
        return Explanation.from_message(reply)

    def infer_stream(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> AsyncStream:
        """Make one decision of a streaming task. As `Client.infer_stream`, with `async for`."""
        request = self._request(task, ask)
        message = router_pb2.InferStreamRequest(request=request.message)

        async def begin(left: float) -> Any:
            metadata = await self._metadata(traceparent, tracestate)
            return self._stub.InferStream(message, timeout=left, metadata=metadata)

        until = self._until(timeout_s)
        return AsyncStream(begin, Attempts(self._retries, keyed=request.keyed, until=until))

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _metadata(self, traceparent: str, tracestate: str) -> list[tuple[str, str]]:
        token = connection.token_of(self._token)
        if not isinstance(token, str):
            token = await token
        return connection.metadata(token, traceparent, tracestate)

    async def _call(
        self,
        method: Any,
        message: Any,
        keyed: bool,
        timeout_s: float | None,
        trace: tuple[str, str],
    ) -> Any:
        attempts = Attempts(self._retries, keyed=keyed, until=self._until(timeout_s))
        while True:
            metadata = await self._metadata(*trace)
            try:
                return await method(message, timeout=attempts.left(), metadata=metadata)
            except grpc.RpcError as failed:
                error = from_rpc_error(failed)
            await asyncio.sleep(attempts.pause(error))


class AsyncStream(BaseStream):
    """The chunks of one decision; after the last one, `decision` is the durable decision.

        async with client.infer_stream("note_summary", **ask) as stream:
            async for chunk in stream:
                print(chunk.text, end="")
        print(stream.decision.decision_id)

    As `Stream`. Leaving the block early cancels the call, up to the model.
    """

    def __init__(self, begin: Callable[[float], Awaitable[Any]], attempts: Attempts) -> None:
        super().__init__()
        self._begin = begin
        self._attempts = attempts
        self._chunks = self._run()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _run(self) -> AsyncIterator[Chunk]:
        while True:
            ended: grpc.RpcError | None = None
            try:
                self._call = await self._begin(self._attempts.left())
                async for message in self._call:
                    chunk = self._take(message)
                    if chunk is None:
                        return
                    yield chunk
            except grpc.RpcError as failed:
                ended = failed
            await asyncio.sleep(self._attempts.pause(self._failed(ended)))
