"""The canonical form and the digest, written from tensor.proto's comments alone.

It shares no code with the product, uses no numpy and is slow on purpose: it is what the product's
own digest is compared with. `python -m tests.canonical` prints the test vectors' file.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
# Bits of the exponent, and the one NaN, of each floating-point type.
FLOATS = {
    "FP16": (0x7C00, 0x7E00),
    "BF16": (0x7F80, 0x7FC0),
    "FP32": (0x7F800000, 0x7FC00000),
    "FP64": (0x7FF0000000000000, 0x7FF8000000000000),
}


class Wire(NamedTuple):
    """A tensor as it travels."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def canonical_form(tensors: Iterable[Wire]) -> bytes:
    """Return the canonical form of normalized tensors, in the order given."""
    listed = list(tensors)
    out = b"twinpath.model-input.v1" + b"\x00" + struct.pack("<I", len(listed))
    for tensor in listed:
        name = tensor.name.encode("utf-8")
        kind = tensor.datatype.encode("ascii")
        out += struct.pack("<I", len(name)) + name
        out += struct.pack("<I", len(kind)) + kind
        out += struct.pack("<I", len(tensor.shape))
        for dimension in tensor.shape:
            out += struct.pack("<q", dimension)
        out += struct.pack("<Q", len(tensor.raw)) + tensor.raw
    return out


def digest(tensors: Iterable[Wire]) -> bytes:
    """Return the 32 bytes that identify normalized tensors."""
    return hashlib.sha256(canonical_form(tensors)).digest()


def normalize(tensors: Iterable[Wire]) -> list[Wire]:
    """Return the tensors with one NaN, no -0.0, clean BOOLs, ordered by name."""
    clean = [t._replace(raw=_clean(t.datatype, t.raw)) for t in tensors]
    return sorted(clean, key=lambda t: t.name.encode("utf-8"))


def _clean(datatype: str, raw: bytes) -> bytes:
    if datatype == "BOOL":
        return bytes(1 if byte else 0 for byte in raw)
    if datatype not in FLOATS:
        return raw
    size = SIZES[datatype]
    exponent, nan = FLOATS[datatype]
    sign = 1 << (8 * size - 1)
    out = b""
    for at in range(0, len(raw), size):
        bits = int.from_bytes(raw[at : at + size], "little")
        if bits & ~sign > exponent:  # an exponent of ones, and a fraction
            bits = nan
        elif bits == sign:
            bits = 0
        out += bits.to_bytes(size, "little")
    return out


def byte_strings(*elements: bytes) -> bytes:
    """Return BYTES elements in their raw form."""
    return b"".join(len(e).to_bytes(4, "little") + e for e in elements)


def _every_type() -> list[Wire]:
    found = []
    for datatype, size in SIZES.items():
        raw = bytes(range(1, 2 * size + 1)) if datatype != "BOOL" else b"\x01\x00"
        found.append(Wire(f"t_{datatype.lower()}", datatype, (1, 2), raw))
    return [*found, Wire("t_bytes", "BYTES", (1, 2), byte_strings(b"\xff\x00", b""))]


CASES: Mapping[str, list[Wire]] = {
    "one FP32 row": [Wire("features", "FP32", (1, 3), struct.pack("<3f", 1.5, -2.0, 1e-9))],
    "a scalar": [Wire("x", "INT64", (), struct.pack("<q", -1))],
    "an empty tensor": [Wire("x", "FP32", (0, 7), b"")],
    "an empty tensor of BYTES": [Wire("x", "BYTES", (2, 0), b"")],
    "FP32 NaNs of every kind become one": [
        Wire(
            "x",
            "FP32",
            (6,),
            b"".join(
                bits.to_bytes(4, "little")
                for bits in (
                    *(0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FC01234),
                    *(0x7F800000, 0xFF800000),  # the infinities stay
                )
            ),
        )
    ],
    "FP64 NaNs": [
        Wire(
            "x",
            "FP64",
            (3,),
            b"".join(
                bits.to_bytes(8, "little")
                for bits in (0xFFF8000000000000, 0x7FF0000000000001, 0x7FF0000000000000)
            ),
        )
    ],
    "FP16 NaNs": [Wire("x", "FP16", (3,), struct.pack("<3H", 0xFE01, 0x7C01, 0x7C00))],
    "BF16 NaNs": [Wire("x", "BF16", (3,), struct.pack("<3H", 0xFFC1, 0x7F81, 0x7F80))],
    "minus zero becomes zero, in every floating-point type": [
        Wire("a", "FP16", (1,), struct.pack("<H", 0x8000)),
        Wire("b", "BF16", (1,), struct.pack("<H", 0x8000)),
        Wire("c", "FP32", (2,), struct.pack("<2I", 0x80000000, 0x80000001)),
        Wire("d", "FP64", (1,), struct.pack("<Q", 0x8000000000000000)),
        Wire("e", "INT32", (1,), struct.pack("<I", 0x80000000)),
    ],
    "BOOL bytes that are neither 00 nor 01": [Wire("x", "BOOL", (4,), b"\x00\x01\x02\xff")],
    "BYTES: text, empty, not UTF-8": [
        Wire("x", "BYTES", (3,), byte_strings("Grüße".encode(), b"", b"\xff\xfe\x00"))
    ],
    "tensors out of order; by the bytes of their names": [
        Wire("b", "INT8", (1,), b"\x01"),
        Wire("\U0001f600", "INT8", (1,), b"\x02"),
        Wire("\uff5e", "INT8", (1,), b"\x03"),  # UTF-16 would put it after the one before
        Wire("a", "INT8", (1,), b"\x04"),
        Wire("B", "INT8", (1,), b"\x05"),
    ],
    "one tensor of every type": _every_type(),
}


def _as_json(tensor: Wire) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "raw": tensor.raw.hex(),
    }


def vectors() -> str:
    """Return the text of digest_vectors.json."""
    cases = []
    for name, given in CASES.items():
        normal = normalize(given)
        cases.append(
            {
                "case": name,
                "given": [_as_json(t) for t in given],
                "normalized": [_as_json(t) for t in normal],
                "canonical_form": canonical_form(normal).hex(),
                "digest": digest(normal).hex(),
            }
        )
    about = (
        "Test vectors of the canonical form in tensor.proto: normalize `given`, and get "
        "`normalized`, its canonical form and its digest. Byte strings are in hex."
    )
    return json.dumps({"about": about, "cases": cases}, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(vectors())
