"""twinpath.audit.v1.Audit over gRPC: messages in, messages out, nothing decided here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from opentelemetry import trace

from services.audit import upkeep
from services.audit.house import House
from services.audit.ledger import Appended
from services.audit.reading import Reader
from services.chassis import call as calls
from services.chassis import telemetry
from services.chassis.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    PermissionDeniedError,
    ServiceError,
    to_status,
)
from twinpath import telemetry as names
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

# Those who may see payloads: the router answers a repeated request with one.
_MAY_SEE_PAYLOADS = frozenset({"service:router", "role:payload_reader", "role:privacy_officer"})
_ALREADY = to_status(
    AlreadyExistsError("OUTCOME_EXISTS", "another OUTCOME for this decision came first")
)


class AuditServicer(audit_pb2_grpc.AuditServicer):
    """Serves whatever log is open; UNAVAILABLE while none is."""

    def __init__(self, house: House) -> None:
        """Serve from a house."""
        self._house = house

    async def Append(
        self, request: audit_pb2.AppendRequest, context: Context
    ) -> audit_pb2.AppendResponse:
        """Make records durable."""
        _note_on_span(request)
        entries = request.entries
        reader = self._house.reader
        appended = await self._house.ledger.append(entries)
        return audit_pb2.AppendResponse(
            results=[
                _result(entry.context.id, result, reader)
                for entry, result in zip(entries, appended, strict=True)
            ]
        )

    async def Get(self, request: audit_pb2.GetRequest, context: Context) -> audit_pb2.GetResponse:
        """Give all records of one decision."""
        _check_payload(wanted=request.include_payload)
        return audit_pb2.GetResponse(
            records=await self._house.reader.decision(
                request.decision_id, with_payload=request.include_payload
            )
        )

    async def Query(
        self, request: audit_pb2.QueryRequest, context: Context
    ) -> audit_pb2.QueryResponse:
        """Give a page of records."""
        records, more = await self._house.reader.page(
            request.filter, _page_start(request.page_token), request.page_size
        )
        token = "" if more is None else str(more)
        return audit_pb2.QueryResponse(records=records, next_page_token=token)

    async def Prove(
        self, request: audit_pb2.ProveRequest, context: Context
    ) -> audit_pb2.ProveResponse:
        """Prove that records are in the log."""
        reader = self._house.reader
        target = request.WhichOneof("target")
        if target == "leaf_index":
            return await reader.prove_leaf(request.leaf_index, request.tree_size)
        if target == "decision_id" and request.decision_id:
            return await reader.prove_decision(request.decision_id, request.tree_size)
        raise InvalidArgumentError(
            "TARGET_MISSING",
            "say what to prove",
            violations=[("target", "decision_id or leaf_index is required")],
        )

    async def ProveConsistency(
        self, request: audit_pb2.ProveConsistencyRequest, context: Context
    ) -> audit_pb2.ProveConsistencyResponse:
        """Prove that the log only grew."""
        return self._house.reader.prove_consistency(request.first_size, request.second_size)

    async def Checkpoint(
        self, request: audit_pb2.CheckpointRequest, context: Context
    ) -> audit_pb2.CheckpointResponse:
        """Give the newest checkpoint, or make one."""
        point, note = await self._house.reader.checkpoint(now=request.now)
        return audit_pb2.CheckpointResponse(
            note=note,
            tree_size=point.size,
            root_hash=point.root,
            verifier_keys=[str(key) for key in self._house.ledger.storage.keyring.verifiers],
        )

    async def Export(
        self, request: audit_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[audit_pb2.ExportResponse]:
        """Stream records."""
        _check_payload(wanted=request.include_payload)
        reader = self._house.reader
        if request.include_payload:
            call = calls.current()
            await reader.note_export(request, call.identity.subject if call else "unknown")
        parts = reader.export(request.filter, with_payload=request.include_payload)
        async for records in parts:
            yield audit_pb2.ExportResponse(records=records)

    async def Erase(
        self, request: audit_pb2.EraseRequest, context: Context
    ) -> audit_pb2.EraseResponse:
        """Destroy a subject's keys."""
        call = calls.current()
        actor = call.identity.subject if call else "unknown"
        return await upkeep.erase(
            self._house.ledger, request.subject, actor, request.reason, self._house.catalog
        )

    async def Retain(
        self, request: audit_pb2.RetainRequest, context: Context
    ) -> audit_pb2.RetainResponse:
        """Remove payloads that are past their retention."""
        call = calls.current()
        actor = call.identity.subject if call else "unknown"
        return await self._house.expiry.run(actor, dry=request.dry_run)


def _result(item: str, appended: Appended, reader: Reader) -> audit_pb2.AppendResult:
    if appended.error is not None:
        return audit_pb2.AppendResult(id=item, status=to_status(appended.error))
    if not appended.existing:
        return audit_pb2.AppendResult(id=item, leaf_index=appended.leaf)
    try:
        existing = reader.stored(appended.leaf, with_payload=True)
    except ServiceError as error:
        return audit_pb2.AppendResult(id=item, status=to_status(error), leaf_index=appended.leaf)
    return audit_pb2.AppendResult(
        id=item, status=_ALREADY, leaf_index=appended.leaf, existing=existing
    )


def _note_on_span(request: audit_pb2.AppendRequest) -> None:
    """Say on the call's span what it carried; with traces of their own, link to those."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute(names.BATCH_SIZE, len(request.entries))
    if len(request.entries) == 1:
        span.set_attribute(names.DECISION_ID, request.entries[0].record.decision_id)
        span.set_attribute(names.TASK, request.entries[0].record.task)
    for entry in request.entries:
        if entry.context.trace.traceparent:
            there = trace.get_current_span(telemetry.extract(entry.context.trace))
            span.add_link(there.get_span_context())


def _check_payload(*, wanted: bool) -> None:
    call = calls.current()
    if wanted and call is not None and not call.identity.names & _MAY_SEE_PAYLOADS:
        raise PermissionDeniedError(
            "PAYLOAD_NOT_ALLOWED",
            f"{call.identity.subject} may not see payloads",
            metadata={"subject": call.identity.subject},
        )


def _page_start(token: str) -> int:
    if not token:
        return -1
    if token.isascii() and token.isdecimal() and len(token) < 19:
        return int(token)
    raise InvalidArgumentError(
        "PAGE_TOKEN_INVALID",
        "the page token is not one of ours",
        violations=[("page_token", "must come from the page before")],
    )
