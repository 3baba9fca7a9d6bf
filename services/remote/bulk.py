"""Bulk jobs: many items in one batch of a vendor's, through the door, resumable by any replica.

A batch is made in two steps where the vendor wants a file first, else in one, and each may be cut
off. Before the last one is begun, nothing was asked, and the job has failed. From then on whoever
looks goes on: the batch is looked for at the vendor first, so that it is not made twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeGuard
from urllib.parse import urlsplit

import grpc

from services.chassis.clock import Clock
from services.chassis.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServiceError,
    UnavailableError,
    to_status,
)
from services.remote import failures
from services.remote.bulk_jobs import Job, Jobs, Sent
from services.remote.bulk_wire import (
    BatchApi,
    Missing,
    Page,
    Requests,
    Seen,
    State,
    Suspect,
    mark_of,
    name_of,
)
from services.remote.catalog import Model
from services.remote.door import Admitted, Door
from services.remote.failures import Failure
from services.remote.http_vendor import HttpVendor
from services.remote.provider import Adapter, Ask
from services.remote.vendors import Vendor, Vendors
from services.remote.wire import AnswerError, Body, Reply, dig, load_object
from twinpath.inference.v1 import bulk_pb2, inference_pb2

_MISSING = {
    Missing.EXPIRED: Failure(
        DeadlineExceededError, "VENDOR_BATCH_EXPIRED", "its batch ran out of time"
    ),
    Missing.CANCELLED: Failure(CancelledError, "VENDOR_BATCH_CANCELLED", "its batch was ended"),
}
_INTERRUPTED = "BULK_INTERRUPTED"
_BATCH_FAILED = "VENDOR_BATCH_FAILED"
_PAGES = 10
# Of these it is not known whether the vendor did what it was asked.
_MAYBE_DONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class _Place:
    """A vendor that takes batches, with the job's model."""

    vendor: Vendor
    adapter: HttpVendor
    api: BatchApi
    model: Model
    time_left_s: float

    async def fetch(self, body: Body) -> bytes:
        """Ask the vendor; raises ServiceError."""
        return await self.adapter.fetch(self.model, body, self.time_left_s)


class Bulk:
    """Makes, looks at and ends jobs.

    Args:
        vendors: The vendors of the catalog.
        door: Admits items.
        jobs: What is known of jobs.
        clock: Tells when a job was begun.
    """

    def __init__(self, vendors: Vendors, door: Door, jobs: Jobs, clock: Clock) -> None:
        self._clock = clock
        self._vendors = vendors
        self._door = door
        self._jobs = jobs

    async def submit(
        self, job_id: str, items: Sequence[inference_pb2.InferItem], left_s: float
    ) -> bulk_pb2.BulkJob:
        """Send the items that the door admits; the same id again changes nothing.

        Raises:
            ServiceError: The vendor has no batches, the state store is away, an item names
                another model than the first.
        """
        first = items[0]
        place = self._place(first.provider, first.model, first.version, left_s)
        named = {(item.provider, item.model, item.version) for item in items}
        if len(named) != 1:
            fault = ("items", "must name one provider, model and version")
            raise InvalidArgumentError("INVALID_FIELDS", ": ".join(fault), violations=[fault])
        begun = self._clock.unix_us() / 1e6
        job = Job(job_id, first.provider, first.model, first.version, created=begun)
        async with self._jobs.working(job_id) as mine:
            if not mine or not await self._jobs.create(job):
                known = await self._jobs.load(job_id)
                return _described(known or job)
            requests: list[tuple[str, Body]] = []
            for number, item in enumerate(items):
                sent, body = await self._admitted(place, item, left_s)
                job.items.append(sent)
                if body is not None:
                    requests.append((name_of(job_id, number), body))
            if requests:
                base = urlsplit(place.vendor.provider.base_url).path.rstrip("/")
                job.endpoint = base + requests[0][1].path
                job.renderer = requests[0][1].renderer
                upload = place.api.upload(requests, base)
                if upload is not None:
                    await self._upload(place, job, upload)
            job.asked = bool(requests) and not job.failed
            await self._jobs.save(job)
            if job.asked:
                await self._start(place, job, requests)
        return _described(job)

    async def get(self, job_id: str, left_s: float) -> bulk_pb2.BulkJob:
        """Look how far a job is, and go on with one that was cut off.

        Raises:
            ServiceError: BULK_UNKNOWN, a row of `failures`, or the state store is away.
        """
        job = await self._known(job_id)
        if job.failed or not _awaited(job):
            return _described(job)
        place = self._place(job.provider, job.model, job.version, left_s)
        if not job.batch:
            async with self._jobs.working(job_id) as mine:
                if not mine:  # it is being made
                    return _described(job)
                job = await self._known(job_id)
                await self._resume(place, job)
            if not job.batch:
                return _described(job)
        seen = self._seen(place, await place.fetch(place.api.look(job.batch)))
        if seen.state is State.FAILED:
            job.failed = _BATCH_FAILED
            await self._jobs.save(job)
        if seen.state is not State.ENDED:
            return _described(job)
        found: dict[str, Reply | Missing | None] = {}
        for body in seen.fetch:
            content = await place.fetch(body)
            found |= self._answers(place, content)
        return self._results(place, job, found, seen.missing)

    async def cancel(self, job_id: str, left_s: float) -> bulk_pb2.BulkJob:
        """End a job. Raises ServiceError as `get`."""
        job = await self._known(job_id)
        if job.batch and not job.failed:
            place = self._place(job.provider, job.model, job.version, left_s)
            await place.fetch(place.api.cancel(job.batch))
        return await self.get(job_id, left_s)

    async def forget(self, job_id: str, left_s: float) -> None:
        """Delete what the vendor keeps of a job, and the job.

        Raises:
            ServiceError: A row of `failures`, or the state store is away; it can be tried again.
        """
        job = await self._jobs.load(job_id)
        if job is None:
            return
        if job.file or job.batch:
            place = self._place(job.provider, job.model, job.version, left_s)
            content = await place.fetch(place.api.look(job.batch)) if job.batch else b""
            with _protocol(place):
                rest = place.api.erase(content, job.file)
            for body in rest:
                with suppress(NotFoundError):  # gone already
                    await place.fetch(body)
        await self._jobs.delete(job_id)

    # ---- making the batch -------------------------------------------------------------------

    async def _admitted(
        self, place: _Place, item: inference_pb2.InferItem, left_s: float
    ) -> tuple[Sent, Body | None]:
        """Take an item through the door; one that is refused stands in the job with its reason."""
        try:
            admitted: Admitted = await self._door.admit(item, left_s, {}, limited=False)
            body = place.adapter.dialect.body(admitted.ask, stream=False)
        except ServiceError as error:
            result = inference_pb2.InferResult(id=item.context.id, status=to_status(error))
            return Sent(item.context.id, refused=result.SerializeToString().hex()), None
        digest = hashlib.sha256(body.content).hexdigest()
        return Sent(item.context.id, digest, len(body.content)), body

    async def _upload(self, place: _Place, job: Job, body: Body) -> None:
        try:
            job.file = self._id(place, await place.fetch(body))
        except ServiceError as error:
            job.failed = error.reason  # without a file nothing was asked

    async def _start(self, place: _Place, job: Job, requests: Requests) -> None:
        """Make the batch; if nobody knows whether it was made, a later look finds out."""
        body = place.api.create(job.id, requests, job.file, job.endpoint)
        try:
            job.batch = self._id(place, await place.fetch(body))
        except ServiceError as error:
            if error.code in _MAYBE_DONE:
                return
            job.failed = error.reason
        await self._jobs.save(job)

    async def _resume(self, place: _Place, job: Job) -> None:
        """Go on with a job whose batch nobody knows of, and that nobody is making."""
        if not job.asked:
            job.failed = _INTERRUPTED
            await self._jobs.save(job)
            return
        batch, sure = await self._search(place, job)
        if batch:
            job.batch = batch
        elif not sure:
            return
        elif job.file:
            await self._start(place, job, ())
            return
        else:
            job.failed = _INTERRUPTED
        await self._jobs.save(job)

    async def _search(self, place: _Place, job: Job) -> tuple[str, bool]:
        """Look for a job's batch: its id, empty if there is none; and whether that is certain."""
        requests = sum(1 for sent in job.items if sent.digest)
        after, sure = "", True
        for _ in range(_PAGES):
            content = await place.fetch(place.api.newest(after))
            page = self._page(place, content, job, requests)
            for suspect in page.suspects:
                if suspect.certain or await self._is_it(place, job, suspect):
                    return suspect.id, True
                sure = sure and suspect.fetch is not None
            after = page.after
            if not after:
                break
        return "", sure

    async def _is_it(self, place: _Place, job: Job, suspect: Suspect) -> bool:
        """Tell by the names of its answers whether a batch is a job's."""
        if suspect.fetch is None:
            return False
        names = self._answers(place, await place.fetch(suspect.fetch))
        return any(name.startswith(f"{mark_of(job.id)}-") for name in names)

    # ---- reading the answers ----------------------------------------------------------------

    def _results(
        self,
        place: _Place,
        job: Job,
        found: Mapping[str, Reply | Missing | None],
        otherwise: Missing,
    ) -> bulk_pb2.BulkJob:
        done = _described(job)
        done.state = bulk_pb2.BULK_STATE_DONE
        del done.results[:]
        for number, sent in enumerate(job.items):
            if sent.refused:
                done.results.append(_refused(sent))
            else:
                said = found.get(name_of(job.id, number)) or otherwise
                done.results.append(self._result(place, job, sent, said))
        return done

    def _result(
        self, place: _Place, job: Job, sent: Sent, said: Reply | Missing
    ) -> inference_pb2.InferResult:
        result = _begun(job, sent)
        metering = result.metering
        try:
            if isinstance(said, Missing):
                raise _MISSING[said].error(job.provider)
            metering.bytes_in = len(said.content)
            ask = Ask(place.model, (), place.time_left_s, {})
            answer = place.adapter.read_one_of_many(ask, said, metering, sent.size)
        except ServiceError as error:
            result.status.CopyFrom(to_status(error))
            return result
        self._vendors.reported(job.provider, place.model, metering.reported_version)
        result.outputs.extend(answer.outputs)
        result.finish_reason = answer.finish_reason
        return result

    # ---- what all of them need --------------------------------------------------------------

    async def _known(self, job_id: str) -> Job:
        job = await self._jobs.load(job_id)
        if job is None:
            raise NotFoundError("BULK_UNKNOWN", "there is no such job", metadata={"job": job_id})
        return job

    def _place(self, provider: str, model: str, version: str, left_s: float) -> _Place:
        vendor = self._vendors.find(provider)
        adapter = vendor.adapter
        if not takes_batches(adapter):
            raise FailedPreconditionError(
                "BULK_UNSUPPORTED",
                f"vendor {provider}: its protocol has no batches here",
                metadata={"provider": provider},
            )
        api: BatchApi = adapter.dialect.in_bulk  # type: ignore[attr-defined]
        return _Place(
            vendor, adapter, api, self._vendors.find_model(vendor, model, version), left_s
        )

    def _id(self, place: _Place, content: bytes) -> str:
        with _protocol(place):
            found: str = dig(load_object(content), "id", kind=str)
            return found

    def _seen(self, place: _Place, content: bytes) -> Seen:
        with _protocol(place):
            return place.api.seen(content)

    def _answers(self, place: _Place, content: bytes) -> Mapping[str, Reply | Missing | None]:
        with _protocol(place):
            return place.api.answers(content)

    def _page(self, place: _Place, content: bytes, job: Job, requests: int) -> Page:
        with _protocol(place):
            return place.api.page(content, job.id, requests, job.created)


@contextmanager
def _protocol(place: _Place) -> Iterator[None]:
    """Say what an answer that breaks the vendor's protocol means to the mesh."""
    try:
        yield
    except AnswerError as error:
        name = place.vendor.provider.name
        raise failures.ANSWER_INVALID.error(name, rule=error.rule) from None


def takes_batches(adapter: Adapter) -> TypeGuard[HttpVendor]:
    """Tell whether a vendor's protocol has batches that we know how to ask for."""
    return isinstance(adapter, HttpVendor) and hasattr(adapter.dialect, "in_bulk")


def _awaited(job: Job) -> bool:
    """Whether an answer may come; a job that is being made has no items yet."""
    return not job.items or any(sent.digest for sent in job.items)


def _refused(sent: Sent) -> inference_pb2.InferResult:
    return inference_pb2.InferResult.FromString(bytes.fromhex(sent.refused))


def _begun(job: Job, sent: Sent) -> inference_pb2.InferResult:
    """Return the result of an item whose bytes have left, as far as that says."""
    result = inference_pb2.InferResult(id=sent.id)
    result.metering.sent = True
    result.metering.bytes_out = sent.size
    result.metering.wire_digest = bytes.fromhex(sent.digest)
    result.metering.renderer_version = job.renderer
    return result


def _failed(job: Job, sent: Sent) -> inference_pb2.InferResult:
    """Return the result of an item of a job that the vendor did not take: its bytes did leave."""
    result = _begun(job, sent)
    error = UnavailableError(job.failed, f"vendor {job.provider} did not take the batch")
    result.status.CopyFrom(to_status(error))
    return result


def _described(job: Job) -> bulk_pb2.BulkJob:
    state = bulk_pb2.BULK_STATE_RUNNING
    if job.failed:
        state = bulk_pb2.BULK_STATE_FAILED
    elif not _awaited(job):
        state = bulk_pb2.BULK_STATE_DONE
    results = [_refused(sent) for sent in job.items if sent.refused]
    if job.failed:
        results += [_failed(job, sent) for sent in job.items if sent.digest]
    return bulk_pb2.BulkJob(
        id=job.id,
        state=state,
        reason=job.failed,
        items=len(job.items),
        results=results,
        vendor_batch_id=job.batch,
    )
