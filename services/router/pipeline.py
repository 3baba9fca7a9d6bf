"""The way of one request: admit, claim, enrich, assemble, plan, dispatch, filter, record, reply.

Read `decide` first; every step is a method below it, in the same order.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from services.chassis import telemetry
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import (
    AbortedError,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from services.router import records
from services.router.assemble import assemble, read_request
from services.router.attempt import Answer, Errand
from services.router.board import Board
from services.router.catalog import Catalog
from services.router.decision import Decision, digest_of_request, keyed_id
from services.router.dispatch import Dispatcher
from services.router.estimator import size_class
from services.router.limiter import Limiter, Outcome, Priority, Refusal
from services.router.outputs import check_outputs
from services.router.plan import Kind, Plan, make_plan
from services.router.ports import Audit, Claims, FeatureQuery, Features, FeatureVector
from twinpath import telemetry as names
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2
from twinpath.router.v1 import router_pb2

_tracer = trace.get_tracer(__name__)
_PRIORITIES = {0: "normal", 1: "interactive", 2: "normal", 3: "batch"}
_PATHS = {context_pb2.PATH_LOCAL: "local", context_pb2.PATH_REMOTE: "remote"}
_INTENT_GRACE_US = 5_000_000  # how long after its deadline a decision may still be closing
_CLAIM_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class CatalogView:
    """The catalog in force, and whether it is only the last good one."""

    catalog: Catalog
    stale: bool


class Pipeline:
    """Makes decisions."""

    def __init__(
        self,
        *,
        catalog: Callable[[], CatalogView],
        features: Features,
        audit: Audit,
        claims: Claims,
        board: Board,
        dispatcher: Dispatcher,
        clock: Clock,
        code_version: str,
        limiter: Limiter,
        random: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._features = features
        self._audit = audit
        self._claims = claims
        self._board = board
        self._dispatcher = dispatcher
        self._clock = clock
        self._code_version = code_version
        self._limiter = limiter
        self._random = random

    async def decide(
        self, request: router_pb2.InferRequest, call: Call, item: str = ""
    ) -> router_pb2.InferResponse:
        """Make one decision. `item` is the id within a batch.

        Raises:
            ServiceError: as the router's proto says for each case.
        """
        ticket = self._limiter.acquire(
            self._clock.monotonic(), Priority(request.priority or Priority.NORMAL), request.task
        )
        if isinstance(ticket, Refusal):  # a refusal for load is a counter, not a record
            raise ResourceExhaustedError(
                "OVERLOADED",
                f"{ticket.in_flight} decisions are in flight, the limit is {ticket.limit}",
                retry_after=ticket.retry_after_s,
            )
        load = Outcome.IGNORED
        try:
            decision = self._admit(request, call, item)
            if request.idempotency_key:
                return await self._claim(decision)
            reply = await self._make(decision)
            load = Outcome.DONE
            return reply  # noqa: TRY300 - what follows is the load's own bookkeeping
        except (DeadlineExceededError, ResourceExhaustedError):
            load = Outcome.DROPPED
            raise
        finally:
            self._limiter.release(ticket, self._clock.monotonic(), load)

    async def explain(
        self, request: router_pb2.InferRequest, call: Call
    ) -> router_pb2.ExplainResponse:
        """Return the plan that `decide` would follow now. Nothing is called, nothing recorded."""
        decision = self._admit(request, call, "")
        await self._enrich(decision)
        self._assemble(decision)
        plan = self._plan(decision)
        assert decision.assembled is not None
        return router_pb2.ExplainResponse(
            plan=records.plan_message(plan),
            input_digest=decision.assembled.model_input.digest,
            feature_handling=decision.assembled.handling,
            lineage=records.lineage_message(decision, self._code_version),
        )

    async def _make(self, decision: Decision) -> router_pb2.InferResponse:
        """Enrich, assemble, plan, dispatch, filter, record, reply."""
        await self._enrich(decision)
        self._assemble(decision)
        plan = self._plan(decision)
        if not plan.admitted:
            raise await self._refuse(decision, plan)
        answer = await self._dispatch(decision)
        if answer.error is not None:
            raise await self._fail(decision, answer.error, answer)
        return await self._record(decision, self._reply(decision, answer))

    # ---- 1. admit ---------------------------------------------------------------------------

    def _admit(self, request: router_pb2.InferRequest, call: Call, item: str) -> Decision:
        """Find the task, and read the request against its contract."""
        call.check_deadline()
        view = self._catalog()
        task = view.catalog.tasks.get(request.task)
        if task is None:
            raise NotFoundError(
                "TASK_UNKNOWN",
                f"there is no task {request.task!r}",
                metadata={"task": request.task},
            )
        entity, fields = read_request(task, request.entity, request.fields)
        identity = call.identity
        caller = context_pb2.Caller(
            tenant=identity.tenant, identity=identity.subject, purpose=request.purpose
        )
        key = request.idempotency_key
        decision = Decision(
            id=keyed_id(identity.tenant, identity.subject, request.task, key, item)
            if key
            else uuid.uuid4().hex,
            request=request,
            task=task,
            catalog=view.catalog,
            catalog_stale=view.stale,
            caller=caller,
            entity=entity,
            fields=fields,
            subject=audit_pb2.Subject(
                entity=request.entity, tenant=identity.tenant, entity_type=task.entity.type
            ),
            started=self._clock.monotonic(),
            started_unix_us=self._clock.unix_us(),
            deadline=call.deadline,
            trace_id=telemetry.trace_id(),
            request_digest=digest_of_request(request),
        )
        span = trace.get_current_span()
        span.set_attribute(names.DECISION_ID, decision.id)
        span.set_attribute(names.TASK, task.name)
        return decision

    # ---- 2. claim ---------------------------------------------------------------------------

    async def _claim(self, decision: Decision) -> router_pb2.InferResponse:
        """Give the answer that the key already has, or make it; one copy at a time."""
        while True:
            before = await self._find(decision)
            if before is not None:
                return before
            left = decision.deadline - self._clock.monotonic()
            if left <= 0:
                raise AbortedError(
                    "IDEMPOTENCY_IN_PROGRESS",
                    "another copy of this request is still being decided",
                    retry_after=_CLAIM_POLL_S,
                )
            if await self._claims.take(decision.id, left):
                break
            await asyncio.sleep(min(_CLAIM_POLL_S, left))
        try:
            # The copy that held the claim before may have ended between look and claim.
            before = await self._find(decision)
            return before if before is not None else await self._make(decision)
        finally:
            await self._claims.release(decision.id)

    async def _find(self, decision: Decision) -> router_pb2.InferResponse | None:
        """Return the reply of this decision id's OUTCOME, if there is one."""
        for stored in await self._audit.get(decision.id, payload=True):
            if stored.record.kind == record_pb2.RECORD_KIND_OUTCOME:
                return self._repeated(decision, stored)
        return None

    def _repeated(
        self, decision: Decision, stored: audit_pb2.StoredRecord
    ) -> router_pb2.InferResponse:
        """Return the reply that a stored OUTCOME holds, if it is the same request's."""
        if not stored.payload.reply:
            raise FailedPreconditionError(
                "REPLY_GONE", "this key was answered, and the answer has been erased since"
            )
        if stored.payload.request_digest != decision.request_digest:
            raise FailedPreconditionError(
                "IDEMPOTENCY_KEY_REUSED", "this key was used for another request"
            )
        reply = router_pb2.InferResponse.FromString(stored.payload.reply)
        reply.repeated = True
        reply.leaf_index = stored.leaf_index
        if not decision.request.include_plan:
            reply.ClearField("plan")
        return reply

    # ---- 3. enrich --------------------------------------------------------------------------

    async def _enrich(self, decision: Decision) -> None:
        """Read the features; the data class that counts is the strictest of the three."""
        task = decision.task
        vector: FeatureVector | None = None
        if task.feature_service:
            query = FeatureQuery(
                feature_service=task.feature_service,
                context=decision.context(self._clock.monotonic()),
                entity=decision.entity,
                fields={
                    n: v for n, v in decision.fields.items() if task.fields[n].to == "features"
                },
            )
            with _tracer.start_as_current_span(names.SPAN_ENRICH):
                vector = await self._features.get(query)
        decision.vector = vector
        decision.data_class = max(
            task.data_class_value,
            decision.request.data_class,
            vector.data_class if vector is not None else 0,
        )

    # ---- 4. assemble ------------------------------------------------------------------------

    def _assemble(self, decision: Decision) -> None:
        """Make the one model input, before any path is known."""
        vector = decision.vector
        decision.assembled = assemble(
            decision.task,
            vector.values if vector else {},
            vector.statuses if vector else {},
            decision.fields,
        )
        span = trace.get_current_span()
        span.set_attribute(names.DATA_CLASS, context_pb2.DataClass.Name(decision.data_class))
        if decision.data_class < context_pb2.DATA_CLASS_RESTRICTED:
            digest = decision.assembled.model_input.digest.hex()
            span.set_attribute(names.INPUT_DIGEST, digest)

    # ---- 5. plan ----------------------------------------------------------------------------

    def _plan(self, decision: Decision) -> Plan:
        """Decide who may be asked, and in which order. Policy first."""
        request = decision.request
        decision.facts = {
            "data_class": decision.data_class,
            "task": decision.task.name,
            "tenant": decision.caller.tenant,
            "caller": decision.caller.identity,
            "purpose": request.purpose,
            "residency": request.residency,
            "consents": tuple(sorted(request.consents)),
            "priority": _PRIORITIES[request.priority],
        }
        candidates = self._board.candidates(decision.task)
        decision.plan = make_plan(
            candidates,
            self._board.states(candidates, _size_class(decision)),
            decision.catalog.policy,
            decision.facts,
            only_path=_PATHS.get(request.only_path, ""),
            time_left=decision.deadline - self._clock.monotonic(),
            objective=decision.task.objective.plain(),
            random=self._random,
        )
        return decision.plan

    async def _refuse(self, decision: Decision, plan: Plan) -> ServiceError:
        """Record a refusal by policy, and return the error that says why nobody was asked."""
        error = _refusal(plan)
        span = trace.get_current_span()
        span.set_attribute(
            names.REFUSED_RULE, sorted({r.rule for e in plan.entries for r in e.refusals})
        )
        if plan.refused_by_policy:
            now = self._clock.unix_us()
            await self._audit.append(records.refused(decision, now, error, self._code_version))
        return error

    # ---- 6. dispatch, 7. filter -------------------------------------------------------------

    async def _dispatch(self, decision: Decision) -> Answer:
        """Try the plan. The output filter decides what counts as an answer."""
        left_us = int((decision.deadline - self._clock.monotonic()) * 1e6)
        now = self._clock.unix_us()
        entry = records.intent(decision, now, now + left_us + _INTENT_GRACE_US, self._code_version)
        durable = asyncio.ensure_future(self._audit.append(entry))

        async def intent_durable() -> None:
            await asyncio.shield(durable)

        try:
            answer = await self._dispatcher.run(
                Errand(
                    decision,
                    accept=lambda outputs: check_outputs(decision.task, outputs),
                    intent_durable=intent_durable,
                    clock=self._clock,
                    size_class=_size_class(decision),
                )
            )
            await durable  # for a local call its flush overlapped; it must still be on disk
        except BaseException:
            # Whatever ended this, the INTENT may be in the log: the reconciler closes it.
            durable.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        return answer

    async def _fail(self, decision: Decision, error: ServiceError, answer: Answer) -> ServiceError:
        """Record that nobody answered, and return the error."""
        now = self._clock.unix_us()
        entry = records.failed(decision, now, error, answer.attempts, self._code_version)
        await self._audit.append(entry)
        return error

    # ---- 8. record, 9. reply ----------------------------------------------------------------

    def _reply(self, decision: Decision, answer: Answer) -> router_pb2.InferResponse:
        """Return the reply that will be recorded and then given."""
        assert decision.assembled is not None
        assert decision.plan is not None
        assert answer.candidate is not None
        reply = router_pb2.InferResponse(
            decision_id=decision.id,
            trace_id=decision.trace_id,
            outputs=answer.outputs,
            answered_by=records.candidate_ref(answer.candidate),
            input_digest=decision.assembled.model_input.digest,
            attempts=answer.attempts,
            feature_handling=decision.assembled.handling,
            lineage=records.lineage_message(decision, self._code_version),
            fallback=answer.fallback,
            catalog_stale=decision.catalog_stale,
            finish_reason=answer.finish_reason,
            latency_us=int((self._clock.monotonic() - decision.started) * 1e6),
        )
        cost = records.total_cost(answer.attempts)
        if cost is not None:
            reply.cost.CopyFrom(cost)
        if decision.request.include_plan:
            reply.plan.CopyFrom(records.plan_message(decision.plan))
        span = trace.get_current_span()
        span.set_attribute(names.PATH, answer.candidate.path)
        span.set_attribute(names.CANDIDATE, answer.candidate.id)
        span.set_attribute(names.FALLBACK, answer.fallback)
        return reply

    async def _record(
        self, decision: Decision, reply: router_pb2.InferResponse
    ) -> router_pb2.InferResponse:
        """Make the OUTCOME durable; if another came first, that one is the answer."""
        entry = records.outcome(decision, self._clock.unix_us(), reply, self._code_version)
        with _tracer.start_as_current_span(names.SPAN_RECORD):
            result = await self._audit.append(entry)
        if result.HasField("existing"):
            return self._repeated(decision, result.existing)
        reply.leaf_index = result.leaf_index
        reply.latency_us = int((self._clock.monotonic() - decision.started) * 1e6)
        return reply


def _size_class(decision: Decision) -> int:
    assert decision.assembled is not None
    return size_class(decision.assembled.model_input.ByteSize())


def _refusal(plan: Plan) -> ServiceError:
    """Return the error for a plan without candidates: PERMISSION_DENIED if policy alone did it."""
    metadata = {e.candidate.id: ",".join(r.rule for r in e.refusals) for e in plan.entries}
    reasons = "; ".join(
        f"{e.candidate.id} ({e.candidate.path}): " + ", ".join(r.message for r in e.refusals)
        for e in plan.entries
    )
    if all(any(r.kind is Kind.POLICY for r in e.refusals) for e in plan.entries):
        return PermissionDeniedError("POLICY_REFUSED", f"policy: {reasons}", metadata=metadata)
    if any(r.kind is Kind.CONSTRAINT for e in plan.entries for r in e.refusals):
        return FailedPreconditionError(
            "NO_CANDIDATE_ON_PATH", f"no candidate is left: {reasons}", metadata=metadata
        )
    return UnavailableError(
        "NO_CANDIDATE", f"no candidate is left: {reasons}", metadata=metadata, retry_after=1.0
    )
