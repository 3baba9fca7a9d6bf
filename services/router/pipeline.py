"""The way of one request: admit, claim, enrich, assemble, plan, dispatch, filter, record, reply.

Read `decide` and `_make`; the steps themselves stand in steps.py, in the same order.
"""

from __future__ import annotations

import asyncio
from functools import partial

from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.errors import AbortedError
from services.router import records
from services.router.admission import Admission
from services.router.attempt import Answer, Errand
from services.router.decision import Decision
from services.router.dispatch import Dispatcher
from services.router.outputs import accept
from services.router.ports import Claims
from services.router.steps import Steps, size_class_of
from twinpath.router.v1 import router_pb2

_CLAIM_POLL_S = 0.02


class Pipeline:
    """Makes decisions."""

    def __init__(
        self,
        *,
        steps: Steps,
        claims: Claims,
        dispatcher: Dispatcher,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._steps = steps
        self._claims = claims
        self._dispatcher = dispatcher
        self._admission = admission
        self._clock = clock

    async def decide(
        self, request: router_pb2.InferRequest, call: Call, item: str = ""
    ) -> router_pb2.InferResponse:
        """Make one decision. `item` is the id within a batch.

        Raises:
            ServiceError: as the router's proto says for each case.
        """
        with self._admission(request) as seen:
            seen.decision = decision = self._steps.admit(request, call, item)
            if request.idempotency_key:
                return await self._claim(decision)
            return await self._make(decision)

    async def explain(
        self, request: router_pb2.InferRequest, call: Call
    ) -> router_pb2.ExplainResponse:
        """Return the plan that `decide` would follow now. Nothing is called, nothing recorded."""
        decision = self._steps.admit(request, call, "")
        await self._steps.enrich(decision)
        self._steps.assemble(decision)
        plan = self._steps.plan(decision)
        assert decision.assembled is not None
        return router_pb2.ExplainResponse(
            plan=records.plan_message(plan),
            input_digest=decision.assembled.model_input.digest,
            feature_handling=decision.assembled.handling,
            lineage=self._steps.lineage(decision),
            filters_applied=decision.filters_applied,
        )

    async def _make(self, decision: Decision) -> router_pb2.InferResponse:
        """Enrich, assemble, plan, dispatch, filter, record, reply."""
        await self._steps.enrich(decision)
        self._steps.assemble(decision)
        plan = self._steps.plan(decision)
        if not plan.admitted:
            raise await self._steps.refuse(decision, plan)
        answer = await self._dispatch(decision)
        if answer.error is not None:
            raise await self._steps.fail(decision, answer.error, answer)
        return await self._steps.record(decision, self._steps.reply(decision, answer))

    async def _claim(self, decision: Decision) -> router_pb2.InferResponse:
        """Give the answer that the key already has, or make it; one copy at a time."""
        while True:
            before = await self._steps.find(decision)
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
            before = await self._steps.find(decision)
            return before if before is not None else await self._make(decision)
        finally:
            await self._claims.release(decision.id)

    async def _dispatch(self, decision: Decision) -> Answer:
        """Try the plan. The output filter decides what counts as an answer."""
        durable = asyncio.ensure_future(self._steps.intend(decision))

        async def intent_durable() -> None:
            await asyncio.shield(durable)

        answer = Answer()
        try:
            await self._dispatcher.run(
                Errand(
                    decision,
                    accept=partial(accept, decision),
                    intent_durable=intent_durable,
                    clock=self._clock,
                    size_class=size_class_of(decision),
                ),
                answer,
            )
            # For a local call its flush overlapped; it must still be on disk. Shielded: a caller
            # that leaves now must not take the INTENT of a call that was made with it.
            await intent_durable()
        except asyncio.CancelledError:  # the caller is gone
            self._steps.left(decision, answer, durable)
            raise
        except BaseException:
            # Whatever ended this, the INTENT may be in the log: the reconciler closes it.
            durable.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        return answer
