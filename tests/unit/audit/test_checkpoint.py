"""Checkpoints: the published formats, rotation, and what is refused."""

from __future__ import annotations

import base64

import pytest

from services.audit import checkpoint as cp

ROOT = bytes(range(32))


def signer(name: str = "log.example/one", fill: int = 1) -> cp.SignerKey:
    """A signer with a fixed key."""
    return cp.SignerKey.from_seed(name, bytes([fill]) * 32)


def test_a_published_vector_verifies():
    """The example note and key of Go's sumdb/note package (an outside implementation) verify."""
    key = cp.VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    blob = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert blob[:4] == key.key_id
    key.public.verify(blob[4:], text.encode())
    assert str(key) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_round_trip():
    """What is signed is read back, and has the published shape line by line."""
    one = signer()
    point = cp.Checkpoint("log.example/one", 17, ROOT, ("an extension",))
    note = cp.sign(point, [one])
    lines = note.split("\n")
    assert lines[:3] == ["log.example/one", "17", base64.b64encode(ROOT).decode()]
    assert lines[4] == ""
    assert lines[5].startswith("— log.example/one ")
    assert cp.verify(note, [cp.VerifierKey.parse(str(one.verifier))], "log.example/one") == point


def test_rotation():
    """A note by the old and the new key is good for a verifier who knows either."""
    old, new, stranger = signer(fill=1), signer(fill=2), signer(fill=3)
    note = cp.sign(cp.Checkpoint("log.example/one", 1, ROOT), [old, new])
    assert cp.verify(note, [old.verifier]).size == 1
    assert cp.verify(note, [new.verifier]).size == 1
    with pytest.raises(cp.CheckpointError, match="no known key"):
        cp.verify(note, [stranger.verifier])


def test_every_flipped_byte_is_refused():
    """A note with any one byte changed is never accepted as another statement."""
    one = signer()
    note = cp.sign(cp.Checkpoint("log.example/one", 4711, ROOT), [one]).encode()
    for at in range(len(note)):
        for flip in (1, 0x20):
            changed = bytearray(note)
            changed[at] ^= flip
            with pytest.raises((cp.CheckpointError, UnicodeDecodeError)):
                cp.verify(changed.decode(), [one.verifier])


@pytest.mark.parametrize("text", ["", "a\n1\n", "a\n01\nAA==\n", "a\n-1\nAA==\n", "a\n1\n!\n"])
def test_malformed_text(text):
    """Too few lines, sizes with leading zeroes or signs, and bad base64 are refused."""
    with pytest.raises(cp.CheckpointError):
        cp.parse_text(text)


def test_another_logs_checkpoint_is_refused():
    """A good signature on another log's checkpoint proves nothing about this one."""
    note = cp.sign(cp.Checkpoint("log.example/two", 1, ROOT), [signer()])
    with pytest.raises(cp.CheckpointError, match="not of"):
        cp.verify(note, [signer().verifier], "log.example/one")


@pytest.mark.parametrize("vkey", ["", "a+b", "a+00000000+AAAA", "a b+00+AQ=="])
def test_bad_verifier_keys(vkey):
    """A key that isn't one, or whose id is not its own, is refused."""
    with pytest.raises(cp.CheckpointError):
        cp.VerifierKey.parse(vkey)


def test_split_notes_leaves_a_torn_one_out():
    """A file of notes whose last one was torn by a crash yields the complete ones."""
    notes = [cp.sign(cp.Checkpoint("o", n, ROOT), [signer()]) for n in range(3)]
    text = "".join(note + "\n" for note in notes)
    assert list(cp.split_notes(text)) == notes
    for cut in range(1, len(notes[2])):
        assert list(cp.split_notes(text[:-cut])) == notes[:2]
