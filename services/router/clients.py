"""The router's ports over gRPC: the other services of the mesh, and state Redis."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import redis.asyncio
import redis.exceptions
from google.protobuf.message import Message

from services.chassis.clock import Clock
from services.chassis.coalesce import Coalescer
from services.chassis.errors import (
    InternalError,
    ServiceError,
    UnavailableError,
    from_rpc_error,
    from_status,
)
from services.router import metrics
from services.router.ports import FeatureQuery, FeatureVector
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc
from twinpath.common.v1 import value_pb2
from twinpath.features.v1 import features_pb2, features_pb2_grpc
from twinpath.inference.v1 import bulk_pb2, bulk_pb2_grpc, inference_pb2, inference_pb2_grpc

_DESCRIBE_TIMEOUT_S = 2.0
# A record is worth more than its request's deadline: a decision that was made is recorded even if
# its caller's time is nearly up; the caller's own call ends by its own deadline.
APPEND_TIMEOUT_S = 5.0
# A batch's file or its answers may be large, and nobody waits by the millisecond.
BULK_TIMEOUT_S = 60.0

# A model or a store may be slow: who comes after this long into a call does not wait for its end.
_OVERDUE_S = 0.05

# What a batch's message is allowed to be, and what of it is for other things than its items.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_FRAME_BYTES = 4096
_ITEM_BYTES = 8  # an item's tag and length

# How long a read waits for a lost connection to come back.
_RECONNECT_S = 0.25


@contextmanager
def _calls(service: str) -> Iterator[None]:
    """Turn a failed call into the error it carries.

    A service that can't be reached has no ErrorInfo; then the error says which service.
    """
    try:
        yield
    except grpc.RpcError as error:
        found = from_rpc_error(error)
        if found.code is grpc.StatusCode.UNAVAILABLE and found.reason == "UNAVAILABLE":
            found = UnavailableError(
                f"{service.upper()}_UNREACHABLE",
                f"the {service} service can't be reached",
                metadata={"service": service},
                retry_after=1.0,
            )
        raise found from None


class FeaturesClient:
    """Reads feature vectors; rows of one feature service ride together."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._stub = features_pb2_grpc.FeaturesStub(channel)
        self._clock = clock
        self._hop: Coalescer[FeatureQuery, FeatureVector] = Coalescer(
            self._read,
            clock,
            max_batch=128,
            parallel=1,
            overdue_s=_OVERDUE_S,
            name="hop features",
            observe=metrics.batched("features"),
            share_traces=True,
        )

    async def get(self, query: FeatureQuery) -> FeatureVector:
        """See ports.Features."""
        left = query.context.time_left_us / 1e6
        # Rows ride together when their columns have the same names and types.
        shape = (*_shape(query.entity), "|", *_shape(query.fields))
        lane = (query.feature_service, query.context.priority, shape)
        return await self._hop.submit(query, lane, self._clock.monotonic() + left)

    async def _read(
        self, queries: Sequence[FeatureQuery], left: float
    ) -> list[FeatureVector | ServiceError]:
        first = queries[0]
        request = features_pb2.GetFeaturesRequest(
            feature_service=first.feature_service,
            rows=[query.context for query in queries],
            join_keys=[column(n, [q.entity[n] for q in queries]) for n in first.entity],
            request_fields=[column(n, [q.fields[n] for q in queries]) for n in first.fields],
        )
        response = await self._call(request, left)
        if len(response.rows) != len(queries):
            raise InternalError("WRONG_RESULT_COUNT", "features gave another number of rows")
        out: list[FeatureVector | ServiceError] = []
        vectors = _Vectors(response)
        for index, row in enumerate(response.rows):
            error = from_status(row.status) if row.HasField("status") else None
            out.append(error if error is not None else vectors.row(index))
        return out

    async def _call(
        self, request: features_pb2.GetFeaturesRequest, left: float
    ) -> features_pb2.GetFeaturesResponse:
        """Read; once more if the connection was lost, because a read changes nothing."""
        try:
            with _calls("features"):
                found: features_pb2.GetFeaturesResponse = await self._stub.GetFeatures(
                    request, timeout=left
                )
                return found
        except ServiceError as error:
            if error.reason != "FEATURES_UNREACHABLE":
                raise
            lost = error
        wait = min(left, _RECONNECT_S)
        try:
            with _calls("features"):
                again: features_pb2.GetFeaturesResponse = await self._stub.GetFeatures(
                    request, timeout=wait, wait_for_ready=True
                )
                return again
        except ServiceError as error:
            late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            raise (lost if late else error) from None


def _bytes_of(item: Message) -> int:
    """Return what an item adds to its batch's message."""
    return item.ByteSize() + _ITEM_BYTES


def _shape(values: dict[str, Any]) -> tuple[str, ...]:
    """Return the names and types of some values, as far as columns tell them apart."""
    return tuple(f"{name}:{type(value).__name__}" for name, value in values.items())


def column(name: str, values: Sequence[Any]) -> value_pb2.Column:
    """Return a column of values of one type; None is a null."""
    out = value_pb2.Column(name=name)
    first = values[0]
    if first is None:
        for _ in values:
            out.mixed.values.add()
    elif isinstance(first, bool):
        out.bools.values.extend(values)
    elif isinstance(first, int):
        out.int64s.values.extend(values)
    elif isinstance(first, float):
        out.doubles.values.extend(values)
    else:
        out.strings.values.extend(values)
    return out


def _values(column: value_pb2.Column) -> Sequence[Any]:
    """Return a column's values, one for each row; None for nulls."""
    which = column.WhichOneof("values")
    if which is None:
        return ()
    array: Sequence[Any] = getattr(column, which).values
    if which != "mixed":
        return array
    kinds = ((value, value.WhichOneof("kind")) for value in array)
    return [None if kind is None else getattr(value, kind) for value, kind in kinds]


class _Vectors:
    """The rows of a columnar response. What they share is looked up once."""

    def __init__(self, response: features_pb2.GetFeaturesResponse) -> None:
        columns = response.columns
        self._names = [f"{column.view}__{column.feature}" for column in columns]
        self._values = [_values(column.values) for column in columns]
        self._statuses = [column.statuses for column in columns]
        times = [(column.view, column.event_times_unix_us) for column in columns]
        self._times = [(view, times) for view, times in times if times]
        self._lineage = response.lineage
        self._views = [(view.view, view.version_hash) for view in response.lineage.views]
        self._data_class = response.data_class

    def row(self, row: int) -> FeatureVector:
        """Return one row."""
        latest: dict[str, int] = {}
        for view, times in self._times:
            latest[view] = max(latest.get(view, 0), times[row])
        return FeatureVector(
            values={
                name: values[row] if values else None
                for name, values in zip(self._names, self._values, strict=True)
            },
            statuses={
                name: statuses[row]
                for name, statuses in zip(self._names, self._statuses, strict=True)
            },
            data_class=self._data_class,
            feature_service=self._lineage.feature_service,
            registry_version=self._lineage.registry_version,
            views=tuple((view, hash_, latest.get(view, 0)) for view, hash_ in self._views),
        )


class InferenceClient:
    """Asks models through any service that implements inference.v1.

    With `coalesce`, items of one model, version and priority ride together. Never for a path
    that leaves the building: there each item is a call, a grant and a record of its own.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        service: str,
        clock: Clock,
        *,
        coalesce: bool,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._service = service
        self._clock = clock
        self._coalesce = coalesce
        self._hop: Coalescer[inference_pb2.InferItem, inference_pb2.InferResult] = Coalescer(
            self._ask,
            clock,
            max_batch=64,
            max_weight=max_message_bytes - _FRAME_BYTES,
            weigh=_bytes_of,
            parallel=1,
            overdue_s=_OVERDUE_S,
            name=f"hop {service}",
            observe=metrics.batched(service),
        )

    async def infer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """See ports.Inference."""
        left = item.context.time_left_us / 1e6
        if not self._coalesce:
            return (await self._ask([item], left))[0]
        lane = (item.model, item.version, item.context.priority)
        return await self._hop.submit(item, lane, self._clock.monotonic() + left)

    async def _ask(
        self, items: Sequence[inference_pb2.InferItem], left: float
    ) -> list[inference_pb2.InferResult]:
        try:
            with _calls(self._service):
                request = inference_pb2.InferRequest(items=items)
                response = await self._stub.Infer(request, timeout=left)
        except ServiceError as error:
            raise self._of_path(error) from None
        results = list(response.results)
        if [r.id for r in results] != [i.context.id for i in items]:
            raise InternalError("WRONG_RESULTS", f"{self._service} answered other items")
        return results

    async def infer_stream(
        self, item: inference_pb2.InferItem
    ) -> AsyncGenerator[inference_pb2.InferStreamResponse]:
        """See ports.Inference."""
        call = self._stub.InferStream(
            inference_pb2.InferStreamRequest(item=item), timeout=item.context.time_left_us / 1e6
        )
        try:
            with _calls(self._service):
                async for message in call:
                    yield message
        except ServiceError as error:
            raise self._of_path(error) from None
        finally:
            call.cancel()

    def _of_path(self, error: ServiceError) -> ServiceError:
        """Say that the path as a whole is away, where its service can't be reached."""
        if error.reason.endswith("_UNREACHABLE"):
            return UnavailableError("PATH_UNREACHABLE", error.message)
        return error

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """See ports.Inference."""
        with _calls(self._service):
            response = await self._stub.Describe(
                inference_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S
            )
        return list(response.models)


class BulkClient:
    """Asks for batches through the service that implements inference.v1's Bulk."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        self._stub = bulk_pb2_grpc.BulkStub(channel)
        self._service = service

    async def submit(
        self, job_id: str, items: Sequence[inference_pb2.InferItem]
    ) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        request = bulk_pb2.SubmitBulkRequest(job_id=job_id, items=items)
        with _calls(self._service):
            response = await self._stub.SubmitBulk(request, timeout=BULK_TIMEOUT_S)
        job: bulk_pb2.BulkJob = response.job
        return job

    async def get(self, job_id: str) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        request = bulk_pb2.GetBulkRequest(job_id=job_id)
        with _calls(self._service):
            response = await self._stub.GetBulk(request, timeout=BULK_TIMEOUT_S)
        job: bulk_pb2.BulkJob = response.job
        return job

    async def cancel(self, job_id: str) -> bulk_pb2.BulkJob:
        """See ports.Bulk."""
        request = bulk_pb2.CancelBulkRequest(job_id=job_id)
        with _calls(self._service):
            response = await self._stub.CancelBulk(request, timeout=BULK_TIMEOUT_S)
        job: bulk_pb2.BulkJob = response.job
        return job

    async def forget(self, job_id: str) -> None:
        """See ports.Bulk."""
        request = bulk_pb2.ForgetBulkRequest(job_id=job_id)
        with _calls(self._service):
            await self._stub.ForgetBulk(request, timeout=BULK_TIMEOUT_S)


class AuditClient:
    """Appends to the log and reads back. Entries ride together: one flush makes all durable."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        clock: Clock,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._stub = audit_pb2_grpc.AuditStub(channel)
        self._clock = clock
        self._hop: Coalescer[audit_pb2.Entry, audit_pb2.AppendResult] = Coalescer(
            self._append,
            clock,
            max_batch=256,
            max_weight=max_message_bytes - _FRAME_BYTES,
            weigh=_bytes_of,
            parallel=1,
            name="hop audit",
            observe=metrics.batched("audit"),
            share_traces=True,
        )

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """See ports.Audit."""
        with metrics.appending(entry.record.kind):
            deadline = self._clock.monotonic() + APPEND_TIMEOUT_S
            return await self._hop.submit(entry, "", deadline)

    async def _append(
        self, entries: Sequence[audit_pb2.Entry], left: float
    ) -> list[audit_pb2.AppendResult | ServiceError]:
        with _calls("audit"):
            request = audit_pb2.AppendRequest(entries=entries)
            response = await self._stub.Append(request, timeout=left)
        if len(response.results) != len(entries):
            raise InternalError("WRONG_RESULT_COUNT", "audit gave another number of results")
        out: list[audit_pb2.AppendResult | ServiceError] = []
        for result in response.results:
            error = from_status(result.status) if result.HasField("status") else None
            kept = error is None or result.HasField("existing")
            out.append(result if kept or error is None else error)
        return out

    async def get(self, decision_id: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
        """See ports.Audit."""
        request = audit_pb2.GetRequest(decision_id=decision_id, include_payload=payload)
        try:
            with _calls("audit"):
                response = await self._stub.Get(request)
        except ServiceError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return []
            raise
        return list(response.records)


_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


class RedisClaims:
    """Claims in state Redis: SET NX with an expiry, released only by the one who took it."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._tokens: dict[str, str] = {}
        self._release = client.register_script(_RELEASE)

    async def take(self, decision_id: str, ttl_s: float) -> bool:
        """See ports.Claims. Without Redis, calls with a key are refused."""
        token = secrets.token_hex(8)
        try:
            taken = await self._redis.set(
                f"twinpath:claim:{decision_id}", token, nx=True, px=max(1, int(ttl_s * 1000))
            )
        except (redis.exceptions.RedisError, OSError):
            raise UnavailableError(
                "STATE_STORE_UNAVAILABLE",
                "the state store is away; calls with an idempotency key have to wait",
                retry_after=1.0,
            ) from None
        if taken:
            self._tokens[decision_id] = token
        return bool(taken)

    async def release(self, decision_id: str) -> None:
        """See ports.Claims. A claim that can't be released expires with its call's deadline."""
        token = self._tokens.pop(decision_id, None)
        if token is None:
            return
        try:
            await self._release(keys=[f"twinpath:claim:{decision_id}"], args=[token])
        except (redis.exceptions.RedisError, OSError):
            return
