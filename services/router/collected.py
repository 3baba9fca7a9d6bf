"""The whole of an answer that comes in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from services.chassis.errors import (
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
    to_status,
)
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2

_MAX_ANSWER_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class Collected:
    """What came so far: the elements of BYTES tensors joined, others as the last chunk had them."""

    texts: dict[str, list[bytes]] = field(default_factory=dict)
    others: dict[str, tensor_pb2.Tensor] = field(default_factory=dict)
    size: int = 0
    chunks: int = 0

    def add(self, chunk: inference_pb2.InferChunk) -> None:
        """Take a chunk in.

        Raises:
            ResourceExhaustedError: the answer is larger than a record's payload may be.
        """
        self.chunks += 1
        for tensor in chunk.outputs:
            self.size += len(tensor.raw)
            if self.size > _MAX_ANSWER_BYTES:
                raise ResourceExhaustedError("OUTPUT_TOO_LARGE", "the answer grew past its limit")
            if tensor.datatype == tensors.BYTES:
                self.texts.setdefault(tensor.name, []).extend(tensors.decode_bytes(tensor.raw))
            else:
                self.others[tensor.name] = tensor

    def clear(self) -> None:
        """Forget what came: another candidate begins anew."""
        self.texts.clear()
        self.others.clear()
        self.size = self.chunks = 0

    def outputs(self) -> list[tensor_pb2.Tensor]:
        """Return the whole answer as tensors; each text is one element."""
        joined = []
        for name, parts in self.texts.items():
            array = np.empty(1, dtype=object)
            array[0] = b"".join(parts)
            joined.append(tensors.from_numpy(name, array))
        return [*joined, *self.others.values()]


async def collect(
    item: inference_pb2.InferItem,
    messages: AsyncGenerator[inference_pb2.InferStreamResponse],
) -> inference_pb2.InferResult:
    """Read a stream to its end; return the result that a unary call would have had.

    What a stream that failed took stands in it beside its status.

    Raises:
        ServiceError: the stream failed, and its path could not say what it took.
    """
    collected = Collected()
    took: inference_pb2.InferResult | None = None
    try:
        async with aclosing(messages):
            async for message in messages:
                match message.WhichOneof("message"):
                    case "chunk":
                        collected.add(message.chunk)
                    case "final":
                        result = message.final
                        result.outputs.extend(collected.outputs())
                        return result
                    case _:
                        took = message.failed
        raise UnavailableError("STREAM_CUT", "the stream ended without its final message")
    except ServiceError as error:
        if took is None:
            raise
        took.id = item.context.id
        took.status.CopyFrom(to_status(error))
        return took
