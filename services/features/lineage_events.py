"""OpenLineage events: what was applied, what was materialized, and what is served from it.

Feast's registry says when something was applied or materialized, by whomever and from wherever; so
these events come from looking at it, and no command has to be wrapped. Serving is added up: one
event an interval for each feature service, never one for each request. All is written by a thread.

Events go to a file beside the registry, one line each, unless OpenLineage's own variables
(OPENLINEAGE_URL, OPENLINEAGE_CONFIG, OPENLINEAGE__TRANSPORT__..., OPENLINEAGE_DISABLED) say where.
Runs have ids that follow from what they are about, so that several replicas tell of one run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.chassis.clock import Clock
from services.features.definitions import Registry
from services.features.prepared import InForce, Prepared

log = logging.getLogger(__name__)

PRODUCER = "https://twinpath.invalid/features"
_ELSEWHERE = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE_DISABLED", "OPENLINEAGE__")
_SPACE = uuid.UUID("6d1f5f0c-6a1e-5b1c-9d3e-7f6d4f0f2a10")

# (job, what makes the run unique, inputs, outputs, rows of the outputs)
Event = tuple[str, str, list[tuple[str, str]], list[tuple[str, str]], int | None]


class LineageEvents:
    """Gathers what happens, and emits it.

    Args:
        file: Where events go by default.
        clock: For the events' times.
        replica: Tells this process' serving runs from others'.
        interval_s: Seconds between two emissions.
    """

    def __init__(self, file: Path, clock: Clock, replica: str, interval_s: float = 60.0) -> None:
        self._file = file
        self._clock = clock
        self._replica = replica
        self._interval_s = interval_s
        self._registry: Registry | None = None
        self._events: list[tuple[Registry, Event]] = []
        self._served: Counter[tuple[str, str]] = Counter()
        self._services: dict[tuple[str, str], Prepared] = {}
        self._emit: Callable[[Any], None] | None = None
        self._problem = ""

    def served(self, prepared: Prepared, rows: int) -> None:
        """Count what was served."""
        key = (prepared.service.name, prepared.lineage.registry_version)
        self._services[key] = prepared
        self._served[key] += rows

    def in_force(self, found: InForce) -> None:
        """Take note of a registry that came into force."""
        before, self._registry = self._registry, found.registry
        registry = found.registry
        if before is None or before.version != registry.version:
            sources = sorted({s for o in registry.origins.values() for s in o.sources})
            views = [(name, o.version_hash) for name, o in registry.origins.items()]
            event: Event = ("apply", registry.version, [(s, "") for s in sources], views, None)
            self._events.append((registry, event))
        if before is None:
            return  # what was materialized before this process is not its news
        for view, until_us in registry.materialized.items():
            if until_us > before.materialized.get(view, 0):
                origin = registry.origins[view]
                inputs = [(source, "") for source in origin.sources]
                output = [(view, origin.version_hash)]
                name = f"materialize.{view}"
                self._events.append((registry, (name, str(until_us), inputs, output, None)))

    async def run(self) -> None:
        """Emit until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def close(self) -> None:
        """Emit the last of it. A process that never emitted is not held up at its end by that."""
        if self._emit is not None:
            await self.flush()

    async def flush(self) -> None:
        """Emit what was gathered. Where events can't go, they are forgotten."""
        served, self._served = self._served, Counter()
        events, self._events = self._events, []
        now_us = self._clock.unix_us()
        if self._registry is not None:
            for key, rows in served.items():
                views = self._services[key].service.versions
                unique = f"{self._replica}/{now_us}"
                event: Event = (f"serve.{key[0]}", unique, list(views), [key], rows)
                events.append((self._registry, event))
        self._services.clear()
        if not events:
            return
        try:
            await asyncio.to_thread(self._send, events, now_us)
            self._problem = ""
        except Exception as error:  # noqa: BLE001 - lineage is not worth a failure
            text = f"{type(error).__name__}: {error}"
            if text != self._problem:
                log.warning("lineage events not emitted", extra={"why": text})
            self._problem = text

    def _send(self, events: Iterable[tuple[Registry, Event]], now_us: int) -> None:
        if self._emit is None:
            self._emit = _client(self._file).emit
        when = datetime.fromtimestamp(now_us / 1e6, tz=UTC).isoformat()
        for registry, event in events:
            self._emit(_run_event(registry, event, when))


def _client(file: Path) -> Any:
    # Most of a second to import, and only for who emits.
    from openlineage.client import OpenLineageClient  # noqa: PLC0415
    from openlineage.client.transport.file import FileConfig, FileTransport  # noqa: PLC0415

    if any(name.startswith(_ELSEWHERE) for name in os.environ):
        return OpenLineageClient()
    file.parent.mkdir(parents=True, exist_ok=True)
    return OpenLineageClient(transport=FileTransport(FileConfig(str(file), append=True)))


def _run_event(registry: Registry, event: Event, when: str) -> Any:
    from openlineage.client import event_v2, facet_v2  # noqa: PLC0415 - as above

    job, unique, inputs, outputs, rows = event
    space = f"feast://{registry.project}"

    def facets(name: str, version: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        schema: Mapping[str, str] = registry.schemas.get(name, {})
        if schema:
            fields = [
                facet_v2.schema_dataset.SchemaDatasetFacetFields(name=n, type=kind)
                for n, kind in schema.items()
            ]
            found["schema"] = facet_v2.schema_dataset.SchemaDatasetFacet(fields=fields)
        if version:
            found["version"] = facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(version)
        return found

    counted: dict[str, Any] = {}
    if rows is not None:
        statistics = facet_v2.output_statistics_output_dataset
        counted["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(rowCount=rows)
    return event_v2.RunEvent(
        eventTime=when,
        producer=PRODUCER,
        eventType=event_v2.RunState.COMPLETE,
        run=event_v2.Run(runId=str(uuid.uuid5(_SPACE, f"{registry.project}/{job}/{unique}"))),
        job=event_v2.Job(namespace=space, name=job),
        inputs=[event_v2.InputDataset(space, n, facets=facets(n, v)) for n, v in inputs],
        outputs=[
            event_v2.OutputDataset(space, n, facets=facets(n, v), outputFacets=counted)
            for n, v in outputs
        ],
    )
