"""Batch jobs over fakes of the mesh and a real state store: what must hold whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from services.chassis.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    from_status,
)
from services.cli.embedded.valkey import Valkey
from services.router.catalog import load_catalog
from services.router.job_store import JobStore
from tests.local_path import running
from tests.unit.router.filtered import catalog_with
from tests.unit.router.job_world import (
    ENDED,
    RUNNING,
    TASK,
    JobWorld,
    asked,
    world_of,
)
from tests.unit.router.ports import CATALOG
from twinpath.common.v1 import decision_pb2
from twinpath.inference import digest, tensors
from twinpath.inference.v1 import bulk_pb2, grant_pb2
from twinpath.router.v1 import jobs_pb2


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real state store; its URL."""
    server = Valkey("state", tmp_path_factory.mktemp("valkey"))
    with running(server):
        yield server.url


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """The committed catalog, with a candidate that takes batch jobs."""
    folder = tmp_path / "catalog"
    shutil.copytree(CATALOG, folder)
    path = folder / "tasks" / f"{TASK}.yaml"
    task = yaml.safe_load(path.read_text())
    (remote,) = [c for c in task["candidates"] if c["path"] == "remote"]
    remote["bulk"] = True
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return folder


@pytest.fixture
async def world(catalog: Path, valkey: str) -> AsyncIterator[JobWorld]:
    """A world."""
    async with world_of(catalog, valkey) as made:
        yield made


async def test_each_item_leaves_an_intent_before_it_is_sent_and_an_outcome_after(world) -> None:
    """One grant and one INTENT for each before anything leaves; one OUTCOME with its cost."""
    job = await world.submit(3)
    assert (job.state, job.items) == (RUNNING, 3)
    assert world.bulk.kinds_at_submit == [["INTENT"] * 3]
    world.answers()
    job = await world.look(job)
    assert (job.state, job.succeeded, job.cost.nanos) == (ENDED, 3, 300)
    assert world.audit.kinds() == ["INTENT"] * 3 + ["OUTCOME"] * 3
    for item in world.bulk.sent:
        claims = grant_pb2.GrantClaims.FromString(item.grant.claims)
        assert claims.decision_id == item.decision_id
        assert claims.input_digest == item.input.digest == digest.digest(item.input.tensors)
    assert len({i.grant.claims for i in world.bulk.sent}) == 3
    for entry in world.of_kind("OUTCOME"):
        (attempt,) = entry.record.attempts
        assert attempt.kind == decision_pb2.ATTEMPT_KIND_BULK
        assert (attempt.bytes_out, attempt.cost.nanos) == (52, 100)
        assert entry.record.plan.entries[0].candidate.id == "diabetes_large"
        assert entry.record.caller.identity == "alice"
        assert entry.subject.entity_type


async def test_results_come_from_the_log(world) -> None:
    """Each item's decision in the items' order, with what a single request would have said."""
    job = await world.submit(3)
    world.answers()
    await world.look(job)
    found = await world.results(job)
    assert list(found) == ["i-0", "i-1", "i-2"]
    for entry, result in zip(world.of_kind("OUTCOME"), found.values(), strict=True):
        reply = result.response
        assert tensors.to_numpy(reply.outputs[0]).item() == 150.0
        assert reply.decision_id == entry.record.decision_id
        assert reply.answered_by.id == "diabetes_large"
        assert world.audit.log[reply.leaf_index] is entry


async def test_restricted_items_never_leave_and_are_refused_one_by_one(world) -> None:
    """Policy holds for each item of a job; what it refuses is recorded, and the others go."""
    job = await world.submit(4, restricted=(1, 3))
    assert (job.refused, job.items) == (2, 4)
    assert [i.decision_id for i in world.bulk.sent] == [
        e.record.decision_id for e in world.of_kind("INTENT")
    ]
    assert len(world.of_kind("REFUSED")) == len(world.bulk.sent) == 2
    assert {e.record.reason for e in world.of_kind("REFUSED")} == {"POLICY_REFUSED"}
    world.answers()
    await world.look(job)
    found = await world.results(job)
    assert [from_status(r.status) is None for r in found.values()] == [True, False, True, False]
    refused = from_status(found["i-1"].status)
    assert isinstance(refused, PermissionDeniedError)
    assert "restricted_never_leaves" in refused.metadata["diabetes_large"]


async def test_a_job_of_refused_items_ends_at_once(world) -> None:
    """Nothing is sent, and nobody has to look."""
    job = await world.submit(2, restricted=(0, 1))
    assert (job.state, job.refused) == (ENDED, 2)
    assert world.bulk.submits == 0


async def test_while_the_log_is_away_nothing_leaves(world) -> None:
    """No item whose INTENT is not durable is sent; the same key again makes the job of it."""
    world.audit.error = UnavailableError("AUDIT_UNREACHABLE", "away")
    with pytest.raises(UnavailableError) as caught:
        await world.submit(2, idempotency_key="k")
    assert (caught.value.reason, world.bulk.submits) == ("AUDIT_UNREACHABLE", 0)
    world.audit.error = None
    job = await world.submit(2, idempotency_key="k")
    assert (job.state, len(world.bulk.sent)) == (RUNNING, 2)


async def test_without_features_there_is_no_job(world) -> None:
    """That they are away is no item's fault, and no item is refused for it."""
    world.features.error = UnavailableError("FEATURES_UNREACHABLE", "away")
    with pytest.raises(UnavailableError):
        await world.submit(2)
    assert (world.audit.log, world.bulk.submits) == ([], 0)


async def test_the_same_key_gives_the_same_job(world) -> None:
    """Nothing is planned, recorded or sent twice; another job under the key is refused."""
    first = await world.submit(2, idempotency_key="k")
    again = await world.submit(2, idempotency_key="k")
    assert (again.id, again.state) == (first.id, RUNNING)
    assert (world.bulk.submits, len(world.audit.log)) == (1, 2)
    with pytest.raises(FailedPreconditionError, match="another job"):
        await world.submit(3, idempotency_key="k")
    other = await world.submit(2, idempotency_key="k", subject="bob")
    assert other.id != first.id


async def test_a_restart_of_the_router_loses_no_job(world) -> None:
    """What is in the state store and the log suffices to go on."""
    job = await world.submit(2)
    world.restart()
    world.answers()
    job = await world.look(job)
    assert (job.state, job.succeeded) == (ENDED, 2)
    assert world.audit.kinds() == ["INTENT"] * 2 + ["OUTCOME"] * 2


async def test_a_batch_that_did_not_reach_the_vendor_is_sent_later(world) -> None:
    """The inputs are read from the log, the grants are new, and the name is the same."""
    world.bulk.error = UnavailableError("REMOTE_UNREACHABLE", "away")
    job = await world.submit(2)
    assert (job.state, world.bulk.sent) == (RUNNING, [])
    world.restart()
    world.bulk.error = None
    await world.look(job)
    before = [e.record for e in world.of_kind("INTENT")]
    assert [i.decision_id for i in world.bulk.sent] == [r.decision_id for r in before]
    for item, entry in zip(world.bulk.sent, world.of_kind("INTENT"), strict=True):
        assert item.input.digest == entry.input_digest
    world.answers()
    assert (await world.look(job)).succeeded == 2
    assert len(world.of_kind("INTENT")) == 2


async def test_a_job_waits_for_a_path_that_is_away_and_for_one_that_is_drained(world) -> None:
    """Nobody waits for it by the second, so it is not refused; nothing is sent meanwhile."""
    await world.board.refresh()
    world.remote.down = True
    world.bulk.error = UnavailableError("REMOTE_UNREACHABLE", "away")
    job = await world.submit(2)
    assert (job.state, job.refused) == (RUNNING, 0)
    world.remote.down, world.bulk.error = False, None
    await world.board.refresh()
    world.board.drained = frozenset({"remote"})
    with pytest.raises(UnavailableError) as caught:
        await world.look(job)
    assert (caught.value.reason, world.bulk.sent) == ("PATH_DRAINED", [])
    refused = await world.submit(1)
    assert (refused.refused, world.bulk.sent) == (1, [])
    world.board.drained = frozenset()
    await world.look(job)
    world.answers()
    assert (await world.look(job)).succeeded == 2


async def test_a_reply_that_was_lost_is_asked_for_under_the_same_name(world) -> None:
    """The path knows what it has; two batches of one part are never made."""
    world.bulk.lost = UnavailableError("REMOTE_UNREACHABLE", "the reply was lost")
    job = await world.submit(2)
    await world.look(job)
    world.answers()
    assert (await world.look(job)).succeeded == 2
    assert (world.bulk.submits, len(world.bulk.jobs)) == (2, 1)


async def test_the_policy_of_the_moment_holds_when_items_are_sent_later(world, catalog) -> None:
    """What may leave is decided when it leaves: a rule that came in between keeps it here."""
    world.bulk.error = UnavailableError("REMOTE_UNREACHABLE", "away")
    job = await world.submit(2)
    rules = catalog / "policies" / "new.yaml"
    rules.write_text('rules:\n  - {id: nobody, message: Nobody., require: "false"}\n')
    world.catalog = load_catalog(catalog)
    world.bulk.error = None
    job = await world.look(job)
    assert (job.state, job.failed, world.bulk.sent) == (ENDED, 2, [])
    assert {e.record.reason for e in world.of_kind("FAILED")} == {"POLICY_REFUSED"}
    assert not any(e.record.attempts for e in world.of_kind("FAILED"))


async def test_what_todays_rules_redact_is_not_sent_later(world, catalog) -> None:
    """An input that was made by the rules of then stays here if they find more by now."""
    await world.board.refresh()
    world.bulk.error = UnavailableError("REMOTE_UNREACHABLE", "away")
    request = jobs_pb2.SubmitJobRequest(task="note_summary")
    for number, note in enumerate(("Of CASE-123456.", "Of nobody.")):
        item = request.items.add(id=f"i-{number}")
        item.entity["note_id"].string_value = f"n-{number}"
        item.fields["note"].string_value = note
    job = await world.jobs.submit(request, world.call())
    rules = {"patterns": {"case_number": "CASE-[0-9]{6}"}, "redact": ["case_number"]}
    world.catalog = load_catalog(catalog_with(catalog, filters=rules))
    world.bulk.error = None
    job = await world.look(job)
    assert (job.failed, len(world.bulk.sent)) == (1, 1)
    assert b"nobody" in world.bulk.sent[0].input.SerializeToString()
    assert world.of_kind("FAILED")[0].record.reason == "INPUT_NOT_REDACTED"


async def test_a_batch_cut_off_before_it_was_one_begins_anew(world) -> None:
    """Nothing was asked, so it may be asked under another name; not for ever."""
    job = await world.submit(1)
    world.bulk.state, world.bulk.reason = bulk_pb2.BULK_STATE_FAILED, "BULK_INTERRUPTED"
    for _ in range(8):
        job = await world.look(job)
    assert (job.state, job.failed) == (ENDED, 1)
    assert sorted(world.bulk.jobs) == [f"{job.id}.0.{n}" for n in range(4)]
    (failed,) = world.of_kind("FAILED")
    assert failed.record.reason == "BULK_INTERRUPTED"


async def test_a_killed_router_repeats_a_look_and_never_a_record(world) -> None:
    """The log says which items have their end, whatever the job's state still says."""
    job = await world.submit(3)
    world.bulk.failures = {1: UnavailableError("VENDOR_UNAVAILABLE", "x")}
    world.answers()
    save = JobStore.save

    class Killed(BaseException):
        pass

    async def die(self: JobStore, job: object) -> None:
        raise Killed

    JobStore.save = die  # type: ignore[method-assign]
    try:
        with pytest.raises(Killed):
            await world.work.advance(job.id)
    finally:
        JobStore.save = save  # type: ignore[method-assign]
    world.restart()
    job = await world.look(job)
    assert (job.state, job.succeeded, job.failed, job.cost.nanos) == (ENDED, 2, 1, 200)
    assert len(world.of_kind("OUTCOME")) == 2
    assert len(world.of_kind("FAILED")) == 1
    found = await world.results(job)
    assert from_status(found["i-1"].status).reason == "VENDOR_UNAVAILABLE"


async def test_an_item_that_fails_is_recorded_with_its_attempt(world) -> None:
    """An error of one request is that item's; an output that breaks the contract is none."""
    job = await world.submit(2)
    world.bulk.failures = {0: UnavailableError("VENDOR_UNAVAILABLE", "x")}
    world.bulk.value = float("nan")
    world.answers()
    job = await world.look(job)
    assert (job.succeeded, job.failed) == (0, 2)
    reasons = ["VENDOR_UNAVAILABLE", "OUTPUT_CONTRACT"]
    assert [e.record.reason for e in world.of_kind("FAILED")] == reasons
    assert [e.record.attempts[0].reason for e in world.of_kind("FAILED")] == reasons
    assert job.cost.nanos == 100  # the vendor bills for what we can't use
    assert all(not r.HasField("response") for r in (await world.results(job)).values())


async def test_an_erased_subject_gets_no_answer_and_its_end_is_recorded(world) -> None:
    """Between asking and answering the subject was erased: the input is gone, and so is the way."""
    job = await world.submit(1)
    world.audit.gone = True
    world.answers()
    job = await world.look(job)
    (failed,) = world.of_kind("FAILED")
    assert (job.failed, failed.record.reason) == (1, "SUBJECT_ERASED")
    assert failed.record.attempts[0].bytes_out == 52
    assert not failed.HasField("subject")
    assert not failed.record.deadline_unix_us


async def test_a_reply_that_was_erased_is_said_to_be_gone(world) -> None:
    """The state store never had it."""
    job = await world.submit(1)
    world.answers()
    await world.look(job)
    world.audit.gone = True
    found = await world.results(job)
    assert from_status(found["i-0"].status).reason == "REPLY_GONE"


async def test_a_job_can_be_ended(world) -> None:
    """What was sent is ended at the vendor; what was not is never sent."""
    sent = await world.submit(1)
    found = await world.jobs.cancel(sent.id, world.call())
    assert found.state == jobs_pb2.JOB_STATE_CANCELLING
    assert world.bulk.cancelled == [f"{sent.id}.0.0"]
    world.answers()
    assert (await world.look(sent)).state == jobs_pb2.JOB_STATE_CANCELLED
    world.bulk.error = UnavailableError("REMOTE_UNREACHABLE", "away")
    waiting = await world.submit(1)
    world.bulk.error = None
    found = await world.jobs.cancel(waiting.id, world.call())
    assert (found.state, found.failed) == (jobs_pb2.JOB_STATE_CANCELLED, 1)
    assert f"{waiting.id}.0.0" not in world.bulk.jobs
    assert world.of_kind("FAILED")[-1].record.reason == "JOB_CANCELLED"


async def test_a_vendor_that_stays_silent_ends_the_job_at_last(world) -> None:
    """The batch is ended, and each item's end is recorded."""
    job = await world.submit(1)
    world.clock.now += 26.5 * 3600
    await world.look(job)
    assert world.bulk.cancelled
    world.clock.now += 3600
    job = await world.look(job)
    assert (job.state, job.failed) == (ENDED, 1)
    assert world.of_kind("FAILED")[0].record.reason == "JOB_EXPIRED"


async def test_the_vendor_deletes_what_it_has_once_all_is_recorded(world) -> None:
    """Not before; and while it can't, somebody keeps asking, though the job has ended."""
    job = await world.submit(2)
    await world.look(job)
    assert world.bulk.forgotten == []
    world.answers()
    world.bulk.keeps = UnavailableError("VENDOR_UNAVAILABLE", "away")
    assert (await world.look(job)).state == ENDED
    assert await JobStore(world._client).open() == [job.id]
    world.bulk.keeps = None
    ended = await world.look(job)
    assert world.bulk.forgotten == [(f"{job.id}.0.0", 2)]
    assert await JobStore(world._client).open() == []
    assert (await world.look(job)) == ended


async def test_a_job_is_its_callers_and_nobody_elses(world) -> None:
    """Another caller can't see, end or read it, and does not find it in the list."""
    job = await world.submit(1)
    other = world.call(subject="bob")
    for ask in (world.jobs.get, world.jobs.cancel):
        with pytest.raises(NotFoundError):
            await ask(job.id, other)
    with pytest.raises(NotFoundError):
        await anext(world.jobs.results(job.id, other))
    assert await world.jobs.page(jobs_pb2.ListJobsRequest(), other) == ([], "")
    with pytest.raises(FailedPreconditionError, match="results come at its end"):
        await world.results(job)


async def test_jobs_are_listed_in_pages_the_newest_first(world) -> None:
    """Each job stands on one page."""
    made = []
    for _ in range(5):
        world.clock.now += 1
        made.append((await world.submit(1)).id)
    found: list[str] = []
    token = ""
    while True:
        request = jobs_pb2.ListJobsRequest(page_size=2, page_token=token)
        jobs, token = await world.jobs.page(request, world.call())
        found += [job.id for job in jobs]
        if not token:
            break
    assert found == made[::-1]


async def test_only_candidates_that_the_catalog_and_the_vendor_say_may_be_asked(world) -> None:
    """Neither a task without such a candidate, nor a vendor without batches, nor another one."""
    with pytest.raises(FailedPreconditionError) as caught:
        await world.submit(1, task="tumour_triage")
    assert caught.value.reason == "NO_BULK_CANDIDATE"
    with pytest.raises(FailedPreconditionError) as caught:
        await world.submit(1, candidate="diabetes_small")
    assert caught.value.reason == "NO_BULK_CANDIDATE"
    with pytest.raises(NotFoundError):
        await world.submit(1, task="unknown")
    world.board.takes_jobs = lambda candidate: False  # type: ignore[method-assign]
    job = await world.submit(1)
    error = from_status((await world.results(job))["i-0"].status)
    assert error.reason == "NO_CANDIDATE_ON_PATH"
    assert world.bulk.submits == 0


async def test_an_item_that_breaks_the_tasks_contract_fails_alone(world) -> None:
    """With the violations that a single request would get."""
    await world.board.refresh()
    request = asked(2)
    request.items[0].fields["unknown"].string_value = "x"
    job = await world.jobs.submit(request, world.call())
    assert (job.refused, len(world.bulk.sent)) == (1, 1)


async def test_a_job_that_is_too_large_for_one_message_goes_in_parts(world, monkeypatch) -> None:
    """Each part is a batch of its own; together they are the job."""
    from services.router import jobs

    first = await world.submit(1)
    size = world.bulk.sent[0].input.ByteSize()
    monkeypatch.setattr(jobs, "_PART_BYTES", 2 * size)
    job = await world.submit(5)
    assert (len(first.parts), [part.items for part in job.parts]) == (1, [2, 2, 1])
    world.answers()
    assert (await world.look(job)).succeeded == 5
    assert list(await world.results(job)) == [f"i-{n}" for n in range(5)]


async def test_a_job_cut_off_while_it_was_prepared_says_so_and_can_be_submitted_again(
    world,
) -> None:
    """Nothing has left; under the same key it is prepared anew."""
    intend = world.steps.intend

    class Killed(BaseException):
        pass

    async def die(*_: object) -> None:
        raise Killed

    world.steps.intend = die  # type: ignore[method-assign]
    with pytest.raises(BaseExceptionGroup):
        await world.submit(1, idempotency_key="k")
    world.steps.intend = intend  # type: ignore[method-assign]
    world.restart()
    jobs, _ = await world.jobs.page(jobs_pb2.ListJobsRequest(), world.call())
    found = await world.look(jobs_pb2.Job(id=jobs[0].id))
    assert (found.state, world.bulk.sent) == (jobs_pb2.JOB_STATE_INTERRUPTED, [])
    (result,) = (await world.results(found)).values()
    assert from_status(result.status).reason == "JOB_INTERRUPTED"
    again = await world.submit(1, idempotency_key="k")
    assert (again.id, again.state) == (found.id, RUNNING)
    world.answers()
    assert (await world.look(again)).succeeded == 1


async def test_the_state_store_holds_no_input_and_no_answer(world) -> None:
    """Ids, states and costs: what is the subject's lies in the log, under the subject's key."""
    job = await world.submit(1, purpose="care")
    (sent,) = world.bulk.sent

    async def kept() -> bytes:
        keys = [key async for key in world._client.scan_iter("twinpath:job:*")]
        return b"".join(await world._client.mget(keys))

    running = await kept()
    world.answers()
    await world.look(job)
    for found in (running, await kept()):
        assert job.id.encode() in found
        for secret in (sent.input.SerializeToString(), sent.input.tensors[0].raw):
            assert secret not in found
            assert secret.hex().encode() not in found
        assert b"patient_id" not in found
        assert b"outputs" not in found
