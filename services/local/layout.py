"""The layouts of a model's inputs that were found right: names, types and shapes, looked at once.

Callers of a model send the same tensors all day. What can be said about their layout is said once
and kept: that it fits the model, how many bytes each tensor has, how many rows there are, and all
bytes of the canonical form but the contents, so that a digest costs one SHA-256 and no walk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from twinpath.inference import digest, tensors
from twinpath.inference.v1 import tensor_pb2

# (name, datatype, shape) of each tensor.
Signature = tuple[tuple[str, int, tuple[int, ...]], ...]

_MOST = 512  # layouts kept of one model; more are looked at each time


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of inputs with one signature.

    Attributes:
        signature: The tensors.
        sizes: Bytes of each tensor's contents; -1 where they don't follow from the shape (BYTES).
        prefixes: What stands before each tensor's contents in the canonical form; empty where a
            size does not follow from the shape.
        rows: Rows of the input: its batch dimension, else 1.
        kin: Inputs that have this in common may share a request, once their model, its version and
            their priority are the same too.
    """

    signature: Signature
    sizes: tuple[int, ...]
    prefixes: tuple[bytes, ...]
    rows: int
    kin: Hashable

    def digest(self, raws: Sequence[bytes]) -> bytes | None:
        """Return the digest of an input with these contents, None where it has to be walked."""
        if not self.prefixes:
            return None
        hashed = hashlib.sha256(self.prefixes[0])
        hashed.update(raws[0])
        for prefix, raw in zip(self.prefixes[1:], raws[1:], strict=True):
            hashed.update(prefix)
            hashed.update(raw)
        return hashed.digest()


def signature(given: Sequence[tensor_pb2.Tensor]) -> Signature:
    """Return the signature of an input; () where a tensor's contents are not raw."""
    found = []
    for tensor in given:
        if tensor.HasField("contents"):
            return ()
        found.append((tensor.name, tensor.datatype, tuple(tensor.shape)))
    return tuple(found)


def make(given: Sequence[tensor_pb2.Tensor], signed: Signature, rows: int) -> Layout:
    """Return the layout of an input that fits its model."""
    sizes = tuple(-1 if t.datatype == tensors.BYTES else len(t.raw) for t in given)
    return Layout(
        signed,
        sizes,
        () if -1 in sizes else _prefixes(given, sizes),
        rows,
        tuple((name, datatype, shape[1:]) for name, datatype, shape in signed),
    )


def _prefixes(given: Sequence[tensor_pb2.Tensor], sizes: Sequence[int]) -> tuple[bytes, ...]:
    """Cut the contents out of the canonical form; () where it has none."""
    try:
        whole = digest.canonical_form(given)
    except ValueError:
        return ()
    found = []
    for tensor, size in zip(reversed(given), reversed(sizes), strict=True):
        head = len(whole) - size
        name, kind = tensor.name.encode(), tensors.datatype_name(tensor.datatype)
        start = head - (4 + len(name) + 4 + len(kind) + 4 + 8 * len(tensor.shape) + 8)
        found.append(whole[start:head])
        whole = whole[:start]
    found[-1] = whole + found[-1]
    return tuple(reversed(found))


class Layouts:
    """The layouts of one model that were found right."""

    def __init__(self) -> None:
        self._known: dict[Signature, Layout] = {}

    def get(self, signed: Signature) -> Layout | None:
        """Return a layout that was kept."""
        return self._known.get(signed)

    def keep(self, layout: Layout) -> None:
        """Keep one."""
        if layout.signature and len(self._known) < _MOST:
            self._known[layout.signature] = layout
