"""What a provider is: the small protocol that every vendor's adapter keeps to.

Most vendors speak HTTP. Theirs is a `Dialect`: pure functions that write a request's body and
read an answer; `http_vendor` does the rest (connections, time-outs, the table of failures,
metering, cost). A vendor that speaks something else has an `Adapter` of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeAlias

from services.chassis.errors import UnimplementedError
from services.remote.catalog import Model
from services.remote.failures import Failure
from services.remote.wire import Body, Event, Parsed, Reply
from twinpath.inference.v1 import inference_pb2, tensor_pb2

Tensors: TypeAlias = Sequence[tensor_pb2.Tensor]


def no_stream(ask: Ask) -> NoReturn:
    """Say that a vendor has no streams. `streams` says so before; this is what a mistake meets.

    Raises:
        UnimplementedError: always.
    """
    raise UnimplementedError("STREAMING_UNSUPPORTED", f"{ask.model.name} does not stream")


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt, all checks passed.

    Attributes:
        model: What is asked.
        tensors: The model input, normalized, in canonical order. Adapters render it; they don't
            change a value.
        time_left_s: Seconds until the answer is of no use any more.
        headers: Headers that carry the trace context.
    """

    model: Model
    tensors: Tensors
    time_left_s: float
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the vendor answered; the metering is filled in beside it, on failure too.

    Attributes:
        outputs: Tensors, contents in `raw`.
        finish_reason: Why the model stopped.
    """

    outputs: Tensors
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_UNSPECIFIED


AnswerStream: TypeAlias = AsyncGenerator[Tensors | Answer, None]
"""Chunks, then exactly one `Answer` without outputs."""


class Decoder(Protocol):
    """Reads one stream."""

    def feed(self, event: Event) -> Tensors:
        """Return the chunk that an event holds, empty if it holds none.

        Raises:
            AnswerError, ErrorInsideError: As `Dialect.answer`.
        """

    def finish(self) -> Parsed:
        """Return how the stream ended; its outputs are not read.

        Raises:
            AnswerError: It ended before its protocol's end: it was cut.
        """


class Dialect(Protocol):
    """One vendor's HTTP protocol, as pure functions over one provider file.

    It may have `auth` (another header than `Authorization` for the token), `sign` (writes the
    headers itself, from the whole request), `gen_ai` (what traces say of a language model) and
    `in_bulk` (a `bulk_wire.BatchApi`: its requests may go in a batch; then `answer` must do without
    the question's tensors).
    """

    @property
    def probe_path(self) -> str:
        """What to GET to see if the vendor is there, below the base URL."""

    def streams(self, model: Model) -> bool:
        """Whether it can answer this model in chunks."""

    def longest_answer(self, model: Model) -> int:
        """Return how many tokens an answer may have at most; 0: it has none."""

    def body(self, ask: Ask, *, stream: bool) -> Body:
        """Write the request. Raises InvalidArgumentError (TENSOR_NOT_RENDERABLE)."""

    def answer(self, ask: Ask, reply: Reply) -> Parsed:
        """Read an answer with status 200.

        Raises:
            AnswerError: It breaks the protocol.
            ErrorInsideError: It holds an error.
            CutAnswerError: The length limit cut it, and a part of it is of no use.
        """

    def refused(self, reply: Reply) -> Failure | bool | None:
        """Say what is special about an error answer, beyond its status.

        Returns:
            True: the content policy refused. A failure: that, instead of the status table's.
            None or False: nothing.
        """

    def decoder(self, ask: Ask) -> Decoder:
        """Return a reader for one stream."""


class Adapter(Protocol):
    """One vendor. Made for one provider, on the event loop that uses it."""

    def longest_answer(self, model: Model) -> int:
        """Return how many tokens an answer may have at most; 0: it has none."""

    def streams(self, model: Model) -> bool:
        """Whether it can answer this model in chunks."""

    async def infer(self, ask: Ask, metering: inference_pb2.Metering) -> Answer:
        """Ask the vendor once: no retry, no redirect.

        Fills `metering` as far as things are known, on every way out; `sent` becomes true before
        the first byte may leave.

        Raises:
            ServiceError: A row of `failures`.
        """

    def stream(self, ask: Ask, metering: inference_pb2.Metering) -> AnswerStream:
        """Ask the vendor once, and yield chunks, then exactly one `Answer` without outputs.

        Closing the iterator closes the vendor's connection. Only where `streams` says so.

        Raises:
            ServiceError: As `infer`, at any point; a stream that ends early is one.
        """

    async def probe(self, time_left_s: float) -> None:
        """Ask the vendor if it is there. Raises ServiceError if not; sends no data."""

    async def aclose(self) -> None:
        """Close connections."""
