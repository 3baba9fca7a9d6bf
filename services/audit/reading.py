"""What auditors ask: records, searches, proofs and checkpoints, from an open ledger."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

from services.audit import copies, metrics, records
from services.audit.checkpoint import Checkpoint
from services.audit.failures import CorruptLogError, JournalFailedError
from services.audit.index import Search
from services.audit.keystore import PayloadError
from services.audit.ledger import Ledger
from services.chassis.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from twinpath.audit.v1 import audit_pb2, record_pb2

_PAGE = 100
_EXPORT_PAGE = 128
_KEPT_NOTES = 4096


class Reader:
    """Reads a ledger. All methods see everything that was acknowledged before they were called."""

    def __init__(
        self, ledger: Ledger, expired: Callable[[record_pb2.Record], bool] = lambda _: False
    ) -> None:
        """Wrap a ledger; `expired` tells whether a record's payload is past its retention."""
        self._expired = expired
        self._ledger = ledger
        self._storage = ledger.storage
        self._signing = asyncio.Lock()
        self._notes: OrderedDict[int, str] = OrderedDict()
        last = self._storage.points.last
        if last is not None:
            self._notes[last.size] = self._storage.points.last_note

    # ---- records --------------------------------------------------------------------------
    def stored(self, leaf: int, *, with_payload: bool) -> audit_pb2.StoredRecord:
        """Return one record.

        Raises:
            DataLossError: the record, or its payload, is not what was written.
        """
        record = record_pb2.Record.FromString(self.leaf_bytes(leaf))
        found = audit_pb2.StoredRecord(leaf_index=leaf, record=record)
        found.erased = bool(record.subject) and self._storage.keys.is_destroyed(record.subject)
        if with_payload and record.payload_digest and not found.erased:
            payload = self._payload(record)
            if payload is not None:
                found.payload.CopyFrom(payload)
        return found

    def leaf_bytes(self, leaf: int) -> bytes:
        """Return a record's bytes as they stand in the log."""
        try:
            return self._storage.journal.read(leaf)
        except CorruptLogError as error:
            raise DataLossError("RECORD_CORRUPT", str(error)) from error

    async def decision(self, decision: str, *, with_payload: bool) -> list[audit_pb2.StoredRecord]:
        """Return all records of a decision, oldest first; NotFoundError if there is none."""
        return [
            self.stored(leaf, with_payload=with_payload) for leaf in await self._leaves(decision)
        ]

    async def page(
        self, wanted: audit_pb2.Filter, after: int, size: int
    ) -> tuple[list[audit_pb2.StoredRecord], int | None]:
        """Return a page of records, and the leaf after which the next one starts, if any."""
        search = await self._search(wanted)
        if search is None:
            return [], None
        await self._ledger.index.settle()
        size = size or _PAGE
        leaves = await asyncio.to_thread(
            self._storage.index.search, search, after=after, limit=size + 1
        )
        more = leaves[size - 1] if len(leaves) > size else None
        return await asyncio.to_thread(self._all_stored, leaves[:size], with_payload=False), more

    async def export(
        self, wanted: audit_pb2.Filter, *, with_payload: bool
    ) -> AsyncIterator[list[audit_pb2.StoredRecord]]:
        """Yield all records that fit, oldest first, in parts."""
        search = await self._search(wanted)
        if search is None:
            return
        await self._ledger.index.settle()
        after = -1
        while True:
            leaves = await asyncio.to_thread(
                self._storage.index.search, search, after=after, limit=_EXPORT_PAGE
            )
            if leaves:
                yield await asyncio.to_thread(self._all_stored, leaves, with_payload=with_payload)
                after = leaves[-1]
            if len(leaves) < _EXPORT_PAGE:
                return

    async def note_export(self, request: audit_pb2.ExportRequest, actor: str) -> None:
        """Record that payloads are about to leave; durable when this returns.

        Raises:
            ServiceError: it can't be recorded, so nothing may leave.
        """
        search = await self._search(request.filter)
        now = self._ledger.now_us()
        record = copies.export_record(request, search.subject if search else "", actor, now)
        (result,) = await self._ledger.append_own([records.finish(record)])
        if result.error is not None:
            raise result.error

    # ---- proofs ---------------------------------------------------------------------------
    async def checkpoint(self, *, now: bool, covering: int = 0) -> tuple[Checkpoint, str]:
        """Return the newest checkpoint and its note.

        Args:
            now: make one for all that is durable, unless the newest is that already.
            covering: make one too if the newest has fewer records than this.
        """
        async with self._signing:
            points, tree = self._storage.points, self._storage.tree
            last = points.last
            if last is None or last.size < covering or (now and last.size < tree.size):
                made = Checkpoint(self._storage.origin, tree.size, tree.root())
                signers = self._storage.keyring.signers
                try:
                    note = await asyncio.to_thread(points.append, made, signers)
                except OSError as error:
                    self._ledger.fail(JournalFailedError(f"signing the log failed: {error}"))
                    raise UnavailableError("LOG_FAILED", "the log is failing") from error
                self._notes[made.size] = note
                metrics.SIGNED.set(made.size)
                while len(self._notes) > _KEPT_NOTES:
                    self._notes.popitem(last=False)
                return made, note
            return last, points.last_note

    async def prove(self, leaves: list[int], size: int) -> audit_pb2.ProveResponse:
        """Prove that leaves are in the tree of a size; 0: that of the newest checkpoint."""
        highest = max(leaves) + 1
        if size:
            self._check_size("tree_size", size)
            if highest > size:
                raise FailedPreconditionError(
                    "LEAF_BEYOND_TREE", f"leaf {highest - 1} is not in the tree of {size}"
                )
            note = self._notes.get(size, "")
        else:
            point, note = await self.checkpoint(now=False, covering=highest)
            size = point.size
        tree = self._storage.tree
        root = tree.root(size)
        return audit_pb2.ProveResponse(
            checkpoint=note,
            proofs=[
                audit_pb2.InclusionProof(
                    leaf_index=leaf,
                    tree_size=size,
                    leaf=self.leaf_bytes(leaf),
                    hashes=tree.inclusion_proof(leaf, size),
                    root_hash=root,
                )
                for leaf in leaves
            ],
        )

    async def prove_decision(self, decision: str, size: int) -> audit_pb2.ProveResponse:
        """Prove all records of a decision."""
        return await self.prove(await self._leaves(decision), size)

    async def prove_leaf(self, leaf: int, size: int) -> audit_pb2.ProveResponse:
        """Prove one leaf."""
        if leaf >= self._storage.tree.size:
            raise NotFoundError("LEAF_UNKNOWN", f"there is no leaf {leaf}")
        return await self.prove([leaf], size)

    def prove_consistency(self, first: int, second: int) -> audit_pb2.ProveConsistencyResponse:
        """Prove that the log only grew from one size to another; 0: to now."""
        tree = self._storage.tree
        second = second or tree.size
        self._check_size("first_size", first)
        self._check_size("second_size", second)
        if first > second:
            raise InvalidArgumentError(
                "TREE_SIZES_REVERSED",
                "first_size is beyond second_size",
                violations=[("first_size", "must not be above second_size")],
            )
        return audit_pb2.ProveConsistencyResponse(
            first_size=first,
            second_size=second,
            hashes=tree.consistency_proof(first, second),
            first_root=tree.root(first),
            second_root=tree.root(second),
        )

    # ---- parts ----------------------------------------------------------------------------
    def _all_stored(
        self, leaves: Sequence[int], *, with_payload: bool
    ) -> list[audit_pb2.StoredRecord]:
        return [self.stored(leaf, with_payload=with_payload) for leaf in leaves]

    async def _leaves(self, decision: str) -> list[int]:
        await self._ledger.index.settle()
        leaves = self._storage.index.decision(decision)
        if not leaves:
            raise NotFoundError("DECISION_UNKNOWN", "the log has no such decision")
        return leaves

    def _payload(self, record: record_pb2.Record) -> audit_pb2.Payload | None:
        position = self._ledger.index.payload(record.payload_digest)
        if position is None or self._expired(record) or self._storage.payloads.is_blank(position):
            return None
        keys = (
            self._storage.keys.by_pseudonym(record.subject)
            if record.subject
            else self._storage.keys.find(records.NO_SUBJECT)
        )
        if keys is None:
            return None
        try:
            sealed = self._storage.payloads.read(position)
            return records.open_payload(sealed, keys, record.decision_id)
        except (CorruptLogError, PayloadError) as error:
            raise DataLossError("PAYLOAD_CORRUPT", str(error)) from error

    async def _search(self, wanted: audit_pb2.Filter) -> Search | None:
        """Return the index's form of a filter; None if nothing can fit."""
        pseudonym = ""
        if wanted.HasField("subject"):
            name = records.subject_name(wanted.subject)
            keys = await asyncio.to_thread(self._storage.keys.find, name)
            if keys is None:
                return None
            pseudonym = keys.pseudonym
        return Search(
            task=wanted.task,
            subject=pseudonym,
            caller=wanted.caller,
            kinds=tuple(wanted.kinds),
            path=wanted.path,
            model=wanted.model,
            version=wanted.version,
            start_us=wanted.start_time_unix_us,
            end_us=wanted.end_time_unix_us,
            egress=wanted.egress,
            fallback=wanted.fallback,
        )

    def _check_size(self, field: str, size: int) -> None:
        if not 1 <= size <= self._storage.tree.size:
            raise InvalidArgumentError(
                "TREE_SIZE_UNKNOWN",
                f"the tree has {self._storage.tree.size} leaves",
                violations=[(field, f"must be from 1 to {self._storage.tree.size}")],
            )
