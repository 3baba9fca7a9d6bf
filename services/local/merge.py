"""Several items as one request to Triton, and its answer cut into theirs.

One call with 64 rows costs this process and Triton's door about as much as one with a single row.
Rows are laid end to end: no item's bytes are changed. Pure, but for the contract's messages.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from services.local.prepare import Prepared
from services.local.triton import Ask
from twinpath.inference import tensors
from twinpath.inference.v1 import tensor_pb2


def kinship(prepared: Prepared) -> Hashable:
    """Return a key that items have in common which may share a request; None: alone."""
    spec = prepared.spec
    if spec.max_batch_size < 2 or spec.decoupled:
        return None
    signature = tuple((t.name, t.datatype, *t.shape[1:]) for t in prepared.ask.inputs)
    return spec.name, spec.version, prepared.rank, signature


def batches(items: Iterable[Prepared]) -> list[list[int]]:
    """Return which items go together, as their indices; each index stands in one batch.

    A batch holds kin only, and no more rows than the model takes.
    """
    open_batches: dict[Hashable, tuple[list[int], int]] = {}
    found: list[list[int]] = []
    for index, prepared in enumerate(items):
        key = kinship(prepared)
        batch, rows = open_batches.get(key, ([], 0))
        if key is None or not batch or rows + prepared.rows > prepared.spec.max_batch_size:
            batch, rows = [], 0
            found.append(batch)
        batch.append(index)
        if key is not None:
            open_batches[key] = (batch, rows + prepared.rows)
    return found


def join(items: Sequence[Prepared]) -> Ask:
    """Return one request for kin."""
    first = items[0].ask
    rows = sum(item.rows for item in items)
    joined = [
        tensor_pb2.Tensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=[rows, *tensor.shape[1:]],
            raw=b"".join(item.ask.inputs[index].raw for item in items),
        )
        for index, tensor in enumerate(first.inputs)
    ]
    return Ask(
        first.spec,
        first.id,
        joined,
        first.priority,
        max(item.ask.timeout_us for item in items),
    )


def cut(outputs: Sequence[tensor_pb2.Tensor], rows: Sequence[int]) -> list[list[tensor_pb2.Tensor]]:
    """Return each item's part of checked outputs, which have `sum(rows)` rows."""
    parts: list[list[tensor_pb2.Tensor]] = [[] for _ in rows]
    for tensor in outputs:
        total = sum(rows)
        if tensor.datatype == tensors.BYTES:
            ends = _byte_ends(tensor, total)
        else:
            size = len(tensor.raw) // total
            ends = [size * (n + 1) for n in range(total)]
        row = start = 0
        raw = tensor.raw
        for part, count in zip(parts, rows, strict=True):
            row += count
            end = ends[row - 1]
            part.append(
                tensor_pb2.Tensor(
                    name=tensor.name,
                    datatype=tensor.datatype,
                    shape=[count, *tensor.shape[1:]],
                    raw=raw[start:end],
                )
            )
            start = end
    return parts


def _byte_ends(tensor: tensor_pb2.Tensor, rows: int) -> list[int]:
    """Return where each row of a BYTES tensor ends."""
    elements = tensors.decode_bytes(tensor.raw)
    width = len(elements) // rows
    ends = []
    at = 0
    for row in range(rows):
        at += sum(4 + len(e) for e in elements[row * width : (row + 1) * width])
        ends.append(at)
    return ends
