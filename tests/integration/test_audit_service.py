"""The audit service over gRPC, with its files on a real disk."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import grpc

from services.audit.checkpoint import VerifierKey
from services.audit.checkpoint import verify as verify_note
from services.audit.compose import build
from services.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from services.audit.settings import AuditSettings
from services.audit.verify import verify_directory
from services.chassis.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    from_status,
)
from tests import support
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2, value_pb2

INTENT, OUTCOME = record_pb2.RECORD_KIND_INTENT, record_pb2.RECORD_KIND_OUTCOME
DIGEST = hashlib.sha256(b"the model input").digest()
WIRE = hashlib.sha256(b"the body that a vendor got").digest()
LOCAL = decision_pb2.CandidateRef(
    id="a", model="diabetes_small", version="1", path=context_pb2.PATH_LOCAL
)
REMOTE = decision_pb2.CandidateRef(
    id="b", model="diabetes_large", version="1", path=context_pb2.PATH_REMOTE, provider="standin"
)


def settings_in(folder, keys, **fields) -> AuditSettings:
    """Settings of an audit service whose files are all below a folder."""
    given = {
        "directory": folder / "audit",
        "key_store": folder / "keys" / "subjects.sqlite",
        "signing_key": folder / "keys" / "audit.pem",
        "checkpoint_interval_s": 3600.0,
        "reconcile_interval_s": 3600.0,
        "min_free_bytes": 0,
    }
    return support.settings_for(AuditSettings, keys, **{**given, **fields})


def subject(number: int) -> audit_pb2.Subject:
    """A patient."""
    return audit_pb2.Subject(
        entity={"patient_id": value_pb2.Value(int64_value=number)}, entity_type="diabetes_patient"
    )


def entry(decision: str, kind=OUTCOME, patient: int | None = 17, **record) -> audit_pb2.Entry:
    """An entry as the router would send it."""
    given = {"task": "diabetes_progression", "event_time_unix_us": 1, "candidates": [LOCAL]}
    made = audit_pb2.Entry(
        context=context_pb2.ItemContext(id=f"{decision}/{kind}"),
        record=record_pb2.Record(kind=kind, decision_id=decision, **{**given, **record}),
        input_digest=DIGEST,
    )
    if patient is not None:
        made.subject.CopyFrom(subject(patient))
    if kind == OUTCOME:
        made.output_digest = hashlib.sha256(b"the output").digest()
        made.payload.model_input = b"a model input that is nobody's business"
        made.payload.reply = b"a reply to " + decision.encode()
    return made


class Calls:
    """The service's stub under several identities."""

    def __init__(self, running, keys, stack) -> None:
        self._address, self.keys, self._stack = running.address, keys, stack
        self.running = running
        self._stubs: dict[str, audit_pb2_grpc.AuditStub] = {}

    async def by(self, who: str) -> audit_pb2_grpc.AuditStub:
        """A stub that calls as a service ("service:router") or with a role ("auditor")."""
        if who not in self._stubs:
            service = who.startswith("service:")
            token = self.keys.token(who if service else "ann", roles=() if service else (who,))
            channel = await self._stack.enter_async_context(
                support.client(self._address, token if who != "nobody" else "")
            )
            self._stubs[who] = audit_pb2_grpc.AuditStub(channel)
        return self._stubs[who]

    async def append(self, *entries):
        """Append as the router."""
        router = await self.by("service:router")
        answer = await router.Append(audit_pb2.AppendRequest(entries=entries))
        return answer.results


@contextlib.asynccontextmanager
async def service(folder, **fields):
    """An audit service over `folder`, started and stopped in order."""
    async with contextlib.AsyncExitStack() as stack:
        keys = support.mesh_keys(folder / "mesh")
        running = await stack.enter_async_context(
            support.start_service(settings_in(folder, keys, **fields), build)
        )
        yield Calls(running, keys, stack)


def vkeys(folder) -> list[VerifierKey]:
    """The public key, as it lies beside the private one."""
    return [VerifierKey.parse((folder / "keys" / "audit.pem.vkey").read_text())]


async def test_append_get_and_the_first_outcome_wins(tmp_path):
    """Records come back as they were sent; a second OUTCOME gets the first one, reply and all."""
    async with service(tmp_path) as calls:
        results = await calls.append(entry("d1", INTENT), entry("d1"))
        assert [(r.leaf_index, r.status.code) for r in results] == [(0, 0), (1, 0)]
        again = (await calls.append(entry("d1")))[0]
        assert isinstance(from_status(again.status), AlreadyExistsError)
        assert again.existing.leaf_index == 1
        assert again.existing.payload.reply == b"a reply to d1"
        auditor = await calls.by("auditor")
        got = await auditor.Get(audit_pb2.GetRequest(decision_id="d1"))
        assert [found.record.kind for found in got.records] == [INTENT, OUTCOME]
        record = got.records[1].record
        assert len(record.subject) == 32
        assert len(record.input_hmac) == len(record.output_hmac) == 32
        assert record.input_hmac != DIGEST
        assert not got.records[1].HasField("payload")
        missing = await support.refusal(auditor.Get(audit_pb2.GetRequest(decision_id="none")))
        assert isinstance(missing, NotFoundError)


async def test_many_at_once_have_one_winner(tmp_path):
    """Of many OUTCOMEs for one decision, in one call and in many, exactly one is appended."""
    async with service(tmp_path) as calls:
        twice = [entry("d0"), entry("d0")]
        twice[1].context.id = "other"
        batches = [calls.append(entry("d0"), entry(f"x{n}")) for n in range(40)]
        answers = await asyncio.gather(calls.append(*twice), *batches)
        codes = [r.status.code for r in answers[0]] + [a[0].status.code for a in answers[1:]]
        assert sorted(set(codes)) == [0, grpc.StatusCode.ALREADY_EXISTS.value[0]]
        assert codes.count(0) == 1
        firsts = {r.leaf_index for r in answers[0]} | {a[0].leaf_index for a in answers[1:]}
        assert len(firsts) == 1
        auditor = await calls.by("auditor")
        assert len((await auditor.Get(audit_pb2.GetRequest(decision_id="d0"))).records) == 1


async def test_restart_keeps_everything(tmp_path):
    """After a restart the log goes on where it was, the winner stays, and it still verifies."""
    async with service(tmp_path) as calls:
        await calls.append(*(entry(f"d{n}") for n in range(20)))
    async with service(tmp_path) as calls:
        assert (await calls.append(entry("d3")))[0].existing.leaf_index == 3
        assert (await calls.append(entry("new")))[0].leaf_index == 20
    (tmp_path / "audit" / "index.sqlite").write_bytes(b"this is no database" * 1000)
    async with service(tmp_path) as calls:
        assert (await calls.append(entry("d3")))[0].existing.payload.reply == b"a reply to d3"
        auditor = await calls.by("auditor")
        assert len((await auditor.Query(audit_pb2.QueryRequest())).records) == 21
    report = verify_directory(tmp_path / "audit" / "log", vkeys(tmp_path))
    assert report.ok, report.breaks
    assert (report.size, report.unsigned) == (21, 0)


async def test_query_by_everything(tmp_path):
    """Each part of the filter selects what it says, together they narrow, pages join up."""
    attempt = decision_pb2.Attempt(candidate=REMOTE, bytes_out=10)
    failed = decision_pb2.Attempt(candidate=REMOTE, code=14)
    async with service(tmp_path) as calls:
        await calls.append(
            entry("a", INTENT, candidates=[LOCAL, REMOTE]),
            entry("a"),
            entry("b", patient=18, candidates=[REMOTE], attempts=[attempt]),
            entry("c", task="tumour_triage", attempts=[failed], fallback=True),
            entry("d", patient=None, caller=context_pb2.Caller(identity="bob")),
        )
        auditor = await calls.by("auditor")

        async def ask(**filters):
            wanted = audit_pb2.Filter(**filters)
            answer = await auditor.Query(audit_pb2.QueryRequest(filter=wanted))
            return "".join(found.record.decision_id for found in answer.records)

        assert await ask() == "aabcd"
        assert await ask(task="tumour_triage") == "c"
        assert await ask(subject=subject(17)) == "aac"
        assert await ask(subject=subject(18)) == "b"
        assert await ask(subject=subject(19)) == ""
        assert await ask(path=context_pb2.PATH_REMOTE) == "ab"
        assert await ask(model="diabetes_large", version="1") == "ab"
        assert await ask(model="diabetes_small") == "aacd"
        assert await ask(kinds=[INTENT]) == "a"
        assert await ask(egress=True) == "b"
        assert await ask(fallback=True) == "c"
        assert await ask(caller="bob") == "d"
        assert await ask(subject=subject(17), kinds=[OUTCOME], task="tumour_triage") == "c"
        times = [
            found.record.record_time_unix_us
            for found in (await auditor.Query(audit_pb2.QueryRequest())).records
        ]
        assert times == sorted(times)
        assert await ask(start_time_unix_us=times[-1] + 1) == ""
        assert await ask(end_time_unix_us=times[0]) == ""
        assert await ask(start_time_unix_us=times[0], end_time_unix_us=times[-1] + 1) == "aabcd"
        seen, token = "", ""
        while True:
            answer = await auditor.Query(audit_pb2.QueryRequest(page_size=2, page_token=token))
            seen += "".join(found.record.decision_id for found in answer.records)
            token = answer.next_page_token
            if not token:
                break
        assert seen == "aabcd"
        exported = [part async for part in auditor.Export(audit_pb2.ExportRequest())]
        assert [f.record.decision_id for part in exported for f in part.records] == list("aabcd")


async def test_a_version_that_the_vendor_reported_is_found(tmp_path):
    """By the version that was asked for and by the one that answered, not by a failed attempt's."""
    dated = {"candidate": REMOTE, "reported_version": "large-2026-03-01"}
    attempts = {
        "a": [decision_pb2.Attempt(**dated)],
        "b": [decision_pb2.Attempt(**dated, code=14), decision_pb2.Attempt(candidate=LOCAL)],
        "c": [decision_pb2.Attempt(candidate=REMOTE, reported_version="1")],
    }
    answered = {"a": REMOTE, "b": LOCAL, "c": REMOTE}

    async def ask(calls, **filters):
        auditor = await calls.by("auditor")
        request = audit_pb2.QueryRequest(filter=audit_pb2.Filter(**filters))
        return [found.record.decision_id for found in (await auditor.Query(request)).records]

    async with service(tmp_path) as calls:
        for name, tried in attempts.items():
            await calls.append(entry(name, attempts=tried, candidates=[answered[name]]))
        assert await ask(calls, model="diabetes_large", version="large-2026-03-01") == ["a"]
        assert await ask(calls, version="large-2026-03-01") == ["a"]
        assert await ask(calls, model="diabetes_large", version="1") == ["a", "c"]
    (tmp_path / "audit" / "index.sqlite").unlink()
    async with service(tmp_path) as calls:
        assert await ask(calls, model="diabetes_large", version="large-2026-03-01") == ["a"]


async def test_proofs_check_out(tmp_path):
    """What Prove, ProveConsistency and Checkpoint say is checked with nothing but the key."""
    async with service(tmp_path) as calls:
        await calls.append(*(entry(f"d{n}") for n in range(7)))
        auditor = await calls.by("auditor")
        first = await auditor.Checkpoint(audit_pb2.CheckpointRequest(now=True))
        await calls.append(*(entry(f"e{n}") for n in range(6)))
        proven = await auditor.Prove(audit_pb2.ProveRequest(decision_id="e2"))
        point = verify_note(proven.checkpoint, vkeys(tmp_path))
        proof = proven.proofs[0]
        assert (point.size, proof.leaf_index) == (13, 9)
        leaf = leaf_hash(proof.leaf)
        verify_inclusion(proof.leaf_index, point.size, leaf, list(proof.hashes), point.root)
        assert record_pb2.Record.FromString(proof.leaf).decision_id == "e2"
        grown = await auditor.ProveConsistency(
            audit_pb2.ProveConsistencyRequest(first_size=first.tree_size)
        )
        verify_consistency(7, 13, list(grown.hashes), first.root_hash, point.root)
        older = await auditor.Prove(audit_pb2.ProveRequest(leaf_index=2, tree_size=7))
        assert older.checkpoint == first.note
        assert older.proofs[0].root_hash == first.root_hash
        for ask, kind in (
            (audit_pb2.ProveRequest(), InvalidArgumentError),
            (audit_pb2.ProveRequest(leaf_index=13), NotFoundError),
            (audit_pb2.ProveRequest(decision_id="none"), NotFoundError),
            (audit_pb2.ProveRequest(leaf_index=9, tree_size=7), FailedPreconditionError),
            (audit_pb2.ProveRequest(leaf_index=9, tree_size=99), InvalidArgumentError),
        ):
            assert isinstance(await support.refusal(auditor.Prove(ask)), kind)


async def test_bad_entries_fail_alone(tmp_path):
    """A wrong entry is answered with its own status and field, and its neighbours are kept."""
    forged = entry("forged")
    forged.record.input_hmac = b"x" * 32
    huge = entry("huge", filters_applied=["x" * 1000] * 400)
    async with service(tmp_path) as calls:
        results = await calls.append(
            entry("good"),
            entry("closed", record_pb2.RECORD_KIND_ABANDONED),
            forged,
            entry(""),
            huge,
            entry("fine"),
        )
        errors = [from_status(result.status) for result in results]
        assert errors[0] is None
        assert errors[5] is None
        assert [results[0].leaf_index, results[5].leaf_index] == [0, 1]
        assert errors[1].violations[0][0] == "record.kind"
        assert errors[2].violations[0][0] == "record.input_hmac"
        assert errors[3].violations[0][0] == "record.decision_id"
        assert isinstance(errors[4], ResourceExhaustedError)
        assert errors[4].reason == "RECORD_TOO_LARGE"
        auditor = await calls.by("auditor")
        bad = audit_pb2.QueryRequest(page_token="; DROP TABLE records")
        assert isinstance(await support.refusal(auditor.Query(bad)), InvalidArgumentError)


async def test_only_those_who_may(tmp_path):
    """Append is the router's, Erase the privacy officer's, payloads are for few."""
    async with service(tmp_path) as calls:
        request = audit_pb2.AppendRequest(entries=[entry("d1")])
        for who, kind in (
            ("auditor", PermissionDeniedError),
            ("caller", PermissionDeniedError),
            ("service:local", PermissionDeniedError),
            ("nobody", UnauthenticatedError),
        ):
            stub = await calls.by(who)
            assert isinstance(await support.refusal(stub.Append(request)), kind), who
        await calls.append(entry("d1"))
        auditor = await calls.by("auditor")
        get = audit_pb2.GetRequest(decision_id="d1", include_payload=True)
        refused = await support.refusal(auditor.Get(get))
        assert isinstance(refused, PermissionDeniedError)
        assert refused.reason == "PAYLOAD_NOT_ALLOWED"
        router = await calls.by("service:router")
        assert (await router.Get(get)).records[0].payload.reply == b"a reply to d1"
        erase = audit_pb2.EraseRequest(subject=subject(17), reason="asked")
        assert isinstance(await support.refusal(auditor.Erase(erase)), PermissionDeniedError)


async def test_erasure(tmp_path):
    """After an erasure payload and link are gone, the log verifies, and the erasure is in it.

    Of the digests there is nothing that a guess could be compared with.
    """
    sent = decision_pb2.Attempt(candidate=REMOTE, bytes_out=10, wire_digest=WIRE)
    async with service(tmp_path) as calls:
        await calls.append(
            entry("d1", INTENT), entry("d1", attempts=[sent]), entry("d2", patient=18)
        )
        officer, auditor = await calls.by("privacy_officer"), await calls.by("auditor")
        router = await calls.by("service:router")
        erase = audit_pb2.EraseRequest(subject=subject(17), reason="asked for it in writing")
        answer = await officer.Erase(erase)
        assert (answer.records, answer.leaf_index) == (2, 3)
        assert any("backup" in copy for copy in answer.not_reached)
        get = audit_pb2.GetRequest(decision_id="d1", include_payload=True)
        found = (await router.Get(get)).records
        assert all(record.erased and not record.HasField("payload") for record in found)
        told = b"".join(stored.SerializeToString() for stored in found)
        assert DIGEST not in told
        assert WIRE not in told
        mine = audit_pb2.QueryRequest(filter=audit_pb2.Filter(subject=subject(17)))
        assert not (await auditor.Query(mine)).records
        event = (await auditor.Get(audit_pb2.GetRequest(decision_id=answer.erasure_id))).records[0]
        assert event.record.kind == record_pb2.RECORD_KIND_ERASURE
        assert event.record.event.actor == "ann"
        assert event.record.event.target == found[0].record.subject
        assert isinstance(await support.refusal(officer.Erase(erase)), NotFoundError)
        await calls.append(entry("d3"))
        fresh = (await auditor.Query(mine)).records
        assert [f.record.decision_id for f in fresh] == ["d3"]
        assert fresh[0].record.subject != found[0].record.subject
        other = audit_pb2.GetRequest(decision_id="d2", include_payload=True)
        assert (await router.Get(other)).records[0].payload.reply == b"a reply to d2"
    assert verify_directory(tmp_path / "audit" / "log", vkeys(tmp_path)).ok


async def test_a_restored_key_store_forgets_again(tmp_path):
    """Keys that a restore brings back are destroyed at the start, as the log says they were."""
    async with service(tmp_path) as calls:
        await calls.append(entry("d1"))
    backup = (tmp_path / "keys" / "subjects.sqlite").read_bytes()
    async with service(tmp_path) as calls:
        officer = await calls.by("privacy_officer")
        await officer.Erase(audit_pb2.EraseRequest(subject=subject(17), reason="asked"))
    for path in (tmp_path / "keys").glob("subjects.sqlite*"):
        path.unlink()
    (tmp_path / "keys" / "subjects.sqlite").write_bytes(backup)
    async with service(tmp_path) as calls:
        router = await calls.by("service:router")
        get = audit_pb2.GetRequest(decision_id="d1", include_payload=True)
        found = (await router.Get(get)).records[0]
        assert found.erased
        assert not found.HasField("payload")


async def test_open_intents_are_closed(tmp_path):
    """An INTENT past its deadline is closed as ABANDONED once; one with an end never is."""
    async with service(tmp_path, reconcile_interval_s=0.05, reconcile_grace_s=0.0) as calls:
        await calls.append(
            entry("lost", INTENT, candidates=[REMOTE], deadline_unix_us=1),
            entry("ended", INTENT, deadline_unix_us=1),
            entry("ended"),
            entry("early"),
            entry("early", INTENT, deadline_unix_us=1),
            entry("waits", INTENT, deadline_unix_us=2**60),
        )
        auditor = await calls.by("auditor")
        closed = audit_pb2.Filter(kinds=[record_pb2.RECORD_KIND_ABANDONED])
        for _ in range(100):
            found = (await auditor.Query(audit_pb2.QueryRequest(filter=closed))).records
            if found:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        found = (await auditor.Query(audit_pb2.QueryRequest(filter=closed))).records
        assert [record.record.decision_id for record in found] == ["lost"]
        assert found[0].record.subject
        may_have_left = audit_pb2.QueryRequest(filter=audit_pb2.Filter(egress=True))
        assert len((await auditor.Query(may_have_left)).records) == 1


async def test_a_corrupt_log_is_not_served(tmp_path):
    """With a damaged record the service starts, stays NOT_SERVING, and names the record."""
    async with service(tmp_path) as calls:
        for n in range(5):
            await calls.append(entry(f"d{n}"))
    segment = next((tmp_path / "audit" / "log").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.find(b"\x12\x02d2") + 2] ^= 1
    segment.write_bytes(data)
    async with service(tmp_path) as calls:
        assert not await calls.running.health.check()
        router = await calls.by("service:router")
        refused = await support.refusal(
            router.Append(audit_pb2.AppendRequest(entries=[entry("later")]))
        )
        assert isinstance(refused, DataLossError)
        assert "record 2" in refused.message


async def test_storage_that_comes_later(tmp_path):
    """While the log can't be opened the service says so; when it can, it serves by itself."""
    (tmp_path / "audit").write_text("a file where the folder must be")
    async with service(tmp_path) as calls:
        assert not await calls.running.health.check()
        router = await calls.by("service:router")
        request = audit_pb2.AppendRequest(entries=[entry("d1")])
        refused = await support.refusal(router.Append(request))
        assert isinstance(refused, UnavailableError)
        assert refused.reason == "LOG_UNAVAILABLE"
        (tmp_path / "audit").unlink()
        for _ in range(100):
            if await calls.running.health.check():
                break
            await asyncio.sleep(0.05)
        assert (await router.Append(request)).results[0].status.code == 0


class JumpyClock:
    """A clock that jumps back."""

    def __init__(self) -> None:
        self.times = [5_000_000, 9_000_000, 3_000_000, 4_000_000]

    def unix_us(self) -> int:
        """The next time."""
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]

    def monotonic(self) -> float:
        """Not asked."""
        return 0.0


async def test_a_clock_that_jumps_back(tmp_path):
    """Record times never fall, whatever the clock does."""
    keys = support.mesh_keys(tmp_path / "mesh")

    async def build_jumpy(settings, stack):
        return await build(settings, stack, JumpyClock())

    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            support.start_service(settings_in(tmp_path, keys), build_jumpy)
        )
        calls = Calls(running, keys, stack)
        for n in range(4):
            await calls.append(entry(f"d{n}"))
        auditor = await calls.by("auditor")
        found = (await auditor.Query(audit_pb2.QueryRequest())).records
        assert [f.record.record_time_unix_us for f in found] == [9_000_000] * 4
