"""What auditors ask of a running mesh."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict

from services.cli import client, console
from services.cli.audit import options as opt
from services.cli.audit import show
from twinpath.audit.v1 import audit_pb2, record_pb2

_PAGE = 1000
Decision = Annotated[str, typer.Argument(help="The decision's id.")]


def get(
    decision: Decision,
    payload: Annotated[
        bool, typer.Option("--payload", help="Decrypt the payload, for the role payload_reader.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """What is recorded about this decision, from INTENT to end?"""
    records = _get(decision, payload=payload)
    if as_json:
        show.lines(records)
        return
    for stored in records:
        console.out.print(show.detail(stored))
        console.out.print()


def why(decision: Decision) -> None:
    """Why this candidate, and why not the others?"""
    from services.cli import render  # noqa: PLC0415 - heavy

    planned = [found for found in _get(decision, payload=False) if found.record.plan.entries]
    if not planned:
        console.out.print("the decision's records hold no plan", style="dim")
        return
    last = planned[-1]
    console.out.print(render.plan(last.record.plan))
    console.out.print(show.detail(last))


def about(
    entity: opt.Entity = None,
    entity_type: opt.EntityType = "",
    tenant: opt.Tenant = "",
    since: opt.Since = "",
    until: opt.Until = "",
    limit: opt.Limit = 100,
    as_json: opt.Json = False,
) -> None:
    """Which decisions were made about this person or thing, between two dates?

    [bold]twinpath audit about -e patient_id=17 --type diabetes_patient --since 2026-01-01[/]
    """
    wanted = _filter(since, until)
    wanted.subject.CopyFrom(opt.subject(entity, entity_type, tenant))
    _ask(wanted, limit, as_json=as_json)


def by_model(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    version: Annotated[str, typer.Argument(help="Its version; empty: any.")] = "",
    since: opt.Since = "",
    until: opt.Until = "",
    limit: opt.Limit = 100,
    as_json: opt.Json = False,
) -> None:
    """Which decisions did this model make, at this version?

    The version may be the catalog's, or the one that the vendor itself reported.

    [bold]twinpath audit by-model diabetes_large 1 --since 2026-01-01[/]
    """
    wanted = _filter(since, until, model=model, version=version)
    wanted.kinds.append(record_pb2.RECORD_KIND_OUTCOME)
    _ask(wanted, limit, as_json=as_json)


def egress(
    since: opt.Since = "", until: opt.Until = "", limit: opt.Limit = 100, as_json: opt.Json = False
) -> None:
    """What left the building, to whom, under which rule?"""
    records, more = _query(_filter(since, until, egress=True), limit)
    if as_json:
        show.lines(records)
        return
    for stored in records:
        console.out.print(show.egress(stored))
    if not records:
        console.out.print("nothing left the building", style="dim")
    elif more:
        console.out.print("there are more: --limit shows them, `export` takes all", style="dim")


def fallbacks(
    since: opt.Since = "", until: opt.Until = "", limit: opt.Limit = 100, as_json: opt.Json = False
) -> None:
    """When did another candidate than the plan's first answer?"""
    _ask(_filter(since, until, fallback=True), limit, as_json=as_json)


def overrides(
    since: opt.Since = "", until: opt.Until = "", limit: opt.Limit = 100, as_json: opt.Json = False
) -> None:
    """What did people do by hand? Overrides, erasures, exports and removals of payloads.

    What the services do by themselves, such as the nightly retention, `query --kind override`
    shows too. Who loads which model stands in the local service's own log.
    """
    wanted = _filter(since, until)
    wanted.kinds.extend([record_pb2.RECORD_KIND_OVERRIDE, record_pb2.RECORD_KIND_ERASURE])
    records, _ = _query(wanted, limit)
    if as_json:
        show.lines(records)
        return
    by_hand = [one for one in records if not one.record.event.actor.startswith("service:")]
    for stored in by_hand:
        console.out.print(show.detail(stored))
        console.out.print()
    if not by_hand:
        console.out.print("nobody did anything by hand", style="dim")


def refusals(
    since: opt.Since = "", until: opt.Until = "", limit: opt.Limit = 100, as_json: opt.Json = False
) -> None:
    """What did policy refuse, and by which rule?"""
    wanted = _filter(since, until)
    wanted.kinds.append(record_pb2.RECORD_KIND_REFUSED)
    _ask(wanted, limit, as_json=as_json)


def query(
    task: opt.Task = "",
    entity: opt.Entity = None,
    entity_type: opt.EntityType = "",
    tenant: opt.Tenant = "",
    since: opt.Since = "",
    until: opt.Until = "",
    path: Annotated[opt.PathChoice | None, typer.Option(help="Only this path.")] = None,
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    version: Annotated[str, typer.Option(help="Only this version of it.")] = "",
    kind: Annotated[list[opt.KindChoice] | None, typer.Option(help="Only these kinds.")] = None,
    caller: Annotated[str, typer.Option(help="Only this caller.")] = "",
    only_egress: Annotated[bool, typer.Option("--egress", help="Only what left.")] = False,
    only_fallback: Annotated[bool, typer.Option("--fallback", help="Only fallbacks.")] = False,
    limit: opt.Limit = 100,
    as_json: opt.Json = False,
) -> None:
    """Which records fit all of this: task, subject, time, path, model, kind, caller?"""
    wanted = _filter(
        since,
        until,
        task=task,
        path=opt.path_number(path),
        model=model,
        version=version,
        kinds=[opt.kind_number(one) for one in kind or ()],
        caller=caller,
        egress=only_egress,
        fallback=only_fallback,
    )
    if entity:
        wanted.subject.CopyFrom(opt.subject(entity, entity_type, tenant))
    _ask(wanted, limit, as_json=as_json)


def export(
    file: Annotated[Path, typer.Argument(help="Where to: .jsonl or .parquet.")],
    task: opt.Task = "",
    entity: opt.Entity = None,
    entity_type: opt.EntityType = "",
    tenant: opt.Tenant = "",
    since: opt.Since = "",
    until: opt.Until = "",
    path: Annotated[opt.PathChoice | None, typer.Option(help="Only this path.")] = None,
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    version: Annotated[str, typer.Option(help="Only this version of it.")] = "",
    payload: Annotated[
        bool,
        typer.Option(
            "--payload",
            help="Payloads too, for the role payload_reader. The log keeps who did so, and where "
            "to, so that an erasure can name this file.",
        ),
    ] = False,
) -> None:
    """Take all records that fit out, as JSON Lines or Parquet."""
    if file.suffix not in {".jsonl", ".parquet"}:
        raise typer.BadParameter("the name must end in .jsonl or .parquet", param_hint="FILE")
    wanted = _filter(
        since, until, task=task, path=opt.path_number(path), model=model, version=version
    )
    if entity:
        wanted.subject.CopyFrom(opt.subject(entity, entity_type, tenant))
    request = audit_pb2.ExportRequest(filter=wanted, include_payload=payload)
    if payload:
        request.destination = str(file.resolve())

    async def work(mesh: client.Connection) -> int:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        role = _reader(payload=payload)
        async with mesh.channel("audit", role=role, deadline_s=3600) as channel:
            return await _write(file, audit_pb2_grpc.AuditStub(channel).Export(request))

    count = client.run("twinpath audit export", work)
    console.out.print(f"{count} records in {file}")


async def _write(file: Path, parts: AsyncIterator[audit_pb2.ExportResponse]) -> int:
    """Write an export; a reader never sees half of it."""
    part_file = file.with_name(f".{file.name}.part")
    count = 0
    if file.suffix == ".jsonl":
        with part_file.open("w", encoding="utf-8") as out:
            async for part in parts:
                for stored in part.records:
                    out.write(json.dumps(_plain(stored)) + "\n")
                count += len(part.records)
    else:
        count = await _write_parquet(part_file, parts)
    part_file.replace(file)
    return count


async def _write_parquet(file: Path, parts: AsyncIterator[audit_pb2.ExportResponse]) -> int:
    """Columns for what is asked most; `record` has all of it, as JSON."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    text, whole = pa.string(), pa.int64()
    names = ("decision_id", "kind", "task", "subject", "caller", "model", "version", "reason")
    schema = pa.schema(
        [("leaf_index", whole), ("record_time", pa.timestamp("us", tz="UTC"))]
        + [(name, text) for name in names]
        + [("fallback", pa.bool_()), ("erased", pa.bool_()), ("record", text)]
    )
    count = 0
    with pq.ParquetWriter(file, schema) as out:
        async for part in parts:
            rows = [_row(stored) for stored in part.records]
            out.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _row(stored: audit_pb2.StoredRecord) -> dict[str, Any]:
    record = stored.record
    first = record.candidates[0] if record.candidates else None
    return {
        "leaf_index": stored.leaf_index,
        "record_time": record.record_time_unix_us,
        "decision_id": record.decision_id,
        "kind": show.kind_name(record.kind),
        "task": record.task,
        "subject": record.subject,
        "caller": record.caller.identity,
        "model": first.model if first else "",
        "version": first.version if first else "",
        "reason": record.reason,
        "fallback": record.fallback,
        "erased": stored.erased,
        "record": json.dumps(_plain(stored)),
    }


def _plain(stored: audit_pb2.StoredRecord) -> dict[str, Any]:
    return MessageToDict(stored, preserving_proto_field_name=True)


def _filter(since: str, until: str, **fields: Any) -> audit_pb2.Filter:
    return audit_pb2.Filter(
        start_time_unix_us=opt.moment(since, "--since"),
        end_time_unix_us=opt.moment(until, "--until"),
        **fields,
    )


def _ask(wanted: audit_pb2.Filter, limit: int, *, as_json: bool) -> None:
    records, more = _query(wanted, limit)
    show.print_records(records, as_json=as_json, more=more)


def _query(wanted: audit_pb2.Filter, limit: int) -> tuple[list[audit_pb2.StoredRecord], bool]:
    """Return up to `limit` records, and whether there are more."""

    async def work(mesh: client.Connection) -> tuple[list[audit_pb2.StoredRecord], bool]:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        found: list[audit_pb2.StoredRecord] = []
        token = ""
        async with mesh.channel("audit", role="auditor") as channel:
            stub = audit_pb2_grpc.AuditStub(channel)
            while len(found) < limit:
                size = min(limit - len(found), _PAGE)
                answer = await stub.Query(
                    audit_pb2.QueryRequest(filter=wanted, page_size=size, page_token=token)
                )
                found.extend(answer.records)
                token = answer.next_page_token
                if not token:
                    break
        return found, bool(token)

    return client.run("twinpath audit query", work)


def _reader(*, payload: bool) -> str:
    """Return the role that a command asks as: an auditor sees no payloads."""
    return "payload_reader" if payload else "auditor"


def _get(decision: str, *, payload: bool) -> list[audit_pb2.StoredRecord]:
    async def work(mesh: client.Connection) -> list[audit_pb2.StoredRecord]:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role=_reader(payload=payload)) as channel:
            answer = await audit_pb2_grpc.AuditStub(channel).Get(
                audit_pb2.GetRequest(decision_id=decision, include_payload=payload)
            )
            return list(answer.records)

    return client.run("twinpath audit get", work)
