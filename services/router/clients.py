"""The router's ports over gRPC: the other services of the mesh, and state Redis."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import redis.asyncio
import redis.exceptions

from services.chassis.errors import (
    InternalError,
    ServiceError,
    UnavailableError,
    from_rpc_error,
    from_status,
)
from services.router.ports import FeatureQuery, FeatureVector
from twinpath.audit.v1 import audit_pb2, audit_pb2_grpc
from twinpath.common.v1 import value_pb2
from twinpath.features.v1 import features_pb2, features_pb2_grpc
from twinpath.inference.v1 import inference_pb2, inference_pb2_grpc

_DESCRIBE_TIMEOUT_S = 2.0


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


def _one(results: Any, service: str) -> Any:
    """Return the only result of a call with one item."""
    if len(results) != 1:
        message = f"the {service} service gave {len(results)} results for one item"
        raise InternalError("WRONG_RESULT_COUNT", message)
    return results[0]


class FeaturesClient:
    """Reads feature vectors from the features service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = features_pb2_grpc.FeaturesStub(channel)

    async def get(self, query: FeatureQuery) -> FeatureVector:
        """See ports.Features."""
        request = features_pb2.GetFeaturesRequest(
            feature_service=query.feature_service,
            rows=[query.context],
            join_keys=[column(name, value) for name, value in query.entity.items()],
            request_fields=[column(name, value) for name, value in query.fields.items()],
        )
        with _calls("features"):
            response = await self._stub.GetFeatures(request)
        row = _one(response.rows, "features")
        error = from_status(row.status) if row.HasField("status") else None
        if error is not None:
            raise error
        return vector_of_row(response, 0)


def column(name: str, value: Any) -> value_pb2.Column:
    """Return a column of one value; None is a null."""
    out = value_pb2.Column(name=name)
    if value is None:
        out.mixed.values.add()
    elif isinstance(value, bool):
        out.bools.values.append(value)
    elif isinstance(value, int):
        out.int64s.values.append(value)
    elif isinstance(value, float):
        out.doubles.values.append(value)
    else:
        out.strings.values.append(value)
    return out


def _value(values: value_pb2.Column, row: int) -> Any:
    which = values.WhichOneof("values")
    if which is None:
        return None
    array = getattr(values, which).values
    if which != "mixed":
        return array[row]
    kind = array[row].WhichOneof("kind")
    return None if kind is None else getattr(array[row], kind)


def vector_of_row(response: features_pb2.GetFeaturesResponse, row: int) -> FeatureVector:
    """Return one row of a columnar response."""
    values: dict[str, Any] = {}
    statuses: dict[str, int] = {}
    times: dict[str, int] = {}
    for found in response.columns:
        name = f"{found.view}__{found.feature}"
        values[name] = _value(found.values, row)
        statuses[name] = found.statuses[row]
        time = found.event_times_unix_us[row] if found.event_times_unix_us else 0
        times[found.view] = max(times.get(found.view, 0), time)
    lineage = response.lineage
    return FeatureVector(
        values=values,
        statuses=statuses,
        data_class=response.data_class,
        feature_service=lineage.feature_service,
        registry_version=lineage.registry_version,
        views=tuple((v.view, v.version_hash, times.get(v.view, 0)) for v in lineage.views),
    )


class InferenceClient:
    """Asks models through any service that implements inference.v1."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        self._stub = inference_pb2_grpc.InferenceStub(channel)
        self._service = service

    async def infer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """See ports.Inference."""
        try:
            with _calls(self._service):
                response = await self._stub.Infer(inference_pb2.InferRequest(items=[item]))
        except ServiceError as error:
            if error.reason.endswith("_UNREACHABLE"):
                raise UnavailableError("PATH_UNREACHABLE", error.message) from None
            raise
        result: inference_pb2.InferResult = _one(response.results, self._service)
        return result

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """See ports.Inference."""
        with _calls(self._service):
            response = await self._stub.Describe(
                inference_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S
            )
        return list(response.models)


class AuditClient:
    """Appends to the audit log and reads back."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = audit_pb2_grpc.AuditStub(channel)

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """See ports.Audit."""
        with _calls("audit"):
            response = await self._stub.Append(audit_pb2.AppendRequest(entries=[entry]))
        result: audit_pb2.AppendResult = _one(response.results, "audit")
        error = from_status(result.status) if result.HasField("status") else None
        if error is not None and not result.HasField("existing"):
            raise error
        return result

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
