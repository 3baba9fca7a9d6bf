"""Keys by subject, in a store of their own that erasure can take a key out of.

A subject gets, at first sight, a random pseudonym, a key for HMACs and a key for payloads. The
log holds nothing but the pseudonym, HMACs and ciphertexts, so destroying the three puts the link
from log to subject, the digests and the payloads out of reach while the log still verifies.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12
_BLOCK = 64  # of SHA-256; the keys are shorter
_SCHEMA = """
CREATE TABLE IF NOT EXISTS subjects (
    subject TEXT PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE,
    hmac_key BLOB NOT NULL, payload_key BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS destroyed (
    pseudonym TEXT PRIMARY KEY, destroyed_us INTEGER NOT NULL
) WITHOUT ROWID;
"""


class PayloadError(ValueError):
    """A payload doesn't open: it was changed, moved to another decision, or has another key."""


class ErasureIncompleteError(RuntimeError):
    """A key is deleted, but the store could not be made to forget it yet; destroy it again."""


@dataclass(frozen=True, slots=True)
class SubjectKeys:
    """What belongs to one subject."""

    pseudonym: str
    hmac_key: bytes
    payload_key: bytes
    _pads: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    _cipher: list[AESGCM] = field(default_factory=list, init=False, repr=False, compare=False)

    def mac(self, message: bytes) -> bytes:
        """Return HMAC-SHA-256 (RFC 2104) under the subject's key, 32 bytes.

        From copies of the two padded hashes: the library's one-shot HMAC looks its algorithm up
        anew for each call, which costs twenty times as much.
        """
        if not self._pads:
            key = self.hmac_key.ljust(_BLOCK, b"\0")
            self._pads.extend(sha256(bytes(b ^ pad for b in key)) for pad in (0x36, 0x5C))
        inner, outer = self._pads[0].copy(), self._pads[1].copy()
        inner.update(message)
        outer.update(inner.digest())
        mac: bytes = outer.digest()
        return mac

    def seal(self, payload: bytes, bound_to: bytes) -> bytes:
        """Encrypt with AES-256-GCM, bound to e.g. a decision id; nonce, ciphertext and tag."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aes().encrypt(nonce, payload, bound_to)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            PayloadError: if it isn't what was sealed with this key for this decision.
        """
        try:
            return self._aes().decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to)
        except (InvalidTag, ValueError) as error:
            raise PayloadError("the payload does not open") from error

    def _aes(self) -> AESGCM:
        """Return the cipher, made once: setting a key up costs as much as using it."""
        if not self._cipher:
            self._cipher.append(AESGCM(self.payload_key))
        return self._cipher[0]


class KeyStore:
    """One SQLite file. Every key is durable before it is used. Safe for threads."""

    def __init__(
        self,
        path: Path,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        cached: int = 50_000,
    ) -> None:
        """Open or make the store.

        Args:
            path: the file; its directory is made, for its owner only.
            random_bytes: the source of keys and pseudonyms.
            cached: keys kept in memory.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._random = random_bytes
        self._cached = cached
        self._cache: OrderedDict[str, SubjectKeys] = OrderedDict()
        self._lock = threading.Lock()
        previous = os.umask(0o077)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
        finally:
            os.umask(previous)
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")
        self._db.executescript(_SCHEMA)
        self._frozen: frozenset[str] = frozenset()
        self._gone = {row[0] for row in self._db.execute("SELECT pseudonym FROM destroyed")}

    def is_destroyed(self, pseudonym: str) -> bool:
        """Tell whether the pseudonym's keys were destroyed; never touches the disk."""
        return pseudonym in self._gone

    def is_frozen(self, pseudonym: str) -> bool:
        """Tell whether the pseudonym's payload key is being replaced; never touches the disk."""
        return pseudonym in self._frozen

    @contextmanager
    def frozen(self, pseudonyms: Iterable[str]) -> Iterator[None]:
        """Let nobody seal with these keys for a moment; one such moment at a time."""
        self._frozen = frozenset(pseudonyms)
        try:
            yield
        finally:
            self._frozen = frozenset()

    def renew_payload_keys(self, pseudonyms: Sequence[str]) -> int:
        """Replace payload keys that have nothing left to open; return how many were.

        HMAC key and pseudonym stay: the records are about the same subject as before.

        Raises:
            ErasureIncompleteError: another reader kept the store from forgetting.
        """
        with self._lock:
            count = 0
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for pseudonym in pseudonyms:
                    count += self._db.execute(
                        "UPDATE subjects SET payload_key = ? WHERE pseudonym = ?",
                        (self._random(32), pseudonym),
                    ).rowcount
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._cache.clear()
            if count:
                self._forget_pages()
            return count

    def cached(self, subject: str) -> SubjectKeys | None:
        """Return the keys if they are in memory; never touches the disk."""
        keys = self._cache.get(subject)
        if keys is not None:
            self._cache.move_to_end(subject)
        return keys

    def ensure(self, subjects: Sequence[str]) -> dict[str, SubjectKeys]:
        """Return each subject's keys, making those that are missing in one durable transaction."""
        with self._lock:
            found: dict[str, SubjectKeys] = {}
            missing: list[str] = []
            for subject in dict.fromkeys(subjects):
                keys = self._cache.get(subject) or self._load(subject)
                if keys is None:
                    missing.append(subject)
                else:
                    found[subject] = keys
            fresh = {subject: self._fresh() for subject in missing}
            if fresh:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany(
                        "INSERT INTO subjects VALUES (?, ?, ?, ?)",
                        [(s, k.pseudonym, k.hmac_key, k.payload_key) for s, k in fresh.items()],
                    )
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
            found |= fresh
            for subject, keys in found.items():
                self._remember(subject, keys)
            return found

    def find(self, subject: str) -> SubjectKeys | None:
        """Return the subject's keys; None if it was never seen, or was erased."""
        with self._lock:
            return self._cache.get(subject) or self._load(subject)

    def by_pseudonym(self, pseudonym: str) -> SubjectKeys | None:
        """Return the keys behind a pseudonym; None if they were destroyed or never were."""
        with self._lock:
            row = self._db.execute(
                "SELECT pseudonym, hmac_key, payload_key FROM subjects WHERE pseudonym = ?",
                (pseudonym,),
            ).fetchone()
        return SubjectKeys(*row) if row else None

    def destroy(self, subject: str, now_us: int) -> str | None:
        """Destroy the subject's keys; return its former pseudonym, None if it has no keys.

        When this returns the keys are in none of the store's files. (What a disk or a file system
        keeps of overwritten blocks is beyond a program's reach.)

        Raises:
            ErasureIncompleteError: another reader kept the store from forgetting.
        """
        with self._lock:
            keys = self._load(subject)
            self._cache.pop(subject, None)
            if keys is not None:
                self._destroy([keys.pseudonym], now_us)
            return keys.pseudonym if keys else None

    def destroy_pseudonyms(self, pseudonyms: Sequence[str], now_us: int) -> int:
        """Destroy by pseudonym, as a restore does that replays erasures; return how many were."""
        with self._lock:
            count = self._db.execute("SELECT count(*) FROM subjects").fetchone()[0]
            self._cache.clear()
            self._destroy(pseudonyms, now_us)
            after = self._db.execute("SELECT count(*) FROM subjects").fetchone()[0]
            return int(count - after)

    def destroyed(self, pseudonym: str) -> int | None:
        """Return when the pseudonym's keys were destroyed (unix microseconds), None if not."""
        with self._lock:
            row = self._db.execute(
                "SELECT destroyed_us FROM destroyed WHERE pseudonym = ?", (pseudonym,)
            ).fetchone()
        return int(row[0]) if row else None

    def backup(self, path: Path) -> None:
        """Copy the store to another file, consistently."""
        with self._lock:
            target = sqlite3.connect(path)
            try:
                self._db.backup(target)
            finally:
                target.close()
        path.chmod(0o600)

    def close(self) -> None:
        """Close the store."""
        with self._lock:
            self._db.close()

    def _destroy(self, pseudonyms: Sequence[str], now_us: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for pseudonym in pseudonyms:
                self._db.execute("DELETE FROM subjects WHERE pseudonym = ?", (pseudonym,))
                self._db.execute(
                    "INSERT OR IGNORE INTO destroyed VALUES (?, ?)", (pseudonym, now_us)
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._gone.update(pseudonyms)
        self._forget_pages()

    def _forget_pages(self) -> None:
        """Fold the write-ahead log, which still holds pages with old keys, in, and cut it."""
        busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise ErasureIncompleteError("the key store is being read by another process")

    def _fresh(self) -> SubjectKeys:
        return SubjectKeys(self._random(16).hex(), self._random(32), self._random(32))

    def _load(self, subject: str) -> SubjectKeys | None:
        row = self._db.execute(
            "SELECT pseudonym, hmac_key, payload_key FROM subjects WHERE subject = ?", (subject,)
        ).fetchone()
        return SubjectKeys(*row) if row else None

    def _remember(self, subject: str, keys: SubjectKeys) -> None:
        self._cache[subject] = keys
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)
