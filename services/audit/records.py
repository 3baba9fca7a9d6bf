"""What the audit service makes of the router's entries: records, payloads, index rows.

The subject's name, plain digests and the payload come in; a pseudonym, HMACs and a ciphertext go
into the log. The leaf is the record's deterministic serialization, made once.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import NamedTuple

from services.audit.index import Row
from services.audit.keystore import PayloadError, SubjectKeys
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2, value_pb2

INTENT = record_pb2.RECORD_KIND_INTENT
OUTCOME = record_pb2.RECORD_KIND_OUTCOME
REFUSED = record_pb2.RECORD_KIND_REFUSED
ABANDONED = record_pb2.RECORD_KIND_ABANDONED
ERASURE = record_pb2.RECORD_KIND_ERASURE
OVERRIDE = record_pb2.RECORD_KIND_OVERRIDE
FAILED = record_pb2.RECORD_KIND_FAILED

NO_SUBJECT = ""  # keys of decisions about nobody in particular
ENDS = frozenset({OUTCOME, REFUSED, ABANDONED, FAILED})
_APPENDABLE = frozenset({INTENT, OUTCOME, REFUSED, FAILED, OVERRIDE})
_OURS = ("subject", "input_hmac", "output_hmac", "record_time_unix_us", "payload_digest")
_DEFAULT_OPEN_US = 10 * 60 * 1_000_000
_MAX_ID = 128
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class Sealed(NamedTuple):
    """A record that is ready for the log, and its payload for the store beside it."""

    leaf: bytes
    row: Row
    payload: bytes
    payload_digest: bytes


def violations(entry: audit_pb2.Entry) -> list[tuple[str, str]]:
    """Return what the field rules can't say about an entry: (field, sentence)."""
    record = entry.record
    found = []
    if record.kind not in _APPENDABLE:
        found.append(("record.kind", "must be INTENT, OUTCOME, REFUSED, FAILED or OVERRIDE"))
    if not record.decision_id or len(record.decision_id) > _MAX_ID:
        found.append(("record.decision_id", f"must have 1 to {_MAX_ID} characters"))
    if (  # written out: this stands in every append
        record.record_time_unix_us
        or record.subject
        or record.input_hmac
        or record.output_hmac
        or record.payload_digest
    ):
        found.extend(
            (f"record.{name}", "must be empty; the audit service fills it")
            for name in _OURS
            if getattr(record, name)
        )
    return found


def subject_name(subject: audit_pb2.Subject) -> str:
    """Return the key store's name of a subject: the same entity always has the same one."""
    held = subject.entity
    entity = [[key, *_plain(held[key])] for key in sorted(held)]
    return _ENCODE([subject.tenant, subject.entity_type, entity])


class Names:
    """Subjects' names by their bytes, so that a subject who comes again is not spelled again."""

    def __init__(self, kept: int) -> None:
        """Keep so many at most; past them all are forgotten."""
        self._kept = kept
        self._names: dict[bytes, str] = {}

    def of(self, entry: audit_pb2.Entry) -> str:
        """Return the key store's name of whom an entry is about."""
        if not entry.HasField("subject"):
            return NO_SUBJECT
        told = entry.subject.SerializeToString(deterministic=True)
        name = self._names.get(told)
        if name is None:
            if len(self._names) >= self._kept:
                self._names.clear()
            name = self._names[told] = subject_name(entry.subject)
        return name

    def clear(self) -> None:
        """Forget all, as an erasure wants it."""
        self._names.clear()


def _plain(value: value_pb2.Value) -> list[object]:
    kind = value.WhichOneof("kind")
    if kind is None:
        return ["null"]
    if kind == "list_value":
        return [kind, [_plain(item) for item in value.list_value.values]]
    held = getattr(value, kind)
    return [kind, held.hex() if isinstance(held, bytes) else held]


def kind_name(kind: int) -> str:
    """Return a kind's name, such as "OUTCOME"."""
    return record_pb2.RecordKind.Name(kind).removeprefix("RECORD_KIND_")


def seal(entry: audit_pb2.Entry, keys: SubjectKeys, record_time_us: int) -> Sealed:
    """Fill in what is the audit service's to fill, and make the leaf. Changes `entry.record`."""
    record = entry.record
    record.record_time_unix_us = record_time_us
    if entry.HasField("subject"):
        record.subject = keys.pseudonym
    if entry.input_digest:
        record.input_hmac = keys.mac(b"input" + entry.input_digest)
    if entry.output_digest:
        record.output_hmac = keys.mac(b"output" + entry.output_digest)
    for attempt in record.attempts:  # the plain one stands in the reply, which is encrypted
        if attempt.wire_digest:
            attempt.wire_digest = keys.mac(b"wire" + attempt.wire_digest)
    payload = b""
    if entry.HasField("payload"):
        payload = keys.seal(entry.payload.SerializeToString(), bound_to(record.decision_id))
        record.payload_digest = sha256(payload).digest()
    return finish(record, payload)


def finish(record: record_pb2.Record, payload: bytes = b"") -> Sealed:
    """Serialize a complete record into its leaf."""
    return Sealed(
        record.SerializeToString(deterministic=True), row_of(record), payload, record.payload_digest
    )


def bound_to(decision_id: str) -> bytes:
    """Return what a payload's ciphertext is bound to, so that it can't stand in for another's."""
    return b"twinpath-payload-v1\0" + decision_id.encode()


def open_payload(sealed: bytes, keys: SubjectKeys, decision_id: str) -> audit_pb2.Payload:
    """Decrypt a payload.

    Raises:
        PayloadError: it isn't the one that was sealed for this decision.
    """
    try:
        return audit_pb2.Payload.FromString(keys.open(sealed, bound_to(decision_id)))
    except ValueError as error:
        raise PayloadError("the payload does not open") from error


def row_of(record: record_pb2.Record) -> Row:
    """Return what the index keeps of a record."""
    kind = record.kind
    opens = 0
    if kind == INTENT:
        opens = record.deadline_unix_us or record.record_time_unix_us + _DEFAULT_OPEN_US
    return Row(
        record.decision_id,
        kind,
        record.task,
        record.subject or (record.event.target if kind == ERASURE else ""),
        record.caller.identity or record.event.actor,
        record.record_time_unix_us,
        _egress(record),
        record.fallback,
        record.payload_digest,
        _models(record),
        opens,
        kind in ENDS,
    )


def row_of_leaf(leaf: bytes) -> Row:
    """Return what the index keeps of a record, from its bytes in the log."""
    return row_of(record_pb2.Record.FromString(leaf))


def _models(record: record_pb2.Record) -> tuple[tuple[int, str, str], ...]:
    """Name who answered or may be called, by the version asked for and by the one reported."""
    candidates = record.candidates
    found = [(c.path, c.model, c.version) for c in candidates]
    for attempt in record.attempts:
        version = attempt.reported_version
        if version and not attempt.code:
            answered = attempt.candidate.id
            found.extend([(c.path, c.model, version) for c in candidates if c.id == answered])
    return tuple(found)


def _egress(record: record_pb2.Record) -> bool:
    """Tell whether bytes went to a vendor; for a decision that vanished, whether they may have."""
    if record.kind == ABANDONED:
        return any(c.path == context_pb2.PATH_REMOTE for c in record.candidates)
    for attempt in record.attempts:
        if (
            attempt.bytes_out > 0
            and attempt.candidate.path == context_pb2.PATH_REMOTE
            and attempt.kind != decision_pb2.ATTEMPT_KIND_CACHE
        ):
            return True
    return False


def abandoned(intent: record_pb2.Record, now_us: int) -> record_pb2.Record:
    """Return the record that closes an INTENT which never saw its end."""
    closing = record_pb2.Record()
    closing.CopyFrom(intent)
    closing.kind = ABANDONED
    closing.ClearField("deadline_unix_us")
    closing.ClearField("payload_digest")
    closing.event_time_unix_us = now_us
    closing.reason = "INTENT_OVERDUE"
    return closing


def erasure(
    event_id: str, pseudonym: str, actor: str, reason: str, now_us: int
) -> record_pb2.Record:
    """Return the record of an erasure. It names the pseudonym, which by then means nobody."""
    return record_pb2.Record(
        kind=ERASURE,
        decision_id=event_id,
        event_time_unix_us=now_us,
        event=record_pb2.AdminEvent(
            action="erase_subject", actor=actor, target=pseudonym, reason=reason
        ),
    )
