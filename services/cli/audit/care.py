"""Erasure, retention, backup and restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from services.cli import client, console
from services.cli.audit import options as opt
from services.cli.audit.offline import Key, load_keys
from twinpath.audit.v1 import audit_pb2

Directory = Annotated[Path, typer.Argument(help="The log's folder, with log/ and payloads/.")]
Store = Annotated[
    Path | None, typer.Option("--key-store", help="The subjects' keys: take them along.")
]


def erase(
    entity: opt.Entity = None,
    entity_type: opt.EntityType = "",
    tenant: opt.Tenant = "",
    reason: Annotated[str, typer.Option(help="Why; it stands in the record.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Forget a subject: destroy its keys, so that payloads, digests and links are out of reach.

    The log still verifies, and the erasure is itself a record. It can't be undone.
    """
    who = opt.subject(entity, entity_type, tenant)
    if not reason:
        raise typer.BadParameter("say why", param_hint="--reason")
    if not yes:
        typer.confirm("This can't be undone. Destroy the keys?", abort=True)
    request = audit_pb2.EraseRequest(subject=who, reason=reason)

    async def work(mesh: client.Connection) -> audit_pb2.EraseResponse:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="privacy_officer") as channel:
            answer: audit_pb2.EraseResponse = await audit_pb2_grpc.AuditStub(channel).Erase(request)
            return answer

    answer = client.run("twinpath audit erase", work)
    console.out.print(
        f"[bold]erased[/]  {answer.records} records are about nobody now; the erasure is "
        f"{answer.erasure_id}, leaf {answer.leaf_index}"
    )
    console.out.print("Not reached from here, and to be seen to:")
    for copy in answer.not_reached:
        console.out.print(f"  - {copy}", markup=False)


def retention(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Remove payloads that are past their task's retention.

    The service does so by itself once a day. deploy/catalog/retention.yaml says how long payloads
    are kept. Records stay, and the log verifies as before.
    """
    request = audit_pb2.RetainRequest(dry_run=dry_run)

    async def work(mesh: client.Connection) -> audit_pb2.RetainResponse:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="privacy_officer", deadline_s=600) as channel:
            stub = audit_pb2_grpc.AuditStub(channel)
            answer: audit_pb2.RetainResponse = await stub.Retain(request)
            return answer

    answer = client.run("twinpath audit retention", work)
    if as_json:
        print(json.dumps(MessageToDict(answer, preserving_proto_field_name=True)))
        return
    table = Table(box=None, pad_edge=False)
    removed = "would be removed" if dry_run else "removed"
    for name in ("task", "days", removed, "kept"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task in answer.tasks:
        table.add_row(task.task, str(task.retention_days), str(task.expired), str(task.kept))
    console.out.print(table if answer.tasks else "no task has payloads")
    keys = "payload keys would be replaced" if dry_run else "payload keys replaced"
    if answer.keys_replaced:
        console.out.print(f"{answer.keys_replaced} {keys}: those subjects have nothing younger")
    if answer.unnamed:
        console.out.print(f"{answer.unnamed} payloads of appends that failed {removed}")
    if answer.waiting:
        console.out.print(
            f"{answer.waiting} payloads to remove wait for their segment to be closed"
        )
    if answer.event_id:
        console.out.print(f"recorded as {answer.event_id}, leaf {answer.leaf_index}")


def backup(
    directory: Directory,
    target: Annotated[Path, typer.Argument(help="An empty folder.")],
    key_store: Store = None,
    key: Key = None,
) -> None:
    """Copy the log, while it runs or not, and verify the copy."""
    from services.audit.backup import BackupError, make_backup  # noqa: PLC0415 - heavy

    try:
        copied = make_backup(directory, target, load_keys(key), key_store)
    except BackupError as error:
        console.show_problem("no backup", str(error))
        raise typer.Exit(1) from None
    keys = ", and the subjects' keys" if copied.with_keys else ""
    console.out.print(
        f"[bold green]verified copy[/]  {copied.report.size} records, {copied.payloads} payloads"
        f"{keys} in {target}"
    )


def restore(
    source: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    directory: Annotated[Path, typer.Argument(help="The log's new folder; empty.")],
    key_store: Store = None,
    newer_log: Annotated[
        Path | None,
        typer.Option(help="A newer copy of the log, whose erasures count here too."),
    ] = None,
    key: Key = None,
) -> None:
    """Put a backup back, verify it, and replay erasures."""
    from services.audit import erasures  # noqa: PLC0415 - heavy
    from services.audit.backup import BackupError  # noqa: PLC0415 - heavy
    from services.audit.backup import restore as put_back  # noqa: PLC0415 - heavy

    keys = load_keys(key)
    try:
        copied = put_back(source, directory, keys, key_store)
    except BackupError as error:
        console.show_problem("not restored", str(error))
        raise typer.Exit(1) from None
    console.out.print(
        f"[bold green]restored and verified[/]  {copied.report.size} records, "
        f"{copied.payloads} payloads in {directory}"
    )
    if key_store is not None:
        logs = [directory] if newer_log is None else [directory, newer_log]
        count = erasures.replay(logs, key_store)
        console.out.print(f"{count} erasures replayed on {key_store}")
