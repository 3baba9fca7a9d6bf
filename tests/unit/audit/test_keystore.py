"""The key store: pseudonyms, payloads, and erasure that leaves nothing in its files."""

from __future__ import annotations

import os

import pytest

from services.audit.keystore import KeyStore, PayloadError


def test_a_subject_keeps_its_keys(tmp_path):
    """Keys are made once, differ between subjects, and survive a restart."""
    path = tmp_path / "keys" / "keys.sqlite"
    store = KeyStore(path)
    assert store.find("patient_id=1") is None
    first = store.ensure(["patient_id=1", "patient_id=2", "patient_id=1"])
    assert len(first) == 2
    one, two = first["patient_id=1"], first["patient_id=2"]
    assert {one.pseudonym, one.hmac_key, one.payload_key}.isdisjoint(
        {two.pseudonym, two.hmac_key, two.payload_key}
    )
    store.close()
    again = KeyStore(path)
    assert again.ensure(["patient_id=1"])["patient_id=1"] == one
    assert again.by_pseudonym(two.pseudonym) == two
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    again.close()


def test_payloads_open_only_where_they_belong(tmp_path):
    """A payload opens with its subject's key for its decision, and with no other."""
    store = KeyStore(tmp_path / "k.sqlite")
    keys = store.ensure(["a", "b"])
    sealed = keys["a"].seal(b"input", b"decision-1")
    assert b"input" not in sealed
    assert keys["a"].open(sealed, b"decision-1") == b"input"
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for key, blob, bound in (
        (keys["b"], sealed, b"decision-1"),
        (keys["a"], sealed, b"decision-2"),
        (keys["a"], flipped, b"decision-1"),
        (keys["a"], b"", b"decision-1"),
    ):
        with pytest.raises(PayloadError):
            key.open(blob, bound)


def test_erasure_leaves_no_key_in_any_file(tmp_path):
    """After destroy, neither key, pseudonym link nor subject is in the store's files or memory."""
    store = KeyStore(tmp_path / "k.sqlite")
    names = [f"subject-{n:04d}-name" for n in range(500)]
    keys = store.ensure(names)
    victim = keys[names[250]]
    files = lambda: b"".join(p.read_bytes() for p in tmp_path.iterdir())  # noqa: E731
    assert victim.payload_key in files()
    assert store.destroy(names[250], now_us=99) == victim.pseudonym
    for secret in (victim.payload_key, victim.hmac_key, names[250].encode()):
        assert secret not in files()
    assert keys[names[251]].payload_key in files()
    assert store.find(names[250]) is None
    assert store.cached(names[250]) is None
    assert store.by_pseudonym(victim.pseudonym) is None
    assert store.destroyed(victim.pseudonym) == 99
    assert store.destroy(names[250], now_us=100) is None
    assert store.ensure([names[250]])[names[250]].pseudonym != victim.pseudonym


def test_a_restore_replays_erasures(tmp_path):
    """Keys that come back with a backup are destroyed again by their pseudonyms."""
    store = KeyStore(tmp_path / "k.sqlite")
    keys = store.ensure(["a", "b"])
    store.backup(tmp_path / "backup.sqlite")
    store.destroy("a", now_us=1)
    restored = KeyStore(tmp_path / "backup.sqlite")
    assert restored.find("a") == keys["a"]
    assert restored.destroy_pseudonyms([keys["a"].pseudonym, "never-was"], now_us=2) == 1
    assert restored.find("a") is None
    assert restored.find("b") == keys["b"]


def test_the_cache_is_bounded(tmp_path):
    """Only so many keys stay in memory; the others come back from the file."""
    store = KeyStore(tmp_path / "k.sqlite", cached=3, random_bytes=os.urandom)
    for n in range(10):
        store.ensure([f"s{n}"])
    assert [store.cached(f"s{n}") is not None for n in range(10)] == [False] * 7 + [True] * 3
    assert store.ensure(["s0"])["s0"] == store.find("s0")
