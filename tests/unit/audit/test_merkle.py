"""The Merkle tree against RFC 6962's vectors and a naive oracle written from the RFC's text."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit import merkle

# Leaves and roots of the Certificate Transparency reference implementation's test suite.
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def tree_of(leaves: list[bytes]) -> merkle.Tree:
    """The tree over these leaves, grown one by one."""
    tree = merkle.Tree()
    for leaf in leaves:
        tree.append(merkle.leaf_hash(leaf))
    return tree


def test_reference_vectors():
    """The roots of the reference implementation's eight leaves come out at each size."""
    tree = tree_of(CT_LEAVES)
    assert [tree.root(n + 1).hex() for n in range(8)] == list(CT_ROOTS)
    assert tree.root(0).hex() == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert [h.hex() for h in tree.inclusion_proof(0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=70), st.data())
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_oracle(leaves, data):
    """Roots, inclusion and consistency proofs equal those of the recursive definition."""
    tree = tree_of(leaves)
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    built_at_once = merkle.Tree(b"".join(hashes))
    cut = data.draw(st.integers(0, len(leaves)))
    in_parts = merkle.Tree()
    for part in (hashes[:cut], hashes[cut:]):
        in_parts.extend(part)
    second = data.draw(st.integers(1, len(leaves)))
    first = data.draw(st.integers(1, second))
    index = data.draw(st.integers(0, second - 1))
    root = naive_root(leaves[:second])
    assert tree.root(second) == built_at_once.root(second) == in_parts.root(second) == root
    path = naive_path(index, leaves[:second])
    assert tree.inclusion_proof(index, second) == path
    merkle.verify_inclusion(index, second, merkle.leaf_hash(leaves[index]), path, root)
    proof = naive_subproof(first, leaves[:second], True)
    assert tree.consistency_proof(first, second) == proof
    merkle.verify_consistency(first, second, proof, naive_root(leaves[:first]), root)


@given(st.integers(2, 60), st.data())
@settings(max_examples=150, deadline=None)
def test_false_proofs_are_refused(size, data):
    """A proof with a changed, missing or extra hash, another index, size or root is refused."""
    tree = tree_of([bytes([n]) for n in range(size)])
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size - 1))
    leaf, root, old = merkle.leaf_hash(bytes([index])), tree.root(), tree.root(first)
    path, proof = tree.inclusion_proof(index), tree.consistency_proof(first)
    other = sha256(data.draw(st.binary(min_size=1, max_size=4)) + b"?").digest()
    at = data.draw(st.integers(0, len(path) - 1))
    for bad in (path[:-1], [*path, other], [*path[:at], other, *path[at + 1 :]]):
        with pytest.raises(merkle.ProofError):
            merkle.verify_inclusion(index, size, leaf, bad, root)
    for args in (
        (index, size, other, path, root),
        (index, size, leaf, path, other),
        (index ^ 1, size, leaf, path, root) if index ^ 1 < size else (size, size, leaf, path, root),
    ):
        with pytest.raises(merkle.ProofError):
            merkle.verify_inclusion(*args)
    at = data.draw(st.integers(0, len(proof) - 1))
    for bad in (proof[:-1], [*proof, other], [*proof[:at], other, *proof[at + 1 :]]):
        with pytest.raises(merkle.ProofError):
            merkle.verify_consistency(first, size, bad, old, root)
    for args in (
        (first, size, proof, other, root),
        (first, size, proof, old, other),
        (size, first, proof, root, old),
    ):
        with pytest.raises(merkle.ProofError):
            merkle.verify_consistency(*args)


def test_nothing_to_prove():
    """From nothing, or to itself, a log is consistent with an empty proof and nothing else."""
    tree = tree_of(CT_LEAVES)
    merkle.verify_consistency(0, 8, [], merkle.EMPTY_ROOT, tree.root())
    merkle.verify_consistency(8, 8, [], tree.root(), tree.root())
    with pytest.raises(merkle.ProofError, match="forked"):
        merkle.verify_consistency(8, 8, [], tree.root(), tree.root(7))
    with pytest.raises(merkle.ProofError):
        merkle.verify_consistency(8, 8, [tree.root()], tree.root(), tree.root())


def test_out_of_range_is_an_index_error():
    """Asking for a leaf or a size that isn't there fails before any proof is made."""
    tree = tree_of(CT_LEAVES)
    for ask in (
        lambda: tree.leaf(8),
        lambda: tree.root(9),
        lambda: tree.inclusion_proof(8),
        lambda: tree.inclusion_proof(3, 3),
        lambda: tree.consistency_proof(5, 4),
    ):
        with pytest.raises(IndexError):
            ask()
