"""The offline verifier: everything that was changed is found, and the record is named."""

from __future__ import annotations

import random

import pytest

from services.audit import verify
from services.audit.checkpoint import Checkpoint, sign
from services.audit.checkpoint_file import NAME, CheckpointFile
from services.audit.merkle import ProofError, Tree
from tests.unit.audit import mutations as mu
from tests.unit.audit.simfs import SimFileSystem

KEYS = [mu.SIGNER.verifier]


def last_note(files: SimFileSystem) -> str:
    """The last checkpoint, as somebody outside would have kept it."""
    return CheckpointFile(mu.copy_of(files), mu.ORIGIN, KEYS).last_note


def test_an_untouched_log_verifies():
    """Nothing is found where nothing was done, and each record is provably in."""
    log = mu.build_log()
    report = verify.verify_log(log, KEYS, witnessed=[last_note(log)])
    assert report.ok, report.breaks
    assert (report.size, report.unsigned, report.checkpoints) == (50, 0, 8)
    assert all(verify.prove_inclusion(report, n) for n in range(50))
    with pytest.raises(ProofError):
        verify.prove_inclusion(report, 50)


@pytest.mark.parametrize("kind", mu.KINDS)
def test_every_mutation_is_found(kind):
    """Sixty mutations of each kind, in any file: all of them are found."""
    log = mu.build_log()
    witness = [last_note(log)]
    pristine = {name: bytes(file.seen) for name, file in log.files.items()}
    for seed in range(60):
        damaged = mu.mutate(log, kind, random.Random(seed))
        if {name: bytes(file.seen) for name, file in damaged.files.items()} == pristine:
            continue
        report = verify.verify_log(damaged, KEYS, witnessed=witness)
        assert not report.ok, f"{kind}, seed {seed}"


def test_the_record_is_named():
    """A byte flipped in a record is reported with that very record's index."""
    log = mu.build_log()
    for index in range(50):
        damaged = mu.copy_of(log)
        for file in damaged.files.values():
            at = bytes(file.seen).find(b"decision %04d " % index)
            if at >= 0:
                file.seen[at + 3] ^= 1
        report = verify.verify_log(damaged, KEYS)
        assert report.first is not None
        assert report.first.index == index


def test_a_forged_record_is_pinned_by_the_side_file():
    """With checksums recomputed too, the record in a sealed segment is still named exactly."""
    log = mu.build_log()
    leaves = mu.leaves_of(log)
    leaves[5] = b"decision 0005 forged"
    damaged = mu.forged(log, leaves)
    for name, file in log.files.items():
        if name.endswith(".idx"):
            damaged.files[name] = file
    report = verify.verify_log(damaged, KEYS)
    assert any(found.index == 5 for found in report.breaks)


def test_a_fork_is_found():
    """Two signed statements that can't both be true of one log: the second is refused."""
    log = mu.build_log()
    other = Tree(b"\x01" * 32 * 50)
    forged = sign(Checkpoint(mu.ORIGIN, 50, other.root()), [mu.SIGNER])
    log.files[NAME].seen += forged.encode() + b"\n"
    assert not verify.verify_log(log, KEYS).ok


def test_an_unsigned_tail_is_counted():
    """Records that no checkpoint covers yet are reported as such, not as verified."""
    log = mu.build_log()
    notes = bytes(log.files[NAME].seen).decode()
    log.files[NAME].seen = bytearray(notes[: notes.rfind(mu.ORIGIN + "\n50\n")].encode())
    report = verify.verify_log(log, KEYS)
    assert report.ok, report.breaks
    assert report.unsigned == 1


def test_a_checkpoint_that_was_taken_back_is_found():
    """The records are all there; the log's own file lacks a checkpoint that somebody was given."""
    log = mu.build_log()
    given = last_note(log)
    notes = bytes(log.files[NAME].seen).decode()
    log.files[NAME].seen = bytearray(notes[: notes.rfind(mu.ORIGIN + "\n50\n")].encode())
    report = verify.verify_log(log, KEYS, witnessed=[given])
    assert report.first is not None
    assert report.first.index == 49


def test_a_stranger_can_not_vouch():
    """Checkpoints by a key that isn't trusted prove nothing."""
    other = type(mu.SIGNER).from_seed(mu.ORIGIN, b"\x08" * 32)
    assert not verify.verify_log(mu.build_log(), [other.verifier]).ok
