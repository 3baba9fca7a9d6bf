"""A decision whose answer comes later: put away in its INTENT, and taken up again from the log.

What has to be remembered is the request, the model input, and what the tokens in it stand for.
All of it is the data subject's, so it lies where their data lies: in the INTENT's payload,
encrypted with their key, which an erasure destroys. No other store gets it.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from services.chassis.clock import Clock
from services.chassis.errors import DataLossError, FailedPreconditionError
from services.router.assemble import Assembled
from services.router.decision import Decision
from services.router.plan import Candidate, Plan
from services.router.records import candidate_ref
from services.router.steps import CatalogView, entity_of
from twinpath.audit.v1 import audit_pb2
from twinpath.inference import digest
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import jobs_pb2


def put_away(decision: Decision, candidate: Candidate) -> audit_pb2.Payload:
    """Return what the INTENT has to keep for a decision that this candidate will answer."""
    assert decision.assembled is not None
    pending = jobs_pb2.PendingItem(
        request=decision.request,
        values=decision.assembled.values or {},
        candidate=candidate_ref(candidate),
    )
    return audit_pb2.Payload(
        model_input=decision.assembled.model_input.SerializeToString(),
        request_digest=decision.request_digest,
        pending=pending.SerializeToString(),
    )


def take_up(stored: audit_pb2.StoredRecord, view: CatalogView, clock: Clock) -> Decision:
    """Return the decision of an INTENT, as it was planned, to go on with it.

    Input, plan and data class are the recorded ones; the task's filters are those of now.

    Raises:
        ServiceError: SUBJECT_ERASED, PENDING_GONE, TASK_GONE; DATA_LOSS where what was kept is not
            what it should be.
    """
    record, payload = stored.record, stored.payload
    if stored.erased:
        raise FailedPreconditionError(
            "SUBJECT_ERASED", "the subject was erased; nothing about it is kept any more"
        )
    if not payload.pending:
        raise FailedPreconditionError("PENDING_GONE", "the log does not keep the input any more")
    try:
        pending = jobs_pb2.PendingItem.FromString(payload.pending)
        model_input = tensor_pb2.ModelInput.FromString(payload.model_input)
    except DecodeError:
        raise DataLossError("PAYLOAD_CORRUPT", "the payload can't be read") from None
    if not digest.fits(model_input):
        raise DataLossError("INPUT_DIGEST_MISMATCH", "the input is not what its digest says")
    task = view.recorded(record.task)
    request, now, now_us = pending.request, clock.monotonic(), clock.unix_us()
    decision = Decision(
        id=record.decision_id,
        request=request,
        task=task,
        catalog=view.catalog,
        catalog_stale=view.stale,
        caller=record.caller,
        entity=entity_of(request),
        fields={},
        subject=audit_pb2.Subject(
            entity=request.entity, tenant=record.caller.tenant, entity_type=task.entity.type
        ),
        started=now - (now_us - record.event_time_unix_us) / 1e6,
        started_unix_us=record.event_time_unix_us,
        deadline=now + (record.deadline_unix_us - now_us) / 1e6,
        trace_id=record.trace_id,
        request_digest=payload.request_digest,
        recorded_arm=record.arm,
    )
    decision.lineage = record.lineage
    decision.assembled = Assembled(
        model_input,
        list(record.feature_handling),
        dict(pending.values) or None,
        tuple(record.filters_applied),
    )
    decision.data_class = max(record.data_class, task.data_class_value, request.data_class)
    plan = record.plan
    decision.plan = Plan((), plan.policy_version, decision.data_class, record.arm)
    decision.plan_message = plan
    return decision
