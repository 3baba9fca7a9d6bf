"""Kept inner nodes: the same tree as the one that was hashed, and nothing that is damaged."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit import tree_file
from services.audit.merkle import HASH_SIZE, Tree, leaf_hash


def hashes_of(count: int) -> bytes:
    """The hashes of so many different leaves, joined."""
    return b"".join(leaf_hash(b"%d" % n) for n in range(count))


@given(st.lists(st.integers(0, 90), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_kept_nodes_make_the_same_tree(parts, more):
    """Built from kept parts, and grown on, the tree has the roots of one that was hashed."""
    whole = Tree(hashes_of(sum(parts) + more))
    again, at = Tree(), 0
    for part in parts:
        leaves = hashes_of(at + part)[at * HASH_SIZE :]
        kept = tree_file.encode(at, at + part, leaves, whole.inner(at, at + part))
        inner = tree_file.decode(kept, at, leaves)
        assert inner is not None
        assert again.extend_known(leaves, inner)
        at += part
    again.extend([hashes_of(at + more)[at * HASH_SIZE :]])
    assert again.size == whole.size
    for size in range(whole.size + 1):
        assert again.root(size) == whole.root(size)


def test_what_is_not_whole_or_of_other_leaves_is_not_used():
    """A flipped bit, a missing byte, another place or other leaves: hashed anew."""
    leaves = hashes_of(11)
    kept = tree_file.encode(0, 11, leaves, Tree(leaves).inner(0, 11))
    for at in range(len(kept)):
        flipped = bytearray(kept)
        flipped[at] ^= 1
        assert tree_file.decode(bytes(flipped), 0, leaves) is None
        assert tree_file.decode(kept[:at], 0, leaves) is None
    assert tree_file.decode(kept, 1, leaves) is None
    assert tree_file.decode(kept, 0, leaves[HASH_SIZE:]) is None
    assert tree_file.decode(kept, 0, hashes_of(12)[HASH_SIZE:]) is None
    assert not Tree().extend_known(leaves, Tree(leaves).inner(0, 11)[HASH_SIZE:])
