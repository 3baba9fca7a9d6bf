"""Turns a decision into the contract's messages: plan, lineage, and the records of the log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from services.chassis.errors import ServiceError
from services.router.decision import Decision
from services.router.plan import Candidate, Plan
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import digest
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

_PATHS = {"local": context_pb2.PATH_LOCAL, "remote": context_pb2.PATH_REMOTE}


@lru_cache(maxsize=4096)
def _reference(
    id_: str, model: str, version: str, path: str, provider: str, region: str
) -> decision_pb2.CandidateRef:
    return decision_pb2.CandidateRef(
        id=id_, model=model, version=version, path=_PATHS[path], provider=provider, region=region
    )


def candidate_ref(candidate: Candidate) -> decision_pb2.CandidateRef:
    """Return the contract's name for a candidate. Shared: don't change it."""
    return _reference(
        candidate.id,
        candidate.model,
        candidate.version,
        candidate.path,
        candidate.provider,
        candidate.region,
    )


def plan_message(plan: Plan) -> decision_pb2.Plan:
    """Return a plan as callers and auditors read it."""
    message = decision_pb2.Plan(
        policy_version=plan.policy_version,
        data_class=plan.data_class,  # type: ignore[arg-type]
        arm=plan.arm,
        policy_rules=plan.rules,
    )
    for entry in plan.entries:
        state = entry.state
        out = message.entries.add(
            candidate=candidate_ref(entry.candidate),
            rank=entry.rank,
            score=entry.score,
            breaker=int(state.breaker),  # type: ignore[arg-type]
            predicted_p50_us=int((state.p50 or 0) * 1e6),
            predicted_p95_us=int((state.p95 or 0) * 1e6),
        )
        if entry.candidate.cost_nanos:
            out.predicted_cost.CopyFrom(
                decision_pb2.Cost(
                    currency_code="USD",
                    nanos=entry.candidate.cost_nanos,
                    basis=decision_pb2.COST_BASIS_ESTIMATED,
                )
            )
        if state.cut_over and entry.rank:
            out.demoted.CopyFrom(
                decision_pb2.Refusal(
                    kind=decision_pb2.REFUSAL_KIND_HEALTH, rule="cut_over", message=state.cut_over
                )
            )
        for refusal in entry.refusals:
            out.refusals.add(
                kind=int(refusal.kind),  # type: ignore[arg-type]
                rule=refusal.rule,
                message=refusal.message,
            )
    return message


def plan_of(decision: Decision) -> decision_pb2.Plan:
    """Return a decision's plan. Made once for each decision; don't change it."""
    assert decision.plan is not None
    if decision.plan_message is None:
        decision.plan_message = plan_message(decision.plan)
    return decision.plan_message


def lineage_message(decision: Decision, code_version: str) -> decision_pb2.Lineage:
    """Return where a decision comes from. Made once for each decision; don't change it."""
    if decision.lineage is not None:
        return decision.lineage
    vector = decision.vector
    lineage = decision_pb2.Lineage(
        feature_service=vector.feature_service if vector else "",
        registry_version=vector.registry_version if vector else "",
        catalog_version=decision.catalog.version,
        contract_version=decision.task.version,
        code_version=code_version,
    )
    if vector is not None:
        for view, version, event_time in vector.views:
            lineage.views.add(view=view, version_hash=version, event_time_unix_us=event_time)
    decision.lineage = lineage
    return lineage


def total_cost(attempts: Sequence[decision_pb2.Attempt]) -> decision_pb2.Cost | None:
    """Return the sum over all attempts; None when nothing is known.

    Amounts in different currencies are not added: the first attempt's currency counts, and the
    others stay with their attempts. One estimate makes the sum an estimate.
    """
    return sum_of([a.cost for a in attempts if a.HasField("cost")])


def sum_of(costs: Sequence[decision_pb2.Cost]) -> decision_pb2.Cost | None:
    """Return the sum of some amounts, as `total_cost`."""
    known = [cost for cost in costs if cost.currency_code]
    if not known:
        return None
    currency = known[0].currency_code
    same = [cost for cost in known if cost.currency_code == currency]
    bases = {cost.basis for cost in same}
    basis = bases.pop() if len(bases) == 1 else decision_pb2.COST_BASIS_ESTIMATED
    return decision_pb2.Cost(
        currency_code=currency, nanos=sum(cost.nanos for cost in same), basis=basis
    )


def _record(
    decision: Decision, kind: record_pb2.RecordKind, now_us: int, code_version: str
) -> record_pb2.Record:
    record = record_pb2.Record(
        kind=kind,
        decision_id=decision.id,
        trace_id=decision.trace_id,
        caller=decision.caller,
        task=decision.task.name,
        data_class=decision.data_class,  # type: ignore[arg-type]
        lineage=lineage_message(decision, code_version),
        event_time_unix_us=now_us,
        catalog_stale=decision.catalog_stale,
    )
    if decision.plan is not None:
        record.plan.CopyFrom(plan_of(decision))
        record.arm = decision.plan.arm
    if decision.assembled is not None:
        record.feature_handling.extend(decision.assembled.handling)
        # An INTENT is about what may leave; its record may be made while an answer is looked at.
        before = kind == record_pb2.RECORD_KIND_INTENT
        made = decision.assembled.filters if before else decision.filters_applied
        record.filters_applied.extend(made)
    return record


def _entry(decision: Decision, record: record_pb2.Record) -> audit_pb2.Entry:
    entry = audit_pb2.Entry(
        context=context_pb2.ItemContext(id=decision.next_id(), caller=decision.caller),
        record=record,
        subject=decision.subject,
    )
    if decision.assembled is not None:
        entry.input_digest = decision.assembled.model_input.digest
    return entry


def intent(decision: Decision, now_us: int, deadline_us: int, code_version: str) -> audit_pb2.Entry:
    """Return the INTENT: who may be called from now on."""
    assert decision.plan is not None
    record = _record(decision, record_pb2.RECORD_KIND_INTENT, now_us, code_version)
    record.deadline_unix_us = deadline_us
    record.candidates.extend(candidate_ref(e.candidate) for e in decision.plan.admitted)
    return _entry(decision, record)


def refused(
    decision: Decision, now_us: int, error: ServiceError, code_version: str
) -> audit_pb2.Entry:
    """Return the REFUSED: policy left nobody to ask."""
    record = _record(decision, record_pb2.RECORD_KIND_REFUSED, now_us, code_version)
    record.code = error.code.value[0]
    record.reason = error.reason
    return _entry(decision, record)


def failed(
    decision: Decision,
    now_us: int,
    error: ServiceError,
    attempts: Sequence[decision_pb2.Attempt],
    code_version: str,
) -> audit_pb2.Entry:
    """Return the FAILED: who was asked, and that nobody answered."""
    record = _record(decision, record_pb2.RECORD_KIND_FAILED, now_us, code_version)
    record.attempts.extend(attempts)
    record.code = error.code.value[0]
    record.reason = error.reason
    return _entry(decision, record)


def outcome(
    decision: Decision, now_us: int, reply: router_pb2.InferResponse, code_version: str
) -> audit_pb2.Entry:
    """Return the OUTCOME with the payload that a replay or a repeated reply needs."""
    assert decision.assembled is not None
    record = _record(decision, record_pb2.RECORD_KIND_OUTCOME, now_us, code_version)
    record.attempts.extend(reply.attempts)
    record.candidates.append(reply.answered_by)
    record.fallback = reply.fallback
    record.cached = reply.cached
    entry = _entry(decision, record)
    ordered = sorted(reply.outputs, key=lambda tensor: tensor.name.encode())
    entry.output_digest = digest.digest(ordered)
    entry.payload.model_input = decision.assembled.model_input.SerializeToString()
    entry.payload.reply = reply.SerializeToString()
    entry.payload.request = _asked(decision.request).SerializeToString()
    if decision.model_outputs:
        made = inference_pb2.InferResult(outputs=decision.model_outputs)
        entry.payload.model_outputs = made.SerializeToString()
    if decision.request_digest:
        entry.payload.request_digest = decision.request_digest
    return entry


def _asked(request: router_pb2.InferRequest) -> router_pb2.InferRequest:
    """Return what a replay needs to know of a request: whom it is about, what policy reads."""
    return router_pb2.InferRequest(
        task=request.task,
        entity=request.entity,
        purpose=request.purpose,
        data_class=request.data_class,
        residency=request.residency,
        consents=request.consents,
    )
