"""Runs a recorded decision's model again, on the recorded model input, and compares.

A replay is a decision like any other where it counts: policy as it is now holds, with the data
class that counted then at least; an INTENT is durable before anything is called; an OUTCOME ends
it, and both name the decision that they replay. What it does not do: read features, assemble,
look at idempotency, or keep a payload, so it copies no data and can't be replayed itself.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import DecodeError

from services.chassis import telemetry
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    ServiceError,
)
from services.router import records
from services.router.admission import Admission
from services.router.agreement import Agreement, Tolerance, compare
from services.router.assemble import Assembled, not_redacted
from services.router.attempt import Answer, Errand
from services.router.catalog import Task
from services.router.collected import Collected
from services.router.decision import Decision
from services.router.dispatch import Dispatcher
from services.router.outputs import accept
from services.router.plan import Kind, Plan, Refusal
from services.router.ports import Audit
from services.router.steps import CatalogView, Steps, entity_of, refusal, size_class_of
from services.router.streams import Streams
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import digest
from twinpath.inference.v1 import inference_pb2, tensor_pb2
from twinpath.router.v1 import router_pb2

_GRACE_US = 5_000_000  # how long after its deadline a replay may still be closing
_OTHER = {
    context_pb2.PATH_LOCAL: context_pb2.PATH_REMOTE,
    context_pb2.PATH_REMOTE: context_pb2.PATH_LOCAL,
}
_FIXED = {
    router_pb2.REPLAY_PATH_LOCAL: context_pb2.PATH_LOCAL,
    router_pb2.REPLAY_PATH_REMOTE: context_pb2.PATH_REMOTE,
}


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An OUTCOME that can be replayed: the record, what was asked, the input, the reply."""

    record: record_pb2.Record
    request: router_pb2.InferRequest
    model_input: tensor_pb2.ModelInput
    reply: router_pb2.InferResponse
    outputs: Sequence[tensor_pb2.Tensor]


class Replays:
    """Replays decisions."""

    def __init__(
        self,
        *,
        steps: Steps,
        dispatcher: Dispatcher,
        streams: Streams,
        admission: Admission,
        audit: Audit,
        catalog: Callable[[], CatalogView],
        clock: Clock,
        code_version: str,
    ) -> None:
        self._steps = steps
        self._dispatcher = dispatcher
        self._streams = streams
        self._admission = admission
        self._audit = audit
        self._catalog = catalog
        self._clock = clock
        self._code_version = code_version

    async def replay(
        self, request: router_pb2.ReplayRequest, call: Call
    ) -> router_pb2.ReplayResponse:
        """Replay one decision.

        Raises:
            ServiceError: as the router's proto says.
        """
        recorded = await self._read(request.decision_id)
        decision = self._decision(recorded, request.path, call)
        # It yields to callers: what a replay is for can wait.
        with self._admission(decision.request):
            plan = self._plan(decision, recorded, request.path)
            if not plan.admitted:
                raise await self._refuse(decision, recorded, plan)
            await self._append(self._intent(decision), recorded)
            answer = await self._dispatch(decision)
            if answer.error is not None:
                now = self._clock.unix_us()
                await self._append(
                    records.failed(
                        decision, now, answer.error, answer.attempts, self._code_version
                    ),
                    recorded,
                )
                raise answer.error
            reply = self._steps.reply(decision, answer)
            now = self._clock.unix_us()
            entry = records.outcome(decision, now, reply, self._code_version)
            entry.ClearField("payload")
            reply.leaf_index = await self._append(entry, recorded)
        return await self._compare(decision, recorded, reply, request)

    # ---- what was recorded ------------------------------------------------------------------

    async def _read(self, decision_id: str) -> _Recorded:
        """Return the OUTCOME and its payload; every reason against it is a clear error."""
        found = await self._audit.get(decision_id, payload=True)
        if not found:
            raise NotFoundError("DECISION_UNKNOWN", "the log has no such decision")
        stored = next((s for s in found if s.record.kind == record_pb2.RECORD_KIND_OUTCOME), None)
        if stored is None:
            raise FailedPreconditionError("NO_OUTCOME", "the decision has no OUTCOME to replay")
        if stored.record.replay_of:
            raise FailedPreconditionError(
                "REPLAY_OF_REPLAY",
                "this is a replay itself; replay the decision that it names",
                metadata={"replay_of": stored.record.replay_of},
            )
        if stored.erased:
            raise FailedPreconditionError(
                "SUBJECT_ERASED", "the subject was erased; the input is out of reach for good"
            )
        if not stored.payload.model_input:
            raise FailedPreconditionError(
                "PAYLOAD_GONE", "the payload is past its retention; the input is not kept any more"
            )
        if not stored.payload.request:
            raise FailedPreconditionError(
                "REQUEST_NOT_RECORDED", "recorded before replays were: policy can't be applied"
            )
        try:
            reply = router_pb2.InferResponse.FromString(stored.payload.reply)
            made = inference_pb2.InferResult.FromString(stored.payload.model_outputs)
            recorded = _Recorded(
                stored.record,
                router_pb2.InferRequest.FromString(stored.payload.request),
                tensor_pb2.ModelInput.FromString(stored.payload.model_input),
                reply,
                made.outputs or reply.outputs,
            )
        except DecodeError:
            raise DataLossError("PAYLOAD_CORRUPT", "the payload can't be read") from None
        same = recorded.model_input.digest == recorded.reply.input_digest
        if not same or not digest.fits(recorded.model_input):
            raise DataLossError(
                "INPUT_DIGEST_MISMATCH", "the recorded model input is not what its digest says"
            )
        return recorded

    def _decision(self, recorded: _Recorded, where: router_pb2.ReplayPath, call: Call) -> Decision:
        """Return a decision of its own, about the recorded subject, by whoever asks now."""
        view = self._catalog()
        record, asked = recorded.record, recorded.request
        task = view.recorded(record.task)
        entity = entity_of(asked)
        if not_redacted(task, recorded.model_input, entity):
            raise FailedPreconditionError(
                "INPUT_NOT_REDACTED",
                "the recorded input holds what the task's rules redact now, so no model may get it",
                metadata={"task": record.task},
            )
        request = router_pb2.InferRequest()
        request.CopyFrom(asked)
        request.priority = context_pb2.PRIORITY_BATCH
        request.only_path = self._path(recorded, where)
        request.include_plan = True
        decision = Decision(
            id=uuid.uuid4().hex,
            request=request,
            task=task,
            catalog=view.catalog,
            catalog_stale=view.stale,
            caller=context_pb2.Caller(
                tenant=record.caller.tenant, identity=call.identity.subject, purpose=asked.purpose
            ),
            entity={},
            fields={},
            subject=audit_pb2.Subject(
                entity=asked.entity, tenant=record.caller.tenant, entity_type=task.entity.type
            ),
            started=self._clock.monotonic(),
            started_unix_us=self._clock.unix_us(),
            deadline=call.deadline,
            trace_id=telemetry.trace_id(),
            recorded_arm=record.arm,
        )
        # The input is where it came from then; catalog and code are those of now.
        decision.lineage = decision_pb2.Lineage()
        decision.lineage.CopyFrom(record.lineage)
        decision.lineage.catalog_version = view.catalog.version
        decision.lineage.contract_version = task.version
        decision.lineage.code_version = self._code_version
        decision.assembled = Assembled(recorded.model_input, list(record.feature_handling))
        decision.data_class = max(record.data_class, task.data_class_value, asked.data_class)
        return decision

    @staticmethod
    def _path(recorded: _Recorded, where: router_pb2.ReplayPath) -> context_pb2.Path:
        if where in _FIXED:
            return _FIXED[where]
        then = recorded.reply.answered_by.path
        return _OTHER[then] if where == router_pb2.REPLAY_PATH_OTHER else then

    # ---- plan, run, record ------------------------------------------------------------------

    def _plan(self, decision: Decision, recorded: _Recorded, where: router_pb2.ReplayPath) -> Plan:
        """Plan as for any decision; as recorded means: that candidate or none."""
        plan = self._steps.plan(decision)
        if where in (router_pb2.REPLAY_PATH_UNSPECIFIED, router_pb2.REPLAY_PATH_RECORDED):
            decision.plan = plan = _only(plan, recorded.reply.answered_by)
        return plan

    async def _refuse(self, decision: Decision, recorded: _Recorded, plan: Plan) -> ServiceError:
        # Who was not asked for at all says nothing about why nobody may be asked.
        meant = [e for e in plan.entries if all(r.kind is not Kind.CONSTRAINT for r in e.refusals)]
        error = refusal(dataclasses.replace(plan, entries=tuple(meant)) if meant else plan)
        if plan.refused_by_policy:
            now = self._clock.unix_us()
            entry = records.refused(decision, now, error, self._code_version)
            await self._append(entry, recorded)
        return error

    def _intent(self, decision: Decision) -> audit_pb2.Entry:
        now = self._clock.unix_us()
        left_us = int((decision.deadline - self._clock.monotonic()) * 1e6)
        return records.intent(decision, now, now + left_us + _GRACE_US, self._code_version)

    async def _append(self, entry: audit_pb2.Entry, recorded: _Recorded) -> int:
        """Append a record that says whose replay it is; return its leaf."""
        entry.record.replay_of = recorded.record.decision_id
        return (await self._audit.append(entry)).leaf_index

    async def _dispatch(self, decision: Decision) -> Answer:
        if decision.task.streaming:
            answer, collected = Answer(), Collected()
            async with aclosing(self._streams.dispatch(decision, answer, collected)) as chunks:
                async for _ in chunks:
                    pass  # nobody listens: the whole counts
            return answer

        async def intent_durable() -> None:
            return  # it is: nothing was called before it was

        return await self._dispatcher.run(
            Errand(
                decision,
                accept=partial(accept, decision),
                intent_durable=intent_durable,
                clock=self._clock,
                fresh=True,  # what is asked is what the model says now
                size_class=size_class_of(decision),
            )
        )

    # ---- compare ----------------------------------------------------------------------------

    async def _compare(
        self,
        decision: Decision,
        recorded: _Recorded,
        reply: router_pb2.InferResponse,
        request: router_pb2.ReplayRequest,
    ) -> router_pb2.ReplayResponse:
        given = request.tolerance if request.HasField("tolerance") else None
        found = agreements(decision.task, given, recorded.outputs, reply.outputs)
        own = await self._audit.get(decision.id, payload=False)
        hmacs = {stored.record.input_hmac for stored in own}
        return router_pb2.ReplayResponse(
            decision_id=decision.id,
            replay_of=recorded.record.decision_id,
            agrees=all(one.agrees for one in found),
            outputs=[_message(one) for one in found],
            same_input=hmacs == {recorded.record.input_hmac},
            recorded_by=recorded.reply.answered_by,
            replayed_by=reply.answered_by,
            changes=_changes(recorded, reply),
            attempts=reply.attempts,
            plan=reply.plan,
            leaf_index=reply.leaf_index,
            trace_id=decision.trace_id,
        )


def agreements(
    task: Task,
    given: router_pb2.Tolerance | None,
    recorded: Sequence[tensor_pb2.Tensor],
    replayed: Sequence[tensor_pb2.Tensor],
) -> list[Agreement]:
    """Compare each output of a task's contract, within the given tolerance or the task's."""
    found = []
    for spec in task.outputs:
        tolerance = Tolerance(spec.tolerance.absolute, spec.tolerance.relative)
        if given is not None:
            tolerance = Tolerance(given.absolute, given.relative)
        found.append(compare(spec.name, tolerance, recorded, replayed))
    return found


def _only(plan: Plan, ref: decision_pb2.CandidateRef) -> Plan:
    """Return the plan with all but one candidate refused."""
    entries = []
    for entry in plan.entries:
        here = records.candidate_ref(entry.candidate)
        if here == ref:
            entries.append(dataclasses.replace(entry, rank=1 if entry.rank else 0))
        else:
            refusals = (*entry.refusals, _not_recorded(ref, here))
            entries.append(dataclasses.replace(entry, rank=0, score=0.0, refusals=refusals))
    entries.sort(key=lambda entry: (entry.rank == 0, entry.candidate.id))
    return Plan(tuple(entries), plan.policy_version, plan.data_class, plan.arm)


def _not_recorded(ref: decision_pb2.CandidateRef, here: decision_pb2.CandidateRef) -> Refusal:
    """Say why a candidate of now is not the one that answered then."""
    if (here.id, here.path) == (ref.id, ref.path) and here.version != ref.version:
        text = (
            f"version {ref.version} answered, and version {here.version} is the candidate's now; "
            "to replay on that one, name the path"
        )
        return Refusal(Kind.CONSTRAINT, "recorded_version", text)
    return Refusal(Kind.CONSTRAINT, "recorded_candidate", f"{ref.id} answered, and is replayed")


def _changes(recorded: _Recorded, reply: router_pb2.InferResponse) -> list[str]:
    """Say what is known to have changed between the decision and its replay."""
    changes = []
    then, now = _last(recorded.record.attempts), _last(reply.attempts)
    if recorded.reply.answered_by == reply.answered_by and then and now:
        if then.artifact_digest != now.artifact_digest:
            changes.append("the model's artifact is another one under the same version")
        if then.reported_version != now.reported_version:
            changes.append("the model's server reports another version")
        if then.renderer_version != now.renderer_version:
            changes.append("the vendor's request is rendered by another version of our code")
    before, after = recorded.record.lineage, reply.lineage
    if before.contract_version != after.contract_version:
        changes.append("the task's contract has another version")
    return changes


def _last(attempts: Sequence[decision_pb2.Attempt]) -> decision_pb2.Attempt | None:
    """Return the attempt that answered."""
    return next((attempt for attempt in reversed(attempts) if attempt.code == 0), None)


def _message(one: Agreement) -> router_pb2.OutputAgreement:
    message = router_pb2.OutputAgreement(
        name=one.name,
        agrees=one.agrees,
        elements=one.elements,
        differing=one.differing,
        max_absolute=one.max_absolute,
        max_relative=one.max_relative,
        problem=one.problem,
    )
    if one.tolerance is not None:
        message.tolerance.absolute = one.tolerance.absolute
        message.tolerance.relative = one.tolerance.relative
    return message
