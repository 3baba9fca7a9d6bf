"""Files of batch jobs: a JSON object a line, for what is asked and for what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.chassis.errors import from_status
from twinpath.common.v1 import value_pb2
from twinpath.inference import tensors
from twinpath.router.v1 import jobs_pb2, router_pb2

# What one job may hold; a message holds twice as many bytes.
MOST_ITEMS = 1024
MOST_BYTES = 8 * 1024 * 1024
_KEYS = frozenset({"id", "entity", "fields", "data_class", "residency", "consents"})

Asked = jobs_pb2.JobItem


class LineError(ValueError):
    """A line is not what it has to be; the text says which line and why."""


def read(path: Path) -> list[list[Asked]]:
    """Read a file of items, in parts that are small enough for a job each.

    Raises:
        LineError: A line is no item, an id stands twice, or there is no line at all.
    """
    parts: list[list[Asked]] = []
    seen: set[str] = set()
    room = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                item = _item(line, number)
            except ValueError as error:
                raise LineError(f"line {number}: {error}") from None
            if item.id in seen:
                raise LineError(f"line {number}: the id {item.id} stands twice")
            seen.add(item.id)
            room -= item.ByteSize()
            if not parts or room < 0 or len(parts[-1]) == MOST_ITEMS:
                parts.append([])
                room = MOST_BYTES - item.ByteSize()
            parts[-1].append(item)
    if not parts:
        raise LineError("it holds no item")
    return parts


def _item(line: bytes, number: int) -> Asked:
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    unknown = document.keys() - _KEYS
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    data_class = str(document.get("data_class", "unspecified")).upper()
    return Asked(
        id=str(document.get("id", number)),
        entity=_values(document.get("entity", {})),
        fields=_values(document.get("fields", {})),
        data_class=f"DATA_CLASS_{data_class}",  # protobuf refuses a name that there is not
        residency=str(document.get("residency", "")),
        consents=[str(one) for one in document.get("consents", [])],
    )


def _values(given: Any) -> Mapping[str, value_pb2.Value]:
    if not isinstance(given, dict):
        raise ValueError("entity and fields are JSON objects")
    return {name: _value(name, one) for name, one in given.items()}


def _value(name: str, given: Any) -> value_pb2.Value:
    match given:
        case None:
            return value_pb2.Value()
        case bool():
            return value_pb2.Value(bool_value=given)
        case int():
            return value_pb2.Value(int64_value=given)
        case float():
            return value_pb2.Value(double_value=given)
        case str():
            return value_pb2.Value(string_value=given)
    raise ValueError(f"{name} is neither a number, a text, true, false nor null")


def line_of(result: router_pb2.BatchResult) -> str:
    """Return an item's result as a line of JSON, without its line end."""
    error = from_status(result.status) if result.HasField("status") else None
    if error is not None:
        said = {"code": error.code.name, "reason": error.reason, "message": error.message}
        return json.dumps({"id": result.id, "error": said})
    reply = result.response
    document: dict[str, Any] = {
        "id": result.id,
        "decision_id": reply.decision_id,
        "outputs": {one.name: _plain(one) for one in reply.outputs},
        "answered_by": reply.answered_by.id,
    }
    if reply.HasField("cost"):
        document["cost_nanos"] = reply.cost.nanos
        document["currency"] = reply.cost.currency_code
    return json.dumps(document)


def _plain(tensor: Any) -> list[Any]:
    values = tensors.to_numpy(tensor).reshape(-1).tolist()
    return [one.decode(errors="replace") if isinstance(one, bytes) else one for one in values]
