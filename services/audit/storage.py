"""Opens all that the service keeps, and brings its parts in line with each other.

The log decides. The checkpoints must be of it, the index catches up with it, and the key store
forgets whom it says was erased.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from services.audit import records, tree_file
from services.audit.checkpoint_file import CheckpointFile
from services.audit.failures import CorruptLogError
from services.audit.filesystem import OsFileSystem
from services.audit.index import Index, Row, Search
from services.audit.journal import Journal, Limits
from services.audit.keystore import KeyStore
from services.audit.merkle import HASH_SIZE, Tree
from services.audit.seen import Seen
from services.audit.seen import decode as decode_seen
from services.audit.segments import Recovery
from services.audit.settings import AuditSettings
from services.audit.signing import Keyring, read_keyring
from twinpath.audit.v1 import record_pb2

log = logging.getLogger(__name__)

LOG = "log"
PAYLOADS = "payloads"
INDEX = "index.sqlite"
SEEN = "seen"
_CATCH_UP = 5_000


def payload_digest(sealed: bytes) -> bytes:
    """Return what a record says of its payload: SHA-256 of the ciphertext."""
    return sha256(sealed).digest()


@dataclass(slots=True)
class Storage:
    """Everything that is open. One process has it at a time."""

    files: OsFileSystem
    payload_files: OsFileSystem
    journal: Journal
    payloads: Journal
    tree: Tree
    points: CheckpointFile
    index: Index
    seen: Seen
    keys: KeyStore
    keyring: Keyring
    origin: str
    recovery: Recovery
    last_time_us: int
    kept_trees: set[str]

    def mark_at(self, size: int) -> int:
        """Return a number that tells this log at this size from any other."""
        return mark_of(self.tree, size)

    def save_seen(self, size: int, mark: int) -> None:
        """Keep the filter of decisions, complete up to a size, for the next start."""
        self.files.replace(SEEN, self.seen.encode(size, mark))

    def save_tree(self) -> None:
        """Keep the tree's inner nodes of each segment that is full, for the next start."""
        for name, first, hashes in self.journal.sealed():
            if name not in self.kept_trees:
                stop = first + len(hashes) // HASH_SIZE
                kept = tree_file.encode(first, stop, hashes, self.tree.inner(first, stop))
                self.files.replace(tree_file.tree_name(name), kept)
                self.kept_trees.add(name)

    def close(self) -> None:
        """Close everything."""
        self.journal.close()
        self.payloads.close()
        self.points.close()
        self.index.close()
        self.keys.close()
        self.files.close()
        self.payload_files.close()


def mark_of(tree: Tree, size: int) -> int:
    """Return seven bytes of the root at a size, as a number."""
    return int.from_bytes(tree.root(size)[:7])


def open_storage(settings: AuditSettings, now_us: int) -> Storage:
    """Open the log, or start one. Blocks; takes seconds on a large log.

    Raises:
        CorruptLogError: something that was durable is damaged; names the record.
        CheckpointError: a key or a checkpoint isn't what it must be.
        OSError: the storage is away, read-only, or another process has it.
    """
    keyring = read_keyring(
        settings.origin, settings.signing_key, settings.also_sign, settings.known_keys
    )
    files = OsFileSystem(settings.directory / LOG)
    try:
        payload_files = OsFileSystem(settings.directory / PAYLOADS)
    except BaseException:
        files.close()
        raise
    try:
        return _open(settings, keyring, files, payload_files, now_us)
    except BaseException:
        files.close()
        payload_files.close()
        raise


def _open(
    settings: AuditSettings,
    keyring: Keyring,
    files: OsFileSystem,
    payload_files: OsFileSystem,
    now_us: int,
) -> Storage:
    limits = Limits(segment_records=settings.segment_records)
    points = CheckpointFile(files, settings.origin, keyring.verifiers)
    signed = points.last.size if points.last else 0
    journal, recovery = Journal.open(files, durable_size=signed, limits=limits)
    if recovery.cut_bytes:
        log.warning(
            "cut an unfinished batch that nobody was told about",
            extra={"segment": recovery.cut_segment, "bytes": recovery.cut_bytes},
        )
    tree, kept_trees = _tree(files, journal)
    if points.last is not None and tree.root(signed) != points.last.root:
        tree, kept_trees = Tree(journal.leaf_hashes()), set()  # the kept nodes may be what is wrong
        if tree.root(signed) != points.last.root:
            raise CorruptLogError(0, f"the first {signed} records are not those that were signed")
    # Payloads are checked beside the first calls: each one is when it is read, and a look at all
    # of them takes as long as there are.
    payloads, _ = Journal.open(
        payload_files, limits=limits, hasher=payload_digest, watermark=False, check_sealed=False
    )
    index = _caught_up(settings.directory / INDEX, journal, payloads, tree)
    keys = KeyStore(settings.key_store, cached=settings.cached_subjects)
    _replay_erasures(index, journal, keys, now_us)
    last = 0
    if journal.size:
        leaf = journal.read(journal.size - 1)
        last = record_pb2.Record.FromString(leaf).record_time_unix_us
    return Storage(
        files=files,
        payload_files=payload_files,
        journal=journal,
        payloads=payloads,
        tree=tree,
        points=points,
        index=index,
        seen=_seen(files, index, tree),
        keys=keys,
        keyring=keyring,
        origin=settings.origin,
        recovery=recovery,
        last_time_us=last,
        kept_trees=kept_trees,
    )


def _tree(files: OsFileSystem, journal: Journal) -> tuple[Tree, set[str]]:
    """Return the tree, from kept inner nodes where there are some, and whose they are."""
    tree, kept = Tree(), set[str]()
    for name, first, hashes in journal.sealed():
        try:
            inner = tree_file.decode(files.read_all(tree_file.tree_name(name)), first, hashes)
        except FileNotFoundError:
            inner = None
        if inner is not None and tree.extend_known(hashes, inner):
            kept.add(name)
        else:
            tree.extend([bytes(hashes)])
    tree.extend([journal.leaf_hashes(tree.size)])
    return tree, kept


def _caught_up(path: Path, journal: Journal, payloads: Journal, tree: Tree) -> Index:
    index = Index(path)
    size = index.size
    if size > journal.size or (size and mark_of(tree, size) != index.mark):
        log.warning("the index is of another log; it is made anew")
        index.clear()
    if index.payloads > payloads.size:
        index.clear()
    first = index.size
    if journal.size - first > _CATCH_UP:
        log.info("indexing", extra={"records": journal.size - first})
    rows = (records.row_of_leaf(leaf) for _, leaf in journal.scan(first))
    where = _positions(payloads, index.payloads)
    for chunk in _chunks(rows, _CATCH_UP):
        # Without those that no record names: a full disk or a crash left them to the retention.
        named = [(row.payload, where[row.payload]) for row in chunk if row.payload in where]
        index.add(first, chunk, mark_of(tree, first + len(chunk)), named)
        first += len(chunk)
    return index


def _positions(payloads: Journal, start: int) -> dict[bytes, int]:
    """Return where each payload from a position on stands, by its digest."""
    digests = payloads.leaf_hashes(start)
    starts = range(0, len(digests), HASH_SIZE)
    return {digests[n : n + HASH_SIZE]: start + n // HASH_SIZE for n in starts}


def _seen(files: OsFileSystem, index: Index, tree: Tree) -> Seen:
    """Return a filter of all decisions with an OUTCOME: the saved one and what came after."""
    try:
        saved = decode_seen(files.read_all(SEEN))
    except FileNotFoundError:
        saved = None
    found, size = Seen(), 0
    if saved is not None and saved[1] <= tree.size and mark_of(tree, saved[1]) == saved[2]:
        found, size = saved[0], saved[1]
    for decision in index.decisions(records.OUTCOME, size):
        found.add(decision)
    return found


def _chunks(items: Iterable[Row], size: int) -> Iterable[list[Row]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _replay_erasures(index: Index, journal: Journal, keys: KeyStore, now_us: int) -> None:
    """Destroy keys that came back with a restore, or that a crash left after the ERASURE record."""
    after, search = -1, Search(kinds=(records.ERASURE,))
    while leaves := index.search(search, after=after, limit=1000):
        targets = [record_pb2.Record.FromString(journal.read(n)).event.target for n in leaves]
        pending = [target for target in targets if not keys.is_destroyed(target)]
        if pending:
            count = keys.destroy_pseudonyms(pending, now_us)
            log.warning("replayed erasures", extra={"keys": count})
        after = leaves[-1]
