"""The client for programs with threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from twinpath.client import connection
from twinpath.client.base import DEFAULT_TIMEOUT_S, Attempts, BaseClient, BaseStream
from twinpath.client.connection import Tls, TokenSource
from twinpath.client.errors import from_rpc_error
from twinpath.client.replies import BatchItem, Chunk, Decision, Explanation
from twinpath.client.request import Ask, Request
from twinpath.client.retry import RetryPolicy
from twinpath.router.v1 import router_pb2


class Client(BaseClient):
    """Asks a mesh's router. Safe to share between threads; make it after a fork, not before.

    Args:
        target: host:port, or any target of gRPC ("dns:///router.internal:7070").
        token: The caller's token: a text, a file, or a function that gives it; files and
            functions are asked at every call.
        tls: How the connection is protected; None: plain text.
        timeout_s: Seconds that a call may take with all its repetitions, if it says no other.
        retries: How often a call may be made.
        auto_key: Give each request without an idempotency key a random one, so that it may be
            repeated after any broken connection; costs the mesh a look at its state store.
        plaintext_token: Send the token without TLS to other machines, too.
        options: Further options of gRPC's channel.

    Raises:
        ValueError: The token would travel over a network in plain text.
    """

    _grpc = grpc

    def __init__(
        self,
        target: str,
        *,
        token: TokenSource | None = None,
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

    def infer(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> Decision:
        """Make one decision.

        Args:
            task: The task's name.
            timeout_s: Seconds it may take, repetitions included.
            traceparent: The W3C header of your trace, where OpenTelemetry is not used.
            tracestate: The header beside it.
            ask: What `Ask` lists: entity, fields, idempotency_key, purpose, ...

        Raises:
            TwinpathError: one of `twinpath.client.errors`.
            TypeError: A value of a kind that the contract does not have.
            ValueError: A value that the contract can't carry.
        """
        request = self._request(task, ask)
        message = self._call(
            self._stub.Infer,
            request.message,
            request.keyed,
            timeout_s,
            (traceparent, tracestate),
        )
        return Decision.from_message(message)

    def batch_infer(
        self,
        items: Mapping[str, Request] | Sequence[Request],
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
    ) -> list[BatchItem]:
        """Make many decisions; each item fails alone. See `infer` for the rest.

        Returns:
            One result for each item, in their order.
        """
        batch, keyed = self._batch(items)
        reply = self._call(
            self._stub.BatchInfer, batch, keyed, timeout_s, (traceparent, tracestate)
        )
        return [BatchItem.from_message(result) for result in reply.results]

    def explain(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> Explanation:
        """Return the plan that `infer` would follow now; nothing is run. See `infer`."""
        message = router_pb2.ExplainRequest(request=Request(task, **ask).message)
        # It changes nothing, so it may be repeated like a request with a key.
        reply = self._call(self._stub.Explain, message, True, timeout_s, (traceparent, tracestate))
        return Explanation.from_message(reply)

    def infer_stream(
        self,
        task: str,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        tracestate: str = "",
        **ask: Unpack[Ask],
    ) -> Stream:
        """Make one decision of a streaming task, chunk by chunk. See `infer` and `Stream`."""
        request = self._request(task, ask)
        message = router_pb2.InferStreamRequest(request=request.message)

        def begin(left: float) -> Any:
            metadata = self._metadata(traceparent, tracestate)
            return self._stub.InferStream(message, timeout=left, metadata=metadata)

        until = self._until(timeout_s)
        return Stream(begin, Attempts(self._retries, keyed=request.keyed, until=until))

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _metadata(self, traceparent: str, tracestate: str) -> list[tuple[str, str]]:
        token = connection.token_of(self._token)
        if not isinstance(token, str):
            raise TypeError("a token that has to be awaited needs AsyncClient")
        return connection.metadata(token, traceparent, tracestate)

    def _call(
        self,
        method: Any,
        message: Any,
        keyed: bool,
        timeout_s: float | None,
        trace: tuple[str, str],
    ) -> Any:
        attempts = Attempts(self._retries, keyed=keyed, until=self._until(timeout_s))
        while True:
            metadata = self._metadata(*trace)
            try:
                return method(message, timeout=attempts.left(), metadata=metadata)
            except grpc.RpcError as failed:
                error = from_rpc_error(failed)
            time.sleep(attempts.pause(error))


class Stream(BaseStream):
    """The chunks of one decision; after the last one, `decision` is the durable decision.

        with client.infer_stream("note_summary", **ask) as stream:
            for chunk in stream:
                print(chunk.text, end="")
        print(stream.decision.decision_id)

    A stream that ends without its final message raises StreamCutError with what was received; it
    is not begun again. Chunks are provisional until then. A reader that is slow slows the mesh
    down, by gRPC's flow control. Leaving the block early cancels the call, up to the model.
    """

    def __init__(self, begin: Callable[[float], Any], attempts: Attempts) -> None:
        super().__init__()
        self._begin = begin
        self._attempts = attempts
        self._chunks = self._run()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def _run(self) -> Iterator[Chunk]:
        while True:
            ended: grpc.RpcError | None = None
            try:
                self._call = self._begin(self._attempts.left())
                for message in self._call:
                    chunk = self._take(message)
                    if chunk is None:
                        return
                    yield chunk
            except grpc.RpcError as failed:
                ended = failed
            time.sleep(self._attempts.pause(self._failed(ended)))
