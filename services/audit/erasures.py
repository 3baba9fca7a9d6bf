"""Erasures of logs replayed on a key store that came back from a backup."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from services.audit.filesystem import OsFileSystem
from services.audit.keystore import KeyStore
from services.audit.storage import LOG
from services.audit.verify import read_leaves
from twinpath.audit.v1 import record_pb2


def erased_pseudonyms(directory: Path) -> list[str]:
    """Return the pseudonyms that a log says were erased.

    Raises:
        FrameError: the log is damaged.
    """
    files = OsFileSystem(directory / LOG, exclusive=False)
    found = []
    for _, leaf in read_leaves(files):
        record = record_pb2.Record.FromString(leaf)
        if record.kind == record_pb2.RECORD_KIND_ERASURE:
            found.append(record.event.target)
    files.close()
    return found


def replay(directories: Iterable[Path], key_store: Path) -> int:
    """Destroy the keys of all who were erased by any of the logs; return how many had keys."""
    pseudonyms = [name for folder in directories for name in erased_pseudonyms(folder)]
    store = KeyStore(key_store)
    try:
        return store.destroy_pseudonyms(pseudonyms, time.time_ns() // 1000)
    finally:
        store.close()
