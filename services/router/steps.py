"""The steps of a decision's way, one method each, in their order.

pipeline.py puts them together for one answer, streams.py for an answer in chunks.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from services.chassis import telemetry
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import (
    CancelledError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    ServiceError,
    UnavailableError,
)
from services.chassis.telemetry import step_span
from services.router import metrics, records
from services.router.assemble import assemble, read_request, redactor_for
from services.router.attempt import Answer
from services.router.board import Board
from services.router.catalog import Catalog, Task
from services.router.decision import Decision, digest_of_request, keyed_id
from services.router.estimator import size_class
from services.router.missing import without_features
from services.router.outputs import give_back
from services.router.plan import Kind, Plan, make_plan
from services.router.ports import Audit, FeatureQuery, Features, FeatureVector
from services.router.pseudonyms import Pseudonyms
from services.router.releases import arm_of
from twinpath import telemetry as names
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.router.v1 import router_pb2

log = logging.getLogger(__name__)
_tracer = trace.get_tracer(__name__)
_PRIORITIES = {0: "normal", 1: "interactive", 2: "normal", 3: "batch"}
_PATHS = {context_pb2.PATH_LOCAL: "local", context_pb2.PATH_REMOTE: "remote"}
_INTENT_GRACE_US = 5_000_000  # how long after its deadline a decision may still be closing


@dataclass(frozen=True, slots=True)
class CatalogView:
    """The catalog in force, and whether it is only the last good one."""

    catalog: Catalog
    stale: bool

    def recorded(self, name: str) -> Task:
        """Return the task of a record. Raises FailedPreconditionError if it is gone (TASK_GONE)."""
        task = self.catalog.tasks.get(name)
        if task is None:
            raise FailedPreconditionError(
                "TASK_GONE",
                f"the catalog has no task {name!r} any more",
                metadata={"task": name},
            )
        return task


class Steps:
    """What a decision needs on its way. Every method raises ServiceError and nothing else."""

    def __init__(
        self,
        *,
        catalog: Callable[[], CatalogView],
        features: Features,
        audit: Audit,
        board: Board,
        clock: Clock,
        code_version: str,
        random: Callable[[], float],
        pseudonyms: Pseudonyms | None = None,
        split_key: bytes = bytes(32),
    ) -> None:
        self._split_key = split_key
        self._pseudonyms = pseudonyms
        self._catalog = catalog
        self._features = features
        self._audit = audit
        self._board = board
        self._clock = clock
        self._code_version = code_version
        self._random = random
        self._closing: set[asyncio.Task[None]] = set()

    # ---- 1. admit --------------------------------------------------------------------------------

    def admit(self, request: router_pb2.InferRequest, call: Call, item: str) -> Decision:
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
            request_digest=digest_of_request(request) if key else b"",
        )
        span = trace.get_current_span()
        span.set_attribute(names.DECISION_ID, decision.id)
        span.set_attribute(names.TASK, task.name)
        return decision

    # ---- 2. claim: what the log already knows ----------------------------------------------------

    async def find(self, decision: Decision) -> router_pb2.InferResponse | None:
        """Return the reply of this decision id's OUTCOME, if there is one."""
        for stored in await self._audit.get(decision.id, payload=True):
            if stored.record.kind == record_pb2.RECORD_KIND_OUTCOME:
                return self.repeated(decision, stored)
        return None

    def repeated(
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
        decision.repeated = reply.repeated = True
        reply.leaf_index = stored.leaf_index
        if not decision.request.include_plan:
            reply.ClearField("plan")
        return reply

    # ---- 3. enrich -------------------------------------------------------------------------------

    async def enrich(self, decision: Decision) -> None:
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
            with step_span(_tracer, names.SPAN_ENRICH):
                try:
                    vector = await self._features.get(query)
                except ServiceError as error:
                    vector = without_features(task, error)
            metrics.enriched(vector.views, self._clock.unix_us())
        decision.vector = vector
        decision.data_class = max(
            task.data_class_value,
            decision.request.data_class,
            vector.data_class if vector is not None else 0,
        )

    # ---- 4. assemble -----------------------------------------------------------------------------

    def assemble(self, decision: Decision) -> None:
        """Make the one model input, before any path is known."""
        vector = decision.vector
        decision.assembled = assemble(
            decision.task,
            vector.values if vector else {},
            vector.statuses if vector else {},
            decision.fields,
            redactor_for(decision.task, decision.caller.tenant, decision.entity, self._pseudonyms),
        )
        span = trace.get_current_span()
        span.set_attribute(names.DATA_CLASS, context_pb2.DataClass.Name(decision.data_class))
        if decision.data_class < context_pb2.DATA_CLASS_RESTRICTED:
            digest = decision.assembled.model_input.digest.hex()
            span.set_attribute(names.INPUT_DIGEST, digest)

    # ---- 5. plan ---------------------------------------------------------------------------------

    def plan(self, decision: Decision) -> Plan:
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
            self._board.states(candidates, size_class_of(decision)),
            decision.catalog.policy,
            decision.facts,
            only_path=_PATHS.get(request.only_path, ""),
            time_left=decision.deadline - self._clock.monotonic(),
            objective=self._board.objective(decision.task),
            arm=arm_of(
                decision.task, self._split_key, entity_of(decision.request), decision.recorded_arm
            ),
            random=self._random,
        )
        return decision.plan

    async def refuse(self, decision: Decision, plan: Plan) -> ServiceError:
        """Record a refusal by policy, and return the error that says why nobody was asked."""
        error = refusal(plan)
        span = trace.get_current_span()
        span.set_attribute(
            names.REFUSED_RULE, sorted({r.rule for e in plan.entries for r in e.refusals})
        )
        if plan.refused_by_policy:
            now = self._clock.unix_us()
            await self._audit.append(records.refused(decision, now, error, self._code_version))
        return error

    def lineage(self, decision: Decision) -> decision_pb2.Lineage:
        """Return where a decision comes from."""
        return records.lineage_message(decision, self._code_version)

    # ---- 8. record, 9. reply ----------------------------------------------------------------

    async def intend(self, decision: Decision, payload: audit_pb2.Payload | None = None) -> None:
        """Make the INTENT durable: after this, and not before, a byte may leave for a vendor.

        `payload` is what must be remembered where the answer comes much later.
        """
        left_us = int((decision.deadline - self._clock.monotonic()) * 1e6)
        now = self._clock.unix_us()
        until = now + left_us + _INTENT_GRACE_US
        entry = records.intent(decision, now, until, self._code_version)
        if payload is not None:
            entry.payload.CopyFrom(payload)
        await self._audit.append(entry)

    async def fail(self, decision: Decision, error: ServiceError, answer: Answer) -> ServiceError:
        """Record that nobody answered, and return the error."""
        now = self._clock.unix_us()
        entry = records.failed(decision, now, error, answer.attempts, self._code_version)
        await self._audit.append(entry)
        return error

    def left(
        self, decision: Decision, answer: Answer, intent: Awaitable[None] | None = None
    ) -> None:
        """Record what was taken for a caller that is gone, once its INTENT is durable.

        A model worked for it, and may have to be paid. Nobody waits for this.
        """
        # An empty context: the caller's deadline and trace are over.
        task = asyncio.get_running_loop().create_task(
            self._record_left(decision, answer, intent), context=contextvars.Context()
        )
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _record_left(
        self, decision: Decision, answer: Answer, intent: Awaitable[None] | None
    ) -> None:
        gone = CancelledError("CALLER_GONE", "the caller left before the answer's end")
        try:
            if intent is not None:
                await intent
            await self.fail(decision, gone, answer)
        except ServiceError as error:  # the reconciler closes an INTENT that is in the log
            log.warning(
                "a decision that its caller left has no end", extra={"reason": error.reason}
            )

    def reply(self, decision: Decision, answer: Answer) -> router_pb2.InferResponse:
        """Return the reply that will be recorded and then given."""
        assert decision.assembled is not None
        assert decision.plan is not None
        assert answer.candidate is not None
        decision.answered_by, decision.fallback = answer.candidate, answer.fallback
        decision.cached = answer.cached
        reply = router_pb2.InferResponse(
            decision_id=decision.id,
            trace_id=decision.trace_id,
            outputs=give_back(decision, answer.outputs),
            answered_by=records.candidate_ref(answer.candidate),
            input_digest=decision.assembled.model_input.digest,
            attempts=answer.attempts,
            feature_handling=decision.assembled.handling,
            lineage=records.lineage_message(decision, self._code_version),
            fallback=answer.fallback,
            cached=answer.cached,
            catalog_stale=decision.catalog_stale,
            finish_reason=answer.finish_reason,
            filters_applied=decision.filters_applied,
            latency_us=int((self._clock.monotonic() - decision.started) * 1e6),
        )
        cost = records.total_cost(answer.attempts)
        if cost is not None:
            reply.cost.CopyFrom(cost)
        if decision.request.include_plan:
            reply.plan.CopyFrom(records.plan_of(decision))
        span = trace.get_current_span()
        span.set_attribute(names.PATH, answer.candidate.path)
        span.set_attribute(names.CANDIDATE, answer.candidate.id)
        span.set_attribute(names.FALLBACK, answer.fallback)
        return reply

    async def record(
        self, decision: Decision, reply: router_pb2.InferResponse
    ) -> router_pb2.InferResponse:
        """Make the OUTCOME durable; if another came first, that one is the answer."""
        entry = records.outcome(decision, self._clock.unix_us(), reply, self._code_version)
        with step_span(_tracer, names.SPAN_RECORD):
            result = await self._audit.append(entry)
        if result.HasField("existing"):
            return self.repeated(decision, result.existing)
        reply.leaf_index = result.leaf_index
        reply.latency_us = int((self._clock.monotonic() - decision.started) * 1e6)
        return reply


def entity_of(request: router_pb2.InferRequest) -> dict[str, Any]:
    """Return the join keys as plain values; a replay has them from the record."""
    return {n: getattr(v, v.WhichOneof("kind") or "", "") for n, v in request.entity.items()}


def size_class_of(decision: Decision) -> int:
    """Return the size class of a decision's model input, for latency estimates."""
    assert decision.assembled is not None
    return size_class(decision.assembled.model_input.ByteSize())


def refusal(plan: Plan) -> ServiceError:
    """Return the error for a plan without candidates: PERMISSION_DENIED if policy alone did it."""
    metadata = {e.candidate.id: ",".join(r.rule for r in e.refusals) for e in plan.entries}
    reasons = "; ".join(
        f"{e.candidate.id} ({e.candidate.path}): " + ", ".join(r.message for r in e.refusals)
        for e in plan.entries
    )
    # Whom the split leaves out can't answer this entity, as if it were no candidate.
    meant = [e for e in plan.entries if all(r.rule != "not_in_arm" for r in e.refusals)]
    if meant and all(any(r.kind is Kind.POLICY for r in e.refusals) for e in meant):
        return PermissionDeniedError("POLICY_REFUSED", f"policy: {reasons}", metadata=metadata)
    if any(r.kind is Kind.CONSTRAINT for e in plan.entries for r in e.refusals):
        return FailedPreconditionError(
            "NO_CANDIDATE_ON_PATH", f"no candidate is left: {reasons}", metadata=metadata
        )
    return UnavailableError(
        "NO_CANDIDATE", f"no candidate is left: {reasons}", metadata=metadata, retry_after=1.0
    )
