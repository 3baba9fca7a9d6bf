"""Damage done to a log, by accident and by somebody who knows the format. Unit and chaos."""

from __future__ import annotations

import random

from services.audit import frames, sidecar
from services.audit.checkpoint import Checkpoint, SignerKey
from services.audit.checkpoint_file import NAME, CheckpointFile
from services.audit.journal import Journal
from services.audit.merkle import Tree, leaf_hash
from services.audit.watermark import WATERMARK
from tests.unit.audit.crashes import LIMITS
from tests.unit.audit.simfs import SimFile, SimFileSystem

ORIGIN = "log.example/audit"
SIGNER = SignerKey.from_seed(ORIGIN, b"\x07" * 32)
KINDS = ("flip", "delete", "reorder", "truncate", "rollback", "rewrite", "insert", "file")


def build_log(records: int = 50) -> SimFileSystem:
    """A log with checkpoints along the way and one at its end, as an orderly shutdown leaves it."""
    files = SimFileSystem()
    journal, _ = Journal.open(files, limits=LIMITS)
    points = CheckpointFile(files, ORIGIN, [SIGNER.verifier])
    tree = Tree()
    for n in range(records):
        leaf = b"decision %04d " % n + bytes([n % 251]) * (n % 60)
        journal.append([leaf])
        tree.append(leaf_hash(leaf))
        if n % 7 == 6 or n == records - 1:
            points.append(Checkpoint(ORIGIN, tree.size, tree.root()), [SIGNER])
    journal.close()
    return files


def copy_of(files: SimFileSystem) -> SimFileSystem:
    """An independent copy."""
    copy = SimFileSystem()
    for name, file in files.files.items():
        copy.files[name] = SimFile()
        copy.files[name].seen = bytearray(file.seen)
    return copy


def leaves_of(files: SimFileSystem) -> list[bytes]:
    """All the records."""
    journal, _ = Journal.open(copy_of(files), limits=LIMITS)
    return [leaf for _, leaf in journal.scan()]


def forged(files: SimFileSystem, leaves: list[bytes]) -> SimFileSystem:
    """The same log with other records, every checksum and side file recomputed: a knowing hand."""
    copy = copy_of(files)
    for name in list(copy.files):
        if name.endswith((frames.SUFFIX, frames.SIDE_SUFFIX)) or name == WATERMARK:
            del copy.files[name]
    journal, _ = Journal.open(copy, limits=LIMITS)
    for leaf in leaves:
        journal.append([leaf])
    journal.close()
    return copy


def mutate(pristine: SimFileSystem, kind: str, chance: random.Random) -> SimFileSystem:
    """Return a damaged copy."""
    leaves = leaves_of(pristine)
    at = chance.randrange(len(leaves))
    if kind == "flip":
        files = copy_of(pristine)
        name = chance.choice([n for n in files.names() if files.size(n)])
        files.files[name].seen[chance.randrange(files.size(name))] ^= 1 << chance.randrange(8)
        return files
    if kind == "truncate":
        files = copy_of(pristine)
        name = chance.choice([n for n in files.names() if files.size(n)])
        del files.files[name].seen[chance.randrange(files.size(name)) :]
        return files
    if kind == "file":
        files = copy_of(pristine)
        kept = (sidecar.side_name(""), WATERMARK)  # derived: they may be missing
        del files.files[
            chance.choice([n for n in files.names() if not n.endswith(kept) and n not in kept])
        ]
        return files
    if kind == "rollback":  # back to an earlier state of everything; a checkpoint was kept outside
        files = forged(pristine, leaves[: chance.randrange(len(leaves))])
        notes = bytes(files.files[NAME].seen).decode().split("\n\n—")
        keep = len(leaves_of(files)) // 7
        text = "\n\n—".join(notes[: keep + 1])
        text = text[: text.rfind("\n" + ORIGIN)] if keep < len(notes) - 1 else text
        files.files[NAME].seen = bytearray(text.encode())
        return files
    if kind == "delete":
        del leaves[at]
    elif kind == "insert":
        leaves.insert(at, b"never happened")
    elif kind == "reorder":
        other = chance.choice([n for n in range(len(leaves)) if n != at])
        leaves[at], leaves[other] = leaves[other], leaves[at]
    else:
        leaves[at] = leaves[at].replace(b"decision", b"revision")
    return forged(pristine, leaves)
