"""Backup and restore of a log, both verified.

A backup may be taken while the service runs. The order makes it whole: first the checkpoints and
the watermark, so that what is copied after them holds all that they speak of; then the segments;
then the payloads, which are durable before their records. What the copy caught of an unfinished
batch at its end is cut, and no more than that.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.audit import checkpoint_file, verify
from services.audit.checkpoint import VerifierKey
from services.audit.filesystem import OsFileSystem
from services.audit.journal import Journal
from services.audit.storage import LOG, PAYLOADS, payload_digest
from services.audit.watermark import WATERMARK

KEYS = "keys.sqlite"


class BackupError(Exception):
    """A backup, or what it was restored to, is not what it must be."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and found good."""

    report: verify.Report
    payloads: int
    with_keys: bool


def make_backup(
    directory: Path, target: Path, keys: Sequence[VerifierKey], key_store: Path | None
) -> Copied:
    """Copy a log, running or not, to an empty folder and verify the copy.

    Args:
        directory: the log's folder, with log/ and payloads/.
        target: must not exist, or be empty.
        keys: whose signatures count.
        key_store: the subjects' keys, to be copied too. A backup with keys and log together is
            worth as much as the data itself: keep them apart where you can.

    Raises:
        BackupError: the target isn't empty, or the copy doesn't verify.
    """
    _empty(target)
    _copy_log(directory, target)
    if key_store is not None:
        source = sqlite3.connect(f"file:{key_store}?mode=ro", uri=True)
        copy = sqlite3.connect(target / KEYS)
        try:
            source.backup(copy)
        finally:
            source.close()
            copy.close()
        (target / KEYS).chmod(0o600)
    return _checked(target, keys)


def restore(
    backup: Path, directory: Path, keys: Sequence[VerifierKey], key_store: Path | None
) -> Copied:
    """Put a backup back in an empty place, and verify it there.

    The index isn't part of a backup: the service makes it anew. Erasures that the restored log
    knows of are replayed when the service starts; erasures.py replays those of a newer log.

    Args:
        backup: what `make_backup` wrote.
        directory: the log's folder; must not exist, or be empty.
        keys: whose signatures count.
        key_store: where to put the subjects' keys, if the backup has them. Must not exist.

    Raises:
        BackupError: the backup doesn't verify, or the place isn't empty.
    """
    _checked(backup, keys)
    _empty(directory)
    if key_store is not None:
        if not (backup / KEYS).exists():
            raise BackupError(f"{backup} has no keys")
        if key_store.exists():
            raise BackupError(f"{key_store} is there already")
        key_store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(backup / KEYS, key_store)
        key_store.chmod(0o600)
    _copy_log(backup, directory)
    copied = _checked(directory, keys)
    return Copied(copied.report, copied.payloads, key_store is not None)


def _copy_log(source: Path, target: Path) -> None:
    (target / LOG).mkdir(parents=True)
    (target / PAYLOADS).mkdir()
    for folder in (LOG, PAYLOADS):
        for path in _in_order(source / folder):
            shutil.copyfile(path, target / folder / path.name)


def _in_order(folder: Path) -> Iterator[Path]:
    first = (checkpoint_file.NAME, WATERMARK)
    for name in first:
        if (folder / name).exists():
            yield folder / name
    yield from sorted(folder.glob("*.idx"))  # before the segments: a sealed one grows no more
    yield from sorted(folder.glob("*.seg"))


def _empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)


def _checked(folder: Path, keys: Sequence[VerifierKey]) -> Copied:
    """Cut what an unfinished write left at the ends, verify, and count."""
    try:
        files, payload_files = OsFileSystem(folder / LOG), OsFileSystem(folder / PAYLOADS)
        journal, _ = Journal.open(files)
        payloads, _ = Journal.open(payload_files, hasher=payload_digest, watermark=False)
        report = verify.verify_log(files, keys)
        count = payloads.size
        for opened in (journal, payloads, files, payload_files):
            opened.close()
    except Exception as error:
        raise BackupError(f"{folder} does not verify: {error}") from error
    if report.first is not None:
        raise BackupError(f"{folder} does not verify: {report.first}")
    return Copied(report, count, (folder / KEYS).exists())
