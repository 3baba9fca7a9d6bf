"""Redis keys and hash fields as Feast 0.67 writes them (key serialization version 3).

All that does not change from row to row is packed once for each registry version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mmh3

from services.features.definitions import KeyPart, ViewRead

# Feast's ValueType numbers; other types can't be part of a stored key.
_NUMBERS = {"BYTES": 1, "STRING": 2, "INT32": 3, "INT64": 4, "UNIX_TIMESTAMP": 8}
_FIXED = {"INT32": struct.Struct("<i"), "INT64": struct.Struct("<q")}
_FIXED["UNIX_TIMESTAMP"] = _FIXED["INT64"]
_U32 = struct.Struct("<I").pack
_TWO = struct.Struct("<II").pack

KeyColumns = Mapping[str, Sequence[Any]]
Encoder = Callable[[KeyColumns, int], list[bytes]]


@dataclass(frozen=True, slots=True)
class Fields:
    """The hash fields of one read, and the parts of its HMGET command around the key."""

    names: tuple[bytes, ...]
    head: bytes
    tail: bytes

    def command(self, key: bytes) -> bytes:
        """Return the whole command in Redis' protocol."""
        return b"%b$%d\r\n%b\r\n%b" % (self.head, len(key), key, self.tail)


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one view's features start in a reply; its event time follows the last of them."""

    group: int
    start: int
    time: int


@dataclass(frozen=True, slots=True)
class Group:
    """Views with the same key: Feast keeps them in one hash, so one command reads them all."""

    encode: Encoder
    fields: Fields


def feature_field(view: str, feature: str) -> bytes:
    """Return the hash field of a feature."""
    return _U32(mmh3.hash(f"{view}:{feature}", signed=False))


def time_field(view: str) -> bytes:
    """Return the hash field of a view's event time."""
    return f"_ts:{view}".encode()


def hmget_fields(names: Sequence[bytes]) -> Fields:
    """Prepare an HMGET of these fields."""
    head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(names) + 2)
    tail = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in names)
    return Fields(tuple(names), head, tail)


def _part_encoder(value_type: str) -> Callable[[Any], bytes]:
    number = _NUMBERS.get(value_type)
    if number is None:
        raise TypeError(f"{value_type} can't be the type of a join key")
    fixed = _FIXED.get(value_type)
    if fixed is not None:
        head, pack = _TWO(number, fixed.size), fixed.pack
        return lambda value: head + pack(value)
    if value_type == "STRING":
        return lambda value: _sized(number, value.encode())
    return lambda value: _sized(number, value)


def _sized(number: int, value: bytes) -> bytes:
    return _TWO(number, len(value)) + value


def key_encoder(key: Sequence[KeyPart], project: str) -> Encoder:
    """Return a function from columns of join keys, and their length, to Redis keys.

    Values of UNIX_TIMESTAMP keys are in seconds, as Feast stores them.

    Raises:
        TypeError: when a join key has a type that Feast can't store.
    """
    parts = sorted(key, key=lambda part: part.name)
    head = _U32(len(parts))
    for part in parts:
        name = part.name.encode()
        head += _TWO(_NUMBERS["STRING"], len(name)) + name
    tail = project.encode()
    encoders = [(part.column, _part_encoder(part.value_type)) for part in parts]
    if len(encoders) == 1 and encoders[0][0]:
        column, one = encoders[0]

        def single(columns: KeyColumns, _rows: int) -> list[bytes]:
            return [head + one(value) + tail for value in columns[column]]

        return single

    def several(columns: KeyColumns, rows: int) -> list[bytes]:
        encoded = [
            [encode(value) for value in columns[column]] if column else [encode("")] * rows
            for column, encode in encoders
        ]
        return [head + b"".join(values) + tail for values in zip(*encoded, strict=True)]

    return several


def group_reads(
    reads: Sequence[ViewRead], project: str
) -> tuple[tuple[Group, ...], tuple[Slice, ...]]:
    """Put reads with the same key together; return the groups and where each read stands."""
    members: dict[tuple[KeyPart, ...], list[int]] = {}
    for number, read in enumerate(reads):
        members.setdefault(read.key, []).append(number)
    groups: list[Group] = []
    slices: dict[int, Slice] = {}
    for key, numbers in members.items():
        names: list[bytes] = []
        for number in numbers:
            read = reads[number]
            start = len(names)
            names += [feature_field(read.stored_as, f.name) for f in read.features]
            slices[number] = Slice(len(groups), start, len(names))
            names.append(time_field(read.stored_as))
        groups.append(Group(key_encoder(key, project), hmget_fields(names)))
    return tuple(groups), tuple(slices[number] for number in range(len(reads)))
