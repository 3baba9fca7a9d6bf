"""The index: finds records by what they say. Derived from the log, never in its way.

SQLite beside the log, written after the sync, rebuilt from the segments if it is missing, damaged
or of another log. `Index` is plain and synchronous; `live_index.py` keeps it up to date.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

VERSION = 5  # of the schema, and of what is derived into it; an index of another is made anew
_COMMON = frozenset({1, 2})  # INTENT and OUTCOME
NO_CANDIDATES: tuple[tuple[int, str, str], ...] = ()
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    leaf INTEGER PRIMARY KEY, decision TEXT NOT NULL, kind INTEGER NOT NULL, task TEXT NOT NULL,
    subject TEXT NOT NULL, caller TEXT NOT NULL, time_us INTEGER NOT NULL,
    egress INTEGER NOT NULL, fallback INTEGER NOT NULL, payload INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS records_decision ON records (decision);
CREATE INDEX IF NOT EXISTS records_subject ON records (subject) WHERE subject <> '';
CREATE INDEX IF NOT EXISTS records_task ON records (task);
CREATE INDEX IF NOT EXISTS records_egress ON records (egress) WHERE egress = 1;
CREATE INDEX IF NOT EXISTS records_rare ON records (kind) WHERE kind NOT IN (1, 2);
CREATE INDEX IF NOT EXISTS records_fallback ON records (fallback) WHERE fallback = 1;
CREATE TABLE IF NOT EXISTS candidates (
    model TEXT NOT NULL, version TEXT NOT NULL, leaf INTEGER NOT NULL, path INTEGER NOT NULL,
    PRIMARY KEY (model, version, leaf, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open_intents (
    decision TEXT PRIMARY KEY, leaf INTEGER NOT NULL, deadline_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payloads (digest BLOB PRIMARY KEY, position INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """What the index knows of one record; the first eight are columns of `records`.

    Attributes:
        decision: the decision's id.
        kind: its RecordKind's number.
        task: its task.
        subject: the pseudonym; empty without an entity.
        caller: the caller's identity.
        time_us: record time, unix microseconds; never falls from leaf to leaf.
        egress: bytes went, or may have gone, to a vendor.
        fallback: another candidate than the plan's first answered.
        payload: the digest of the payload that is kept beside it; empty: none.
        candidates: (path, model, version) of those that answered or were intended; a version
            may be the catalog's, or the one that the server or vendor itself reported.
        opens_until_us: > 0 for an INTENT: when it may be closed.
        closes: whether the record ends the decision's open INTENT.
    """

    decision: str
    kind: int
    task: str = ""
    subject: str = ""
    caller: str = ""
    time_us: int = 0
    egress: bool = False
    fallback: bool = False
    payload: bytes = b""
    candidates: tuple[tuple[int, str, str], ...] = NO_CANDIDATES
    opens_until_us: int = 0
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for; empty values don't restrict. Times are [start, end)."""

    task: str = ""
    subject: str = ""
    caller: str = ""
    kinds: tuple[int, ...] = ()
    path: int = 0
    model: str = ""
    version: str = ""
    start_us: int = 0
    end_us: int = 0
    egress: bool = False
    fallback: bool = False
    payload: bool = False


class Index:
    """One SQLite file. Safe for threads, one at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the index; one that can't be read is thrown away and made anew."""
        self._path = path
        self._lock = threading.Lock()  # of the writing connection
        self._looking = threading.Lock()  # of the reading one: no look-up waits for a write
        self._searching = threading.Lock()  # of the searching one: nor for a long search
        self._open()
        try:
            stored = self._state("version")
        except sqlite3.DatabaseError:
            stored = None
        if stored != VERSION:
            self.clear()

    @property
    def size(self) -> int:
        """How many records, from the first on, are in the index."""
        with self._lock:
            return self._state("size") or 0

    @property
    def payloads(self) -> int:
        """The position before which the index has every payload that a record names."""
        with self._lock:
            return self._state("payloads") or 0

    @property
    def mark(self) -> int:
        """The number given with the last records: what the log looked like up to them."""
        with self._lock:
            return self._state("mark") or 0

    def clear(self) -> None:
        """Throw everything away."""
        with self._lock:
            self._close()
            self._remove()
            self._open()
            self._set("version", VERSION)

    def add(
        self,
        first: int,
        rows: Sequence[Row],
        mark: int,
        payloads: Sequence[tuple[bytes, int]] = (),
    ) -> None:
        """Add the records from index `first` on in one transaction; those it has are skipped.

        `payloads` are digests and positions, rising, of all payloads that these records name.
        """
        have = self.size
        if first > have:
            raise ValueError(f"records {have} to {first} would be missing from the index")
        first, rows = have, rows[have - first :]
        records = []
        models: list[tuple[str, str, int, int]] = []
        opened = []
        closed = {row.decision for row in rows if row.closes}
        for leaf, row in enumerate(rows, first):
            records.append((leaf, *row[:8], bool(row.payload)))
            models.extend((model, ver, leaf, path) for path, model, ver in row.candidates)
            if row.opens_until_us and row.decision not in closed:
                opened.append((row.decision, leaf, row.opens_until_us))
        with self._lock:
            self._db.execute("BEGIN")
            try:
                self._db.executemany("INSERT INTO records VALUES (?,?,?,?,?,?,?,?,?,?)", records)
                self._db.executemany("INSERT OR IGNORE INTO candidates VALUES (?,?,?,?)", models)
                # An INTENT may follow its decision's end in the log (its flush may overlap the
                # call); the join finds those without an end, whatever the order.
                self._db.executemany("INSERT OR IGNORE INTO open_intents VALUES (?,?,?)", opened)
                self._db.executemany(
                    "DELETE FROM open_intents WHERE decision = ?", [(name,) for name in closed]
                )
                self._set("size", first + len(rows))
                self._set("mark", mark)
                self._put_payloads(payloads)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _put_payloads(self, payloads: Sequence[tuple[bytes, int]]) -> None:
        if payloads:
            self._db.executemany("INSERT OR REPLACE INTO payloads VALUES (?, ?)", payloads)
            self._set("payloads", payloads[-1][1] + 1)

    def of_kind(self, decisions: Iterable[str], kind: int) -> dict[str, int]:
        """Return the first leaf of this kind for each of the decisions that has one."""
        found: dict[str, int] = {}
        with self._looking:
            for decision in decisions:
                row = self._reader.execute(
                    "SELECT min(leaf) FROM records WHERE decision = ? AND kind = ?",
                    (decision, kind),
                ).fetchone()
                if row[0] is not None:
                    found[decision] = row[0]
        return found

    def decisions(self, kind: int, start: int = 0) -> Iterator[str]:
        """Yield the decision of each record of a kind from leaf `start` on."""
        with self._searching:
            rows = self._searcher.execute(
                "SELECT decision FROM records WHERE leaf >= ? AND kind = ?", (start, kind)
            )
            for (decision,) in rows:
                yield decision

    def decision(self, decision: str) -> list[int]:
        """Return all leaves of a decision, oldest first."""
        with self._looking:
            rows = self._reader.execute(
                "SELECT leaf FROM records WHERE decision = ? ORDER BY leaf", (decision,)
            )
            return [leaf for (leaf,) in rows]

    def payload(self, digest: bytes) -> int | None:
        """Return the position of the payload with this digest."""
        with self._looking:
            row = self._reader.execute(
                "SELECT position FROM payloads WHERE digest = ?", (digest,)
            ).fetchone()
        return row[0] if row else None

    def unnamed_payloads(self) -> list[int]:
        """Return the positions before `payloads` at which no payload of a record stands.

        Payloads that were removed are among them after the index was made anew.
        """
        named = bytearray(self.payloads)  # what is added from here on stands behind them
        with self._searching:
            rows = self._searcher.execute(
                "SELECT position FROM payloads WHERE position < ?", (len(named),)
            )
            for (position,) in rows:
                named[position] = 1
        return [position for position, known in enumerate(named) if not known]

    def search(self, search: Search, *, after: int = -1, limit: int = 100) -> list[int]:
        """Return up to `limit` leaves beyond `after` that fit, oldest first."""
        with self._searching:
            where, values = self._conditions(search, after)
            sql = f"SELECT leaf FROM records WHERE {where} ORDER BY leaf LIMIT ?"  # noqa: S608
            return [leaf for (leaf,) in self._searcher.execute(sql, (*values, limit))]

    def count(self, search: Search) -> int:
        """Return how many records fit."""
        with self._searching:
            where, values = self._conditions(search, -1)
            sql = f"SELECT count(*) FROM records WHERE {where}"  # noqa: S608
            return int(self._searcher.execute(sql, values).fetchone()[0])

    def tasks_with_payloads(self) -> list[str]:
        """Return the tasks that have records with a payload, by name."""
        with self._searching:
            rows = self._searcher.execute("SELECT DISTINCT task FROM records ORDER BY task")
            names = [name for (name,) in rows if name]
            sql = "SELECT 1 FROM records WHERE task = ? AND payload = 1 LIMIT 1"
            return [n for n in names if self._searcher.execute(sql, (n,)).fetchone()]

    def tasks_of(self, subject: str) -> list[str]:
        """Return the tasks under which a subject has records, by name."""
        with self._searching:
            rows = self._searcher.execute(
                "SELECT DISTINCT task FROM records "
                "WHERE subject = ? AND subject <> '' ORDER BY task",
                (subject,),
            )
            return [name for (name,) in rows if name]

    def newest_payloads(self, subject: str) -> dict[str, int]:
        """Return, by task, the record time of a subject's newest record with a payload."""
        with self._searching:
            return dict(
                self._searcher.execute(
                    "SELECT task, max(time_us) FROM records "
                    "WHERE subject = ? AND subject <> '' AND payload = 1 GROUP BY task",
                    (subject,),
                ).fetchall()
            )

    def retained(self) -> dict[str, int]:
        """Return, by task, the leaf up to which expired payloads were removed."""
        with self._lock:
            rows = self._db.execute(
                "SELECT substr(name, 10), value FROM state WHERE name LIKE 'retained:%'"
            )
            return dict(rows.fetchall())

    def set_retained(self, leaves: Mapping[str, int]) -> None:
        """Keep them; losing them costs a longer look and nothing else."""
        with self._lock:
            for task, leaf in leaves.items():
                self._set(f"retained:{task}", leaf)

    def overdue(self, now_us: int, ends: Sequence[int], limit: int = 256) -> list[tuple[str, int]]:
        """Return (decision, leaf) of INTENTs whose time is up and that have no end.

        `ends` are the kinds that end a decision. An end may stand before its INTENT in the log,
        because an INTENT's flush may overlap the call; such pairs are forgotten here.
        """
        with self._lock:
            self._db.execute(
                "DELETE FROM open_intents WHERE deadline_us < ? AND EXISTS "
                "(SELECT 1 FROM records r WHERE r.decision = open_intents.decision "
                "AND r.kind IN (SELECT value FROM json_each(?)))",
                (now_us, json.dumps(list(ends))),
            )
            rows = self._db.execute(
                "SELECT decision, leaf FROM open_intents WHERE deadline_us < ? LIMIT ?",
                (now_us, limit),
            )
            return list(rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError:
            self._remove()
            self._db = self._connect()
        self._reader = self._connect()
        self._searcher = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            # Nothing here is promised to anybody: after a power failure the index is behind the
            # log and catches up.
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA wal_autocheckpoint=8000")
            db.execute("PRAGMA cache_size=-32768")
            db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _close(self) -> None:
        for db in (self._searcher, self._reader, self._db):
            db.close()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _state(self, name: str) -> int | None:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

    def _conditions(self, search: Search, after: int) -> tuple[str, list[object]]:
        where = ["leaf > ?"]
        values: list[object] = [after]
        if search.start_us:
            where.append("leaf >= ?")
            values.append(self._first_at(search.start_us))
        if search.end_us:
            where.append("leaf < ?")
            values.append(self._first_at(search.end_us))
        for name in ("task", "subject", "caller"):
            if getattr(search, name):
                where.append(f"{name} = ?")
                values.append(getattr(search, name))
        if search.subject:
            where.append("subject <> ''")  # so that the partial index serves
        if search.kinds:
            where.append("kind IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(search.kinds))
            if not _COMMON.intersection(search.kinds):
                where.append("kind NOT IN (1, 2)")  # so that the partial index serves
        if search.egress:
            where.append("egress = 1")
        if search.fallback:
            where.append("fallback = 1")
        if search.payload:
            where.append("payload = 1")
        part, more = _candidate_condition(search)
        if part:
            where.append(part)
            values.extend(more)
        return " AND ".join(where), values

    def _first_at(self, time_us: int) -> int:
        """Return the first leaf with this record time or a later one: times never fall."""
        row = self._searcher.execute("SELECT max(leaf) FROM records").fetchone()
        low, high = 0, 0 if row[0] is None else row[0] + 1
        while low < high:
            middle = (low + high) // 2
            row = self._searcher.execute("SELECT time_us FROM records WHERE leaf = ?", (middle,))
            if row.fetchone()[0] < time_us:
                low = middle + 1
            else:
                high = middle
        return low


def _candidate_condition(search: Search) -> tuple[str, list[object]]:
    """Return the condition on candidates: by model if one is given, else record by record."""
    if not (search.model or search.version or search.path):
        return "", []
    part, values = [], list[object]()
    for name in ("model", "version", "path"):
        if getattr(search, name):
            part.append(f"{name} = ?")
            values.append(getattr(search, name))
    return f"leaf IN (SELECT leaf FROM candidates WHERE {' AND '.join(part)})", values  # noqa: S608
