"""What an erasure here does not reach: copies of a subject's data elsewhere, each by its name.

Replies that the router would give again, samples of a parity run and replays all come out of the
log's payloads, so they are covered: they can't be opened any more. What is listed here isn't.
Whether another service really took a copy is not known here; that it may have is enough.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.audit import records
from services.audit.index import Search
from services.audit.storage import Storage
from services.chassis.files import FileError, read_model
from twinpath.audit.v1 import audit_pb2, record_pb2

EXPORT = "export_payloads"
_ALWAYS = (
    "features: the subject's rows in the feature store and its sources",
    "backups of the key store, until a restore replays this erasure",
    "vendors: what they kept of inputs that were sent to them",
)
_UNKNOWN_TASKS = (  # what there may be where no catalog says which tasks have it
    "response cache: answers of tasks that keep them, until they expire (a day at most)",
    "samples of served vectors, if the features service takes any",
    "traces of tasks that are not restricted: the model input's plain digest",
    "outbox of the router: entries that wait for the log, unencrypted",
)
_PAGE = 1000


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Cache(_Loose):
    ttl_s: float


class _Task(_Loose):
    name: str
    data_class: str = ""
    feature_service: str = ""
    audit_outage: str = ""
    cache: _Cache | None = None


def export_record(
    wanted: audit_pb2.ExportRequest, pseudonym: str, actor: str, now_us: int
) -> record_pb2.Record:
    """Return the record of payloads that are about to leave: who takes which, and where to."""
    details = {"task": wanted.filter.task, "subject": pseudonym}
    return record_pb2.Record(
        kind=records.OVERRIDE,
        decision_id=f"export-{uuid.uuid4().hex}",
        event_time_unix_us=now_us,
        record_time_unix_us=now_us,
        event=record_pb2.AdminEvent(
            action=EXPORT,
            actor=actor,
            target=wanted.destination or "a place that was not said",
            reason="an export with payloads",
            details={name: value for name, value in details.items() if value},
        ),
    )


def not_reached(storage: Storage, pseudonym: str, catalog: Path | None) -> list[str]:
    """Return the copies, in words. Blocks. The index must have caught up."""
    tasks = storage.index.tasks_of(pseudonym)
    found = [*_ALWAYS[:1], *_of_tasks(catalog, tasks), *_exports(storage, pseudonym, tasks)]
    return found + list(_ALWAYS[1:])


def _of_tasks(catalog: Path | None, tasks: list[str]) -> list[str]:
    """Name what other services keep of these tasks' decisions."""
    if catalog is None:
        return list(_UNKNOWN_TASKS)
    found = []
    for path in sorted((catalog / "tasks").glob("*.yaml")):
        try:
            task = read_model(path, _Task)
        except FileError:
            found.append(f"whatever is kept by a task that can't be read: {path.name}")
            continue
        if task.name in tasks:
            found.extend(_of_task(task))
    return found


def _of_task(task: _Task) -> Iterator[str]:
    if task.cache is not None:
        yield (
            f"response cache: answers of {task.name}, until they expire, "
            f"{task.cache.ttl_s:.0f} s from now at most"
        )
    if task.feature_service:
        yield (
            f"samples of vectors that {task.feature_service} served to {task.name}, if the "
            "features service takes any, until newer files displace them"
        )
    if task.data_class != "restricted":
        yield (
            f"traces of {task.name}: the model input's plain digest, until the store of traces "
            "drops them"
        )
    if task.audit_outage == "outbox":
        yield (
            f"outbox of the router: entries of {task.name}, unencrypted, while they wait for the "
            "log, and any that the log refused, in the file that ends in .rejected"
        )


def _exports(storage: Storage, pseudonym: str, tasks: list[str]) -> list[str]:
    """Name the exports that may hold a payload of the subject."""
    first = storage.index.search(Search(subject=pseudonym), limit=1)
    after = first[0] if first else storage.journal.size
    found = []
    while leaves := storage.index.search(
        Search(kinds=(records.OVERRIDE,)), after=after, limit=_PAGE
    ):
        for leaf in leaves:
            event = record_pb2.Record.FromString(storage.journal.read(leaf)).event
            who, task = event.details.get("subject", ""), event.details.get("task", "")
            if event.action == EXPORT and who in ("", pseudonym) and (not task or task in tasks):
                found.append(f"export by {event.actor}, leaf {leaf}: {event.target}")
        after = leaves[-1]
    return found
