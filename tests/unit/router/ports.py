"""Fakes of the router's ports: they keep the contract, hold still, and remember what they saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.call import Call, Identity
from services.chassis.errors import AlreadyExistsError, ServiceError, UnavailableError, to_status
from services.router.admission import Admission
from services.router.attempt import Attempter
from services.router.board import Board
from services.router.catalog import Catalog, load_catalog
from services.router.dispatch import Dispatcher
from services.router.grants import GrantSigner
from services.router.limiter import Limiter, LimiterConfig
from services.router.pipeline import Pipeline
from services.router.ports import FeatureQuery, FeatureVector
from services.router.steps import CatalogView, Steps
from services.router.streams import Streams
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2
from twinpath.router.v1 import router_pb2

CATALOG = Path(__file__).resolve().parents[3] / "deploy" / "catalog"


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def unix_us(self) -> int:
        """The wall clock."""
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        """The steady clock."""
        return self.now


class FakeFeatures:
    """Gives every feature of the task the value 1.0, PRESENT, unless told otherwise."""

    def __init__(self, catalog: Catalog) -> None:
        self._tasks = {t.feature_service: t for t in catalog.tasks.values()}
        self.statuses: dict[str, int] = {}
        self.values: dict[str, Any] = {}
        self.data_class = context_pb2.DATA_CLASS_UNSPECIFIED
        self.error: ServiceError | None = None

    async def get(self, query: FeatureQuery) -> FeatureVector:
        """See ports.Features."""
        if self.error is not None:
            raise self.error
        task = self._tasks[query.feature_service]
        names = [s for i in task.inputs for s in i.sources if not s.startswith("field:")]
        present = decision_pb2.FEATURE_STATUS_PRESENT
        return FeatureVector(
            values={n: self.values.get(n, 1.0) for n in names},
            statuses={n: self.statuses.get(n, present) for n in names},
            data_class=self.data_class,
            feature_service=query.feature_service,
            registry_version="r1",
            views=(("view", "hash", 1),),
        )


class FakePath:
    """Answers with fixed outputs, or with what `behave` does; remembers every item."""

    def __init__(self, path: str, catalog: Catalog) -> None:
        self._path = path
        self._catalog = catalog
        self.items: list[inference_pb2.InferItem] = []
        self.behave: Callable[[inference_pb2.InferItem], Any] | None = None
        self.down = False
        self.script: list[Any] = []
        self.closed = 0

    async def infer(self, item: inference_pb2.InferItem) -> inference_pb2.InferResult:
        """See ports.Inference."""
        self.items.append(item)
        if self.behave is not None:
            found = self.behave(item)
            if asyncio.iscoroutine(found):
                found = await found
            if isinstance(found, inference_pb2.InferResult):
                return found
        return answer(item, tumour="tumour" in item.model)

    async def infer_stream(
        self, item: inference_pb2.InferItem
    ) -> AsyncGenerator[inference_pb2.InferStreamResponse]:
        """See ports.Inference. `script` says what comes: chunks, errors, or a final message."""
        self.items.append(item)
        try:
            for what in self.script:
                if isinstance(what, Exception):
                    raise what
                if isinstance(what, str):
                    array = np.array([what.encode()], dtype=object)
                    chunk = inference_pb2.InferChunk(
                        outputs=[tensors.from_numpy("text_output", array)]
                    )
                    yield inference_pb2.InferStreamResponse(chunk=chunk)
                elif isinstance(what, inference_pb2.InferResult):
                    yield inference_pb2.InferStreamResponse(final=what)
                elif isinstance(what, inference_pb2.InferStreamResponse):
                    yield what
                else:
                    await what()
        finally:
            self.closed += 1

    async def describe(self) -> list[inference_pb2.ModelDescription]:
        """See ports.Inference."""
        if self.down:
            raise UnavailableError("PATH_UNREACHABLE", f"{self._path} is down")
        return [
            inference_pb2.ModelDescription(
                name=c.model,
                version=c.version,
                provider=c.provider,
                state=inference_pb2.MODEL_STATE_READY,
            )
            for t in self._catalog.tasks.values()
            for c in t.candidates
            if c.path == self._path
        ]


def answer(item: inference_pb2.InferItem, *, tumour: bool = False) -> inference_pb2.InferResult:
    """Return a good result for an item."""
    result = inference_pb2.InferResult(id=item.context.id)
    if tumour:
        result.outputs.append(tensors.from_numpy("probability", np.array([[0.5]], "f4")))
        result.outputs.append(tensors.from_numpy("label", np.array([[1]], "i8")))
    else:
        result.outputs.append(tensors.from_numpy("progression", np.array([[150.0]], "f4")))
    result.metering.bytes_out = 52
    result.metering.cost.CopyFrom(decision_pb2.Cost(currency_code="USD", nanos=250))
    return result


def failure(item: inference_pb2.InferItem, error: ServiceError) -> inference_pb2.InferResult:
    """Return a failed result for an item."""
    result = inference_pb2.InferResult(id=item.context.id, status=to_status(error))
    result.metering.bytes_out = 52
    return result


class FakeAudit:
    """A log in memory: the first OUTCOME for a decision id wins."""

    def __init__(self) -> None:
        self.log: list[audit_pb2.Entry] = []
        self.error: ServiceError | None = None
        self.delay: Callable[[], Any] | None = None

    async def append(self, entry: audit_pb2.Entry) -> audit_pb2.AppendResult:
        """See ports.Audit."""
        if self.delay is not None:
            await self.delay()
        if self.error is not None:
            raise self.error
        outcome = record_pb2.RECORD_KIND_OUTCOME
        if entry.record.kind == outcome:
            for index, known in enumerate(self.log):
                same = known.record.decision_id == entry.record.decision_id
                if same and known.record.kind == outcome:
                    result = audit_pb2.AppendResult(
                        id=entry.context.id,
                        status=to_status(
                            AlreadyExistsError("OUTCOME_EXISTS", "another came first")
                        ),
                    )
                    result.existing.CopyFrom(self._stored(index))
                    return result
        self.log.append(entry)
        return audit_pb2.AppendResult(id=entry.context.id, leaf_index=len(self.log) - 1)

    def _stored(self, index: int) -> audit_pb2.StoredRecord:
        entry = self.log[index]
        return audit_pb2.StoredRecord(leaf_index=index, record=entry.record, payload=entry.payload)

    async def get(self, decision_id: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
        """See ports.Audit."""
        if self.error is not None:
            raise self.error
        return [
            self._stored(i)
            for i, entry in enumerate(self.log)
            if entry.record.decision_id == decision_id
        ]

    def kinds(self) -> list[str]:
        """The kinds of the records, in order."""
        return [
            record_pb2.RecordKind.Name(e.record.kind).removeprefix("RECORD_KIND_") for e in self.log
        ]


class FakeClaims:
    """Claims in memory."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    async def take(self, decision_id: str, ttl_s: float) -> bool:
        """See ports.Claims."""
        if decision_id in self.held:
            return False
        self.held.add(decision_id)
        return True

    async def release(self, decision_id: str) -> None:
        """See ports.Claims."""
        self.held.discard(decision_id)


class World:
    """A whole router over fakes."""

    def __init__(self, catalog_folder: Path = CATALOG) -> None:
        self.catalog = load_catalog(catalog_folder)
        self.clock = Clock()
        self.features = FakeFeatures(self.catalog)
        self.local = FakePath("local", self.catalog)
        self.remote = FakePath("remote", self.catalog)
        self.audit = FakeAudit()
        self.claims = FakeClaims()
        self.key = Ed25519PrivateKey.generate()
        paths = {"local": self.local, "remote": self.remote}
        self.board = Board(paths, self.clock, 1.0)
        self.signer = GrantSigner(self.key, self.clock)
        self.limiter = Limiter(LimiterConfig(minimum=1, initial=64, maximum=64))
        self.steps = Steps(
            catalog=lambda: CatalogView(self.catalog, stale=False),
            features=self.features,
            audit=self.audit,
            board=self.board,
            clock=self.clock,
            code_version="test",
            random=lambda: 1.0,
        )
        attempter = Attempter(paths, self.board, self.signer, self.clock)
        admission = Admission(self.limiter, self.clock)
        self.streams = Streams(
            steps=self.steps,
            claims=self.claims,
            attempter=attempter,
            admission=admission,
            clock=self.clock,
            random=lambda: 0.0,
        )
        self.pipeline = Pipeline(
            steps=self.steps,
            claims=self.claims,
            dispatcher=Dispatcher(attempter, self.board, self.clock, lambda: 0.0),
            clock=self.clock,
            admission=admission,
        )

    def call(self, left_s: float = 5.0, subject: str = "alice") -> Call:
        """A call with its deadline on the fake clock; far away on the real one."""
        del left_s
        return Call("/m", Identity(subject, "", frozenset({"caller"})), self.clock.now + 1e9)

    def short(self, call: Call) -> Call:
        """The same call with a door that does not look at the real clock."""

        class Open(Call):
            def check_deadline(self) -> None:
                return

        return Open(call.method, call.identity, call.deadline)

    async def decide(self, task: str = "diabetes_progression", **more: Any) -> Any:
        """Make one decision."""
        await self.board.refresh()
        return await self.pipeline.decide(ask(task, **more), self.call())


def ask(task: str, patient: int = 17, **more: Any) -> router_pb2.InferRequest:
    """Return a request about a patient."""
    request = router_pb2.InferRequest(task=task, **more)
    request.entity["patient_id"].int64_value = patient
    return request
