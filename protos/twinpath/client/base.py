"""What the two clients share: how they are made, how a request is prepared, when to repeat it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import grpc

from twinpath.client import connection, retry
from twinpath.client.connection import AsyncTokenSource, Tls
from twinpath.client.errors import StreamCutError, TwinpathError, from_rpc_error
from twinpath.client.keys import new_key
from twinpath.client.replies import Chunk, Decision
from twinpath.client.request import Ask, Request, batch_message
from twinpath.client.retry import RetryPolicy
from twinpath.router.v1 import router_pb2, router_pb2_grpc

DEFAULT_TIMEOUT_S = 10.0


class BaseClient:
    """Holds the channel and the settings. See `Client` for the arguments."""

    _grpc: ModuleType  # grpc or grpc.aio: which kind of channel is made

    def __init__(
        self,
        target: str,
        *,
        token: AsyncTokenSource | None,
        tls: Tls | None,
        timeout_s: float,
        retries: RetryPolicy | None,
        auto_key: bool,
        plaintext_token: bool,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        connection.check_plain(
            target, tls, token=token is not None, plaintext_token=plaintext_token
        )
        self._token = token
        self._timeout_s = timeout_s
        self._retries = retries or RetryPolicy()
        self._auto_key = auto_key
        made = connection.options(tls, options)
        self._channel: Any = (
            self._grpc.insecure_channel(target, options=made)
            if tls is None
            else self._grpc.secure_channel(target, tls.credentials(), options=made)
        )
        self._stub: Any = router_pb2_grpc.RouterStub(self._channel)

    def _until(self, timeout_s: float | None) -> float:
        """Return the call's deadline on time.monotonic()'s scale."""
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

    def _request(self, task: str, ask: Ask) -> Request:
        request = Request(task, **ask)
        if self._auto_key and not request.keyed:
            request.message.idempotency_key = new_key()
        return request

    def _batch(
        self, items: Mapping[str, Request] | Sequence[Request]
    ) -> tuple[router_pb2.BatchInferRequest, bool]:
        """Return the batch, and whether all of its items have keys."""
        batch = batch_message(items)
        if self._auto_key:
            for item in batch.items:
                item.request.idempotency_key = item.request.idempotency_key or new_key()
        return batch, all(item.request.idempotency_key for item in batch.items)


class Attempts:
    """Counts the calls of one request, and says when the next one may be made."""

    def __init__(self, retries: RetryPolicy, *, keyed: bool, until: float) -> None:
        self._retries = retries
        self._keyed = keyed
        self._until = until
        self._made = 0

    def left(self) -> float:
        """Begin a call; return the seconds that it may take."""
        self._made += 1
        return self._until - time.monotonic()

    def pause(self, error: TwinpathError) -> float:
        """Return the seconds to wait before the next call, or raise the error."""
        wait = retry.delay(
            self._retries,
            self._made,
            error,
            keyed=self._keyed,
            time_left_s=self._until - time.monotonic(),
            random=random.random,
        )
        if wait is None:
            raise error
        return wait


class BaseStream:
    """What is known of a stream: its chunks so far, and its decision at the end.

    Attributes:
        received: The chunks so far.
    """

    def __init__(self) -> None:
        self._call: Any = None
        self._decision: Decision | None = None
        self.received: list[Chunk] = []

    @property
    def decision(self) -> Decision:
        """The decision.

        Raises:
            RuntimeError: The stream has not been read to its end.
        """
        if self._decision is None:
            raise RuntimeError("there is no decision before the stream's end")
        return self._decision

    def cancel(self) -> None:
        """Give up; the mesh stops the model. Nothing happens after the end."""
        if self._call is not None:
            self._call.cancel()

    def _take(self, message: router_pb2.InferStreamResponse) -> Chunk | None:
        """Keep a message; return its chunk, or None when it was the final one."""
        if message.WhichOneof("message") == "final":
            self._decision = Decision.from_message(message.final)
            return None
        chunk = Chunk.from_message(message.chunk)
        self.received.append(chunk)
        return chunk

    def _failed(self, failed: grpc.RpcError | None) -> TwinpathError:
        """Return the error of a stream that ended without its final message.

        Raises:
            StreamCutError: Something was received already, or it just ended: it can't begin anew.
        """
        error = from_rpc_error(failed) if failed is not None else None
        if error is None or self.received:
            raise StreamCutError(self.received, error)
        return error
