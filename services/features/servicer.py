"""features.v1 over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace

from services.chassis import call as calls
from services.chassis import errors, telemetry
from services.chassis.clock import Clock
from services.features import wire
from services.features.coalescer import Coalescer, Read, Row
from services.features.definitions import Output
from services.features.inputs import Inputs, Violation, read_columns
from services.features.lineage_events import LineageEvents
from services.features.online import OnlineStore
from services.features.prepared import Live, Prepared, wire_class
from services.features.push import Pusher
from services.features.sampling import Sampler
from services.features.validation import Check, judge
from services.features.vectors import Codec, Vectors
from twinpath.features.v1 import features_pb2, features_pb2_grpc

_tracer = trace.get_tracer(__name__)
_LATE = "FEATURES_TIMEOUT"


class FeaturesServicer(features_pb2_grpc.FeaturesServicer):
    """Serves feature vectors from the online store.

    Args:
        live: The registry in force.
        store: The online store.
        coalescer: Shared round trips, for small requests that belong to no sampled trace.
        codec: Feast's conversions.
        clock: For freshness and time left.
        pusher: Writes rows.
        share_up_to: Requests with more keys than this get a round trip of their own.
        sampler: Keeps some of the answers; None: none are kept.
        lineage: Counts what is served; None: nothing does.
    """

    def __init__(
        self,
        live: Live,
        store: OnlineStore,
        coalescer: Coalescer,
        codec: Codec,
        clock: Clock,
        pusher: Pusher,
        *,
        share_up_to: int,
        sampler: Sampler | None = None,
        lineage: LineageEvents | None = None,
    ) -> None:
        self._live = live
        self._store = store
        self._coalescer = coalescer
        self._codec = codec
        self._clock = clock
        self._pusher = pusher
        self._share_up_to = share_up_to
        self._sampler = sampler
        self._lineage = lineage

    async def GetFeatures(self, request: Any, context: object) -> features_pb2.GetFeaturesResponse:
        """Read the features of N rows."""
        del context
        start = self._clock.monotonic()
        in_force = self._live.get()
        prepared = in_force.service(request.feature_service)
        inputs = check_inputs(prepared, request)
        with self._span(request):
            answer = await self._answer(prepared, request, inputs, start)
        if self._sampler is not None:
            self._sampler.offer(prepared, inputs.keys, answer, self._clock.unix_us())
        if self._lineage is not None:
            self._lineage.served(prepared, len(answer.rows))
        return answer

    async def _answer(
        self, prepared: Prepared, request: Any, inputs: Inputs, start: float
    ) -> features_pb2.GetFeaturesResponse:
        ids = [row.id for row in request.rows]
        left_us = [row.time_left_us for row in request.rows]
        total = len(ids)
        faults: dict[int, errors.ServiceError] = {
            row: errors.InvalidArgumentError(
                "ENTITY_KEY_INVALID", "the row's columns can't be used", violations=violations
            )
            for row, violations in inputs.faults.items()
        }
        # Rows that can be answered, when not all can.
        places = [row for row in range(total) if row not in faults] if faults else None
        if places is not None:
            inputs = _only(inputs, places)
        count = total if places is None else len(places)
        vectors = Vectors(prepared, self._codec, 0, count)
        rows: Sequence[Sequence[Row]] = [[] for _ in prepared.groups]
        if count:
            reads = [Read(g.fields, g.encode(inputs.keys, count)) for g in prepared.groups]
            rows = await self._read(reads, _time_left(left_us, start, self._clock))
        vectors.now_us = self._clock.unix_us()
        vectors.read(rows)
        if prepared.service.on_demand:
            work = vectors.compute(inputs)
            if all(view.native for view in prepared.service.on_demand):
                work()
            else:
                await asyncio.to_thread(work)
        columns = vectors.write(places, total)
        response = features_pb2.GetFeaturesResponse.FromString(columns + prepared.ending)
        for number, fault in vectors.faults.items():
            faults[number if places is None else places[number]] = fault
        broken = judge(prepared.checks, response.columns, vectors.within)
        for number, checks in broken.items():
            if number not in faults and any(check.rule.refuse for check in checks):
                faults[number] = _refused(checks)
        elapsed_us = (self._clock.monotonic() - start) * 1e6
        for number, left in enumerate(left_us):
            if 0 < left < elapsed_us:
                faults[number] = errors.DeadlineExceededError(_LATE, "the row's time is up")
        if not faults and not broken:
            response.MergeFromString(b"".join(map(wire.row, ids)))
            return response
        for number, identity in enumerate(ids):
            result = response.rows.add(id=identity)
            if number in broken:
                result.broken_rules.extend(check.name for check in broken[number])
            if number in faults:
                result.status.CopyFrom(errors.to_status(faults[number]))
        return response

    async def _read(self, reads: Sequence[Read], time_left: float) -> list[list[Row]]:
        try:
            async with asyncio.timeout(time_left):
                if self._alone(reads):
                    return await self._store.fetch(reads)
                return await self._coalescer.read(reads)
        except TimeoutError:
            raise errors.DeadlineExceededError(
                _LATE, "the online feature store did not answer in the caller's time"
            ) from None

    def _alone(self, reads: Sequence[Read]) -> bool:
        """Tell whether these reads get a round trip of their own.

        Large ones would hold up the others; those of a sampled trace must show as its own.
        """
        if trace.get_current_span().get_span_context().trace_flags.sampled:
            return True
        return sum(len(read.keys) for read in reads) > self._share_up_to

    @staticmethod
    def _span(request: Any) -> AbstractContextManager[Any]:
        """Return a span that joins the rows' own traces; none where nothing is traced.

        A single row with a trace of its own is that trace's; of several, the call's span links
        to each.
        """
        if not telemetry.tracing():
            return nullcontext()
        traced = [row.trace for row in request.rows if row.trace.traceparent]
        if not traced:
            return nullcontext()
        if len(request.rows) == 1:
            here = trace.get_current_span().get_span_context()
            theirs = telemetry.extract(traced[0])
            if trace.get_current_span(theirs).get_span_context().trace_id == here.trace_id:
                return nullcontext()
            return _tracer.start_as_current_span("features.get", context=theirs)
        links = [
            trace.Link(trace.get_current_span(telemetry.extract(item)).get_span_context())
            for item in traced[:128]
        ]
        return _tracer.start_as_current_span("features.get", links=links)

    async def Push(self, request: Any, context: object) -> features_pb2.PushResponse:
        """Write rows of a push source."""
        del context
        in_force = self._live.get()
        source = in_force.push_source(request.push_source)
        call = calls.current()
        try:
            async with asyncio.timeout(call.time_left() if call else None):
                written, older = await self._pusher.push(
                    source, in_force.registry.project, request.columns
                )
        except TimeoutError:
            raise errors.DeadlineExceededError(
                _LATE, "the online feature store did not answer in the caller's time"
            ) from None
        return features_pb2.PushResponse(written=written, older=older)

    async def Describe(self, request: Any, context: object) -> features_pb2.DescribeResponse:
        """Describe one feature service, or all."""
        del context
        in_force = self._live.get()
        names = [request.feature_service] if request.feature_service else sorted(in_force.services)
        response = features_pb2.DescribeResponse(registry_version=in_force.registry.version)
        response.feature_services.extend(_describe(in_force.service(name)) for name in names)
        return response


def check_inputs(prepared: Prepared, request: Any) -> Inputs:
    """Return a request's join keys and request fields.

    Raises:
        InvalidArgumentError: naming every missing, unknown or wrong one.
    """
    inputs = Inputs()
    rows = len(request.rows)
    inputs.keys, wrong = read_columns(
        prepared.keys, request.join_keys, rows, "join_keys", nullable=False, faults=inputs.faults
    )
    inputs.requests, more = read_columns(
        prepared.requests,
        request.request_fields,
        rows,
        "request_fields",
        nullable=True,
        faults=inputs.faults,
    )
    violations: list[Violation] = [*wrong, *more]
    if violations:
        raise errors.InvalidArgumentError(
            "FEATURE_REQUEST_INVALID",
            f"the columns do not fit feature service {prepared.service.name!r}",
            metadata={"feature_service": prepared.service.name},
            violations=violations,
        )
    return inputs


def _refused(checks: Sequence[Check]) -> errors.ServiceError:
    refusing = [check for check in checks if check.rule.refuse]
    names = dict.fromkeys(f"{check.view}__{check.rule.feature}" for check in refusing)
    return errors.FailedPreconditionError(
        "FEATURE_RULE_BROKEN",
        f"rules are broken: {', '.join(check.name for check in refusing)}",
        metadata={"features": ",".join(names)},
    )


def _only(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    return Inputs(
        {name: [column[row] for row in rows] for name, column in inputs.keys.items()},
        {name: [column[row] for row in rows] for name, column in inputs.requests.items()},
    )


def _time_left(left_us: Sequence[int], start: float, clock: Clock) -> float:
    """Return the seconds that the read may take: the latest of the rows', within the call's."""
    call = calls.current()
    left = call.time_left() if call is not None else float("inf")
    if all(left_us):
        left = min(left, max(left_us) / 1e6 - (clock.monotonic() - start))
    return left if left != float("inf") else 10.0


def _describe(prepared: Prepared) -> features_pb2.FeatureServiceDescription:
    service = prepared.service
    fields = features_pb2.FieldDescription
    return features_pb2.FeatureServiceDescription(
        name=service.name,
        join_keys=[fields(name=f.name, value_type=f.value_type) for f in service.join_keys],
        request_fields=[
            fields(name=f.name, value_type=f.value_type) for f in service.request_fields
        ],
        features=[_describe_feature(output) for output in service.outputs],
        views=prepared.lineage.views,
        data_class=wire_class(service.data_class),
    )


def _describe_feature(output: Output) -> features_pb2.FeatureDescription:
    return features_pb2.FeatureDescription(
        view=output.view,
        feature=output.field.name,
        value_type=output.field.value_type,
        ttl_seconds=output.ttl_us // 1_000_000,
        data_class=wire_class(output.tags.data_class),
        pii=output.tags.pii,
    )
