"""What the log does not say: nothing in it lets a guess of an input be confirmed."""

from __future__ import annotations

from tests.integration.test_audit_service import (
    DIGEST,
    INTENT,
    LOCAL,
    REMOTE,
    WIRE,
    entry,
    service,
)
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import decision_pb2


async def test_nothing_of_the_input_is_in_the_log(tmp_path):
    """No file of the log holds the subject, a digest or the payload in the clear."""
    sent = decision_pb2.Attempt(candidate=REMOTE, bytes_out=10, wire_digest=WIRE)
    async with service(tmp_path) as calls:
        await calls.append(
            entry("d1", INTENT, patient=123456789),
            entry("d1", patient=123456789, attempts=[sent]),
        )
    found = b"".join(p.read_bytes() for p in (tmp_path / "audit").rglob("*") if p.is_file())
    for secret in (b"123456789", b"patient_id", DIGEST, WIRE, b"business", b"a reply to"):
        assert secret not in found
    assert b"diabetes_progression" in found


async def test_a_body_is_recorded_by_a_keyed_digest(tmp_path):
    """Who gets the records can't confirm a guess of it; the same body of a subject is the same."""
    sent = [
        decision_pb2.Attempt(candidate=REMOTE, wire_digest=WIRE, code=14),
        decision_pb2.Attempt(candidate=LOCAL),
    ]
    async with service(tmp_path) as calls:
        await calls.append(
            entry("d1", record_pb2.RECORD_KIND_FAILED, attempts=sent),
            entry("d2", attempts=sent),
            entry("d3", attempts=sent, patient=18),
            entry("d4", attempts=sent, patient=None),
        )
        auditor = await calls.by("auditor")
        found = (await auditor.Query(audit_pb2.QueryRequest())).records
    assert [len(stored.record.attempts) for stored in found] == [2] * 4
    assert not any(stored.record.attempts[1].wire_digest for stored in found)
    first, same, other, nobody = (stored.record.attempts[0].wire_digest for stored in found)
    assert first == same
    assert len({first, other, nobody, WIRE}) == 4
    assert {len(first), len(other), len(nobody)} == {32}
