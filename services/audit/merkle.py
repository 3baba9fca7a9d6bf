"""The Merkle tree of RFC 6962 / RFC 9162, with SHA-256. Pure.

`Tree` keeps the hash of every complete subtree, one flat array a level: 64 bytes a leaf in memory,
one extra hash an append (amortized), and every root or proof in O(log n) look-ups. The functions
below it check proofs and need nothing but the proof itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()


class ProofError(ValueError):
    """A proof doesn't prove what it claims to; the message says where it fails."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf: SHA-256(0x00 || data), 32 bytes."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node over its two children: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """An append-only Merkle tree over leaf hashes, indexes from 0.

    Any earlier size stays provable: `size` arguments default to the present one.
    """

    def __init__(self, leaf_hashes: bytes | bytearray = b"") -> None:
        """Build the tree over `leaf_hashes`, the concatenation of 32-byte hashes."""
        if len(leaf_hashes) % HASH_SIZE:
            raise ValueError(f"{len(leaf_hashes)} bytes are not whole hashes of {HASH_SIZE}")
        self._levels = [bytearray(leaf_hashes)]
        self._grow()

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return len(self._levels[0]) // HASH_SIZE

    def append(self, leaf: bytes) -> int:
        """Add a leaf by its hash (32 bytes) and return its index."""
        if len(leaf) != HASH_SIZE:
            raise ValueError(f"a leaf hash has {HASH_SIZE} bytes, not {len(leaf)}")
        index = self.size
        levels, level, at = self._levels, 0, index
        levels[0] += leaf
        while at & 1:
            pair = sha256(b"\x01" + levels[level][-2 * HASH_SIZE :]).digest()
            level += 1
            at >>= 1
            if level == len(levels):
                levels.append(bytearray())
            levels[level] += pair
        return index

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaves by their hashes: 32 bytes each, or several joined."""
        joined = b"".join(leaves)
        if len(joined) % HASH_SIZE:
            raise ValueError(f"{len(joined)} bytes are not whole hashes of {HASH_SIZE}")
        self._levels[0] += joined
        self._grow()

    def inner(self, first: int, stop: int) -> bytes:
        """Return the inner nodes that the leaves [first, stop) completed, level by level."""
        return b"".join(
            [
                self._levels[level][(first >> level) * HASH_SIZE : (stop >> level) * HASH_SIZE]
                for level in range(1, stop.bit_length())
            ]
        )

    def extend_known(self, leaves: bytes | bytearray, inner: bytes) -> bool:
        """Add leaves with the inner nodes that `inner` gave of them; False: they don't fit."""
        first = self.size
        stop = first + len(leaves) // HASH_SIZE
        counts = [(stop >> level) - (first >> level) for level in range(1, stop.bit_length())]
        if sum(counts) * HASH_SIZE != len(inner):
            return False
        self._levels[0] += leaves
        at = 0
        for level, count in enumerate(counts, 1):
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += inner[at : at + count * HASH_SIZE]
            at += count * HASH_SIZE
        return True

    def _grow(self) -> None:
        """Compute the inner nodes that are missing, a level at a time."""
        level, pair = 0, 2 * HASH_SIZE
        while True:
            below = self._levels[level]
            above = len(self._levels[level + 1]) if level + 1 < len(self._levels) else 0
            start, whole = 2 * above, len(below) // pair * pair
            if start == whole:
                return
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            fresh = bytes(below[start:whole])
            self._levels[level + 1] += b"".join(
                [
                    sha256(b"\x01" + fresh[at : at + pair]).digest()
                    for at in range(0, len(fresh), pair)
                ]
            )
            level += 1

    def leaf(self, index: int) -> bytes:
        """Return the hash of the leaf at `index`; IndexError where there is none."""
        if not 0 <= index < self.size:
            raise IndexError(f"leaf {index} of a tree of {self.size}")
        return bytes(self._levels[0][index * HASH_SIZE : (index + 1) * HASH_SIZE])

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` leaves; the empty tree's is SHA-256("")."""
        size = self._checked(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Prove that leaf `index` is in the tree of `size` leaves (RFC 9162, 2.1.3.1)."""
        size = self._checked(size)
        if not 0 <= index < size:
            raise IndexError(f"leaf {index} of a tree of {size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low = middle
        path.reverse()
        return path

    def consistency_proof(self, first: int, second: int | None = None) -> list[bytes]:
        """Prove that the tree of `first` leaves is a prefix of that of `second` (2.1.4.1).

        Empty where `first` is 0 or equals `second`.
        """
        second = self._checked(second)
        if not 0 <= first <= second:
            raise IndexError(f"no consistency from {first} to {second}")
        if first in (0, second):
            return []
        path: list[bytes] = []
        low, high, known = 0, second, True
        while first != high:
            middle = low + _split(high - low)
            if first <= middle:
                path.append(self._range(middle, high))
                high = middle
            else:
                path.append(self._range(low, middle))
                low, known = middle, False
        if not known:
            path.append(self._range(low, high))
        path.reverse()
        return path

    def _checked(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise IndexError(f"size {size} of a tree of {self.size}")
        return size

    def _range(self, low: int, high: int) -> bytes:
        """Hash of the subtree over [low, high), whose `low` is aligned as the RFC splits."""
        peaks: list[bytes] = []
        while low < high:
            level = _split_level(high - low)
            at = (low >> level) * HASH_SIZE
            peaks.append(bytes(self._levels[level][at : at + HASH_SIZE]))
            low += 1 << level
        joined = peaks.pop()
        while peaks:
            joined = node_hash(peaks.pop(), joined)
        return joined


def _split(count: int) -> int:
    """Return the largest power of two below `count` (count > 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _split_level(count: int) -> int:
    """Return the level of the largest complete subtree of at most `count` leaves."""
    return count.bit_length() - 1


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, 2.1.3.2).

    Raises:
        ProofError: if the proof hasn't the shape of one for this index and size.
    """
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} can't be in a tree of {size}")
    _check_hashes([leaf, *proof])
    node, last, hashed = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            hashed = node_hash(step, hashed)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, step)
        node >>= 1
        last >>= 1
    if last:
        raise ProofError("the inclusion proof is too short")
    return hashed


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hash stands at `index` in the tree with this size and root.

    Raises:
        ProofError: if it doesn't.
    """
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise ProofError(f"leaf {index} is not in the tree of {size}: the proof's root differs")


def verify_consistency(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> None:
    """Check that the second tree only adds to the first (RFC 9162, 2.1.4.2).

    Raises:
        ProofError: if it doesn't, or if the proof hasn't the right shape.
    """
    _check_hashes([*proof, first_root, second_root])
    if not 0 <= first <= second:
        raise ProofError(f"a tree of {second} can't continue one of {first}")
    if first in (0, second):
        if proof:
            raise ProofError("a consistency proof with nothing to prove must be empty")
        if first == 0 and first_root != EMPTY_ROOT:
            raise ProofError("the empty tree has another root")
        if first == second and first_root != second_root:
            raise ProofError(f"two roots for one size {first}: the log was forked")
        return
    if not proof:
        raise ProofError("the consistency proof is empty")
    steps = list(proof) if first & (first - 1) else [first_root, *proof]
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == last:
            old = node_hash(step, old)
            new = node_hash(step, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, step)
        node >>= 1
        last >>= 1
    if last:
        raise ProofError("the consistency proof is too short")
    if old != first_root:
        raise ProofError(f"the tree of {second} does not contain the one of {first}")
    if new != second_root:
        raise ProofError(f"the proof does not lead to the root of size {second}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    for hashed in hashes:
        if len(hashed) != HASH_SIZE:
            raise ProofError(f"a hash has {HASH_SIZE} bytes, not {len(hashed)}")
