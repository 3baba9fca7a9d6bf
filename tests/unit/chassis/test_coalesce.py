"""Coalescing: nothing is lost, answered twice or mixed up, and nothing waits for a timer."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.chassis import coalesce
from services.chassis.coalesce import Coalescer
from services.chassis.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServiceError,
    UnavailableError,
)
from twinpath import telemetry as names

FAR = 1e9


class Clock:
    """A clock that moves only when told."""

    now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def unix_us(self) -> int:
        """Microseconds."""
        return int(self.now * 1e6)


class Gate:
    """A flush that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.lefts: list[float] = []
        self.open = asyncio.Event()

    async def __call__(self, items: Sequence[int], left: float) -> list[int | ServiceError]:
        """Hold the batch until the gate is open; odd items fail."""
        self.batches.append(list(items))
        self.lefts.append(left)
        await self.open.wait()
        return [NotFoundError("ODD", str(item)) if item % 2 else item * 10 for item in items]


async def settle() -> None:
    """Let every task that can run, run. No time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_the_rest_ride_together() -> None:
    """An item that finds a free lane goes out alone; those that come meanwhile share one batch."""
    gate = Gate()
    hop = Coalescer(gate, Clock())
    waiting = [asyncio.ensure_future(hop.submit(n, "lane", FAR)) for n in (0, 2, 4, 6)]
    await settle()
    assert gate.batches == [[0, 2, 4, 6]]
    later = [asyncio.ensure_future(hop.submit(n, "lane", FAR)) for n in (8, 10)]
    await settle()
    gate.open.set()
    assert await asyncio.gather(*waiting, *later) == [0, 20, 40, 60, 80, 100]
    assert len(gate.batches) == 2
    assert gate.batches[1][-2:] == [8, 10]


async def test_one_bad_item_fails_alone() -> None:
    """An item's error reaches its own caller and nobody else."""
    gate = Gate()
    gate.open.set()
    hop = Coalescer(gate, Clock())
    answers = await asyncio.gather(
        *(hop.submit(n, "lane", FAR) for n in (2, 3, 4)), return_exceptions=True
    )
    assert answers[0] == 20
    assert isinstance(answers[1], NotFoundError)
    assert answers[2] == 40


async def test_a_batch_that_fails_fails_all_its_items() -> None:
    """What the flush raises, every item of the batch hears; the lane goes on."""
    broken = True

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        if broken:
            raise UnavailableError("AWAY", "gone")
        return list(items)

    hop: Coalescer[int, int] = Coalescer(flush, Clock())
    answers = await asyncio.gather(
        *(hop.submit(n, "lane", FAR) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(a, UnavailableError) for a in answers)
    broken = False
    assert await hop.submit(7, "lane", FAR) == 7


async def test_a_flush_that_loses_a_result_is_noticed() -> None:
    """A result too few is an error for all, never another item's result."""

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        return list(items)[1:]

    hop: Coalescer[int, int] = Coalescer(flush, Clock())
    with pytest.raises(InternalError, match="0 results came for 1"):
        await hop.submit(1, "lane", FAR)


async def test_an_item_whose_time_is_up_is_not_sent() -> None:
    """Expired items drop out of the queue and hear DEADLINE_EXCEEDED."""
    gate, clock = Gate(), Clock()
    hop = Coalescer(gate, clock)
    first = asyncio.ensure_future(hop.submit(0, "lane", FAR))
    await settle()
    late = asyncio.ensure_future(hop.submit(2, "lane", 5.0))
    fine = asyncio.ensure_future(hop.submit(4, "lane", 50.0))
    await settle()
    clock.now = 10.0
    gate.open.set()
    assert await first == 0
    with pytest.raises(DeadlineExceededError):
        await late
    assert await fine == 40
    assert gate.batches == [[0], [4]]
    assert gate.lefts[1] == 40.0


async def test_a_caller_that_goes_away_is_not_sent_and_the_rest_go_on() -> None:
    """A cancelled item leaves the queue; the others of its batch are answered."""
    gate = Gate()
    hop = Coalescer(gate, Clock())
    first = asyncio.ensure_future(hop.submit(0, "lane", FAR))
    await settle()
    gone = asyncio.ensure_future(hop.submit(2, "lane", FAR))
    stays = asyncio.ensure_future(hop.submit(4, "lane", FAR))
    await settle()
    gone.cancel()
    gate.open.set()
    assert await first == 0
    assert await stays == 40
    assert gate.batches == [[0], [4]]


async def test_a_batch_that_nobody_waits_for_is_cancelled() -> None:
    """When every caller of a batch is gone, its call is cancelled, and the lane still works."""
    cancelled = asyncio.Event()

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        if items == [1]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
        return list(items)

    hop: Coalescer[int, int] = Coalescer(flush, Clock())
    only = asyncio.ensure_future(hop.submit(1, "lane", FAR))
    await settle()
    only.cancel()
    await settle()
    assert cancelled.is_set()
    assert await hop.submit(2, "lane", FAR) == 2


async def test_lanes_do_not_wait_for_each_other() -> None:
    """A lane whose call hangs holds up nobody else's."""
    gate = Gate()
    hop = Coalescer(gate, Clock())
    stuck = asyncio.ensure_future(hop.submit(0, "slow", FAR))
    await settle()
    other = asyncio.ensure_future(hop.submit(2, "fast", FAR))
    await settle()
    assert gate.batches == [[0], [2]]
    gate.open.set()
    assert await asyncio.gather(stuck, other) == [0, 20]


async def test_a_full_queue_refuses_at_once() -> None:
    """More than the bound waits for nobody: RESOURCE_EXHAUSTED."""
    gate = Gate()
    hop = Coalescer(gate, Clock(), max_queue=2)
    waiting = [asyncio.ensure_future(hop.submit(0, "lane", FAR))]
    await settle()
    waiting += [asyncio.ensure_future(hop.submit(n, "lane", FAR)) for n in (2, 4)]
    await settle()
    with pytest.raises(ResourceExhaustedError):
        await hop.submit(6, "lane", FAR)
    gate.open.set()
    assert await asyncio.gather(*waiting) == [0, 20, 40]


async def test_a_batch_carries_nobodys_context() -> None:
    """The flush runs without the context variables of whoever started it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")
    seen = []

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        seen.append(variable.get())
        return list(items)

    variable.set("alice")
    hop: Coalescer[int, int] = Coalescer(flush, Clock())
    await hop.submit(1, "lane", FAR)
    assert seen == ["nobody"]


class Traces:
    """A tracer whose spans can be read, in the place of the coalescer's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        monkeypatch.setattr(coalesce, "_tracer", self.tracer)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """What has ended, by name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


def unsampled(trace_id: int) -> trace.Span:
    """The span of a request that the ratio let go."""
    return trace.NonRecordingSpan(trace.SpanContext(trace_id, 7, is_remote=False))


async def test_a_batch_runs_in_the_trace_of_its_sampled_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a span there, with links to those that ride along; they don't bring a trace."""
    traces = Traces(monkeypatch)
    seen: list[tuple[list[int], int]] = []

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        seen.append((list(items), trace.get_current_span().get_span_context().trace_id))
        return list(items)

    hop: Coalescer[int, int] = Coalescer(flush, Clock(), name="hop features")

    async def rides(number: int) -> int:
        with trace.use_span(unsampled(number)):
            return await hop.submit(number, "lane", FAR)

    async def leads(number: int) -> int:
        with traces.tracer.start_as_current_span(f"decision {number}"):
            return await hop.submit(number, "lane", FAR)

    assert await asyncio.gather(rides(1), leads(2), rides(3)) == [1, 2, 3]
    leader, batch = traces.spans["decision 2"], traces.spans["hop features"]
    assert batch.parent == leader.context
    assert {link.context.trace_id for link in batch.links} == {1, 3}
    assert batch.attributes == {names.BATCH_SIZE: 3}
    assert leader.context is not None
    assert seen == [([2, 1, 3], leader.context.trace_id)]


async def test_no_batch_has_two_sampled_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sampled item leads a batch of its own; they go out together, and the rest with them."""
    traces = Traces(monkeypatch)
    gate = Gate()
    hop = Coalescer(gate, Clock())

    async def leads(number: int) -> int:
        with traces.tracer.start_as_current_span(f"decision {number}"):
            return await hop.submit(number, "lane", FAR)

    waiting = [asyncio.ensure_future(leads(n)) for n in (0, 2)]
    waiting += [asyncio.ensure_future(hop.submit(n, "lane", FAR)) for n in (4, 6, 8)]
    await settle()
    assert gate.batches == [[0, 4, 8], [2, 6]]
    gate.open.set()
    assert await asyncio.gather(*waiting) == [0, 20, 40, 60, 80]


async def test_an_unsampled_batch_makes_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """It carries its first item's trace, which says not sampled, so that nobody samples it anew."""
    traces = Traces(monkeypatch)

    async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
        here = trace.get_current_span().get_span_context()
        assert not here.trace_flags.sampled
        return [here.trace_id for _ in items]

    hop: Coalescer[int, int] = Coalescer(flush, Clock())

    async def rides(number: int) -> int:
        with trace.use_span(unsampled(number)):
            return await hop.submit(number, "lane", FAR)

    assert await asyncio.gather(rides(5), rides(6)) == [5, 5]
    assert traces.spans == {}


SAMPLED = trace.NonRecordingSpan(
    trace.SpanContext(7, 7, is_remote=True, trace_flags=trace.TraceFlags(1))
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 2), st.floats(0.5, 20)),
        st.tuples(st.just("release"), st.integers(1, 3), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0.1, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0.0)),
    ),
    max_size=60,
)


# What an item weighs goes by its number; the heaviest are too heavy for any batch.
WEIGHTS = (1, 2, 5, 11)
MAX_WEIGHT = 10


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    max_batch=st.integers(1, 4),
    parallel=st.integers(1, 3),
    sampled=st.sets(st.integers(0, 40)),
    overdue_s=st.sampled_from([math.inf, 2.0]),
)
def test_every_item_gets_its_own_answer_once(
    steps: list[tuple[str, int, float]],
    max_batch: int,
    parallel: int,
    sampled: set[int],
    overdue_s: float,
) -> None:
    """Under any schedule of submissions, answers, time and cancellations, in simulated time.

    Some items are of sampled traces, some weigh much, some too much; batches may be overdue.
    """

    async def scenario() -> None:
        clock = Clock()
        gates: list[asyncio.Event] = []
        sent: list[int] = []

        async def flush(items: Sequence[int], left: float) -> list[int | ServiceError]:
            assert 1 <= len(items) <= max_batch
            assert sum(WEIGHTS[item % 4] for item in items) <= MAX_WEIGHT
            assert sum(item in sampled for item in items) <= 1
            sent.extend(items)
            gate = asyncio.Event()
            gates.append(gate)
            await gate.wait()
            return [
                NotFoundError("THIRD", str(item)) if item % 3 == 0 else item + 1000
                for item in items
            ]

        hop: Coalescer[int, int] = Coalescer(
            flush,
            clock,
            max_batch=max_batch,
            max_weight=MAX_WEIGHT,
            weigh=lambda item: WEIGHTS[item % 4],
            parallel=parallel,
            overdue_s=overdue_s,
        )

        async def submit(item: int, lane: int, deadline: float) -> int:
            span = SAMPLED if item in sampled else trace.INVALID_SPAN
            with trace.use_span(span):
                return await hop.submit(item, lane, deadline)

        tasks: list[asyncio.Task[int]] = []
        cancelled: set[int] = set()
        for what, number, amount in steps:
            if what == "submit":
                call = submit(len(tasks), number, clock.now + amount)
                tasks.append(asyncio.ensure_future(call))
            elif what == "release":
                for gate in [g for g in gates if not g.is_set()][:number]:
                    gate.set()
            elif what == "pass":
                clock.now += amount
            elif tasks and not tasks[number % len(tasks)].done():
                tasks[number % len(tasks)].cancel()
                cancelled.add(number % len(tasks))
            await settle()
        for _ in range(len(tasks) + 1):  # no clock moves here: nothing may need a timer
            for gate in gates:
                gate.set()
            await settle()
        assert all(task.done() for task in tasks)
        assert len(sent) == len(set(sent))
        for number, task in enumerate(tasks):
            if WEIGHTS[number % 4] > MAX_WEIGHT:
                assert isinstance(task.exception(), InvalidArgumentError)
                assert number not in sent
            elif number in cancelled:
                assert task.cancelled()
            elif number not in sent:
                assert isinstance(task.exception(), DeadlineExceededError)
            elif number % 3 == 0:
                error = task.exception()
                assert isinstance(error, NotFoundError)
                assert error.message == str(number)
            else:
                assert task.result() == number + 1000

    asyncio.run(scenario())
