"""Options that several audit commands have, and what they mean in a filter."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from services.cli.values import parse_pairs
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2


class PathChoice(StrEnum):
    """The paths."""

    LOCAL = "local"
    REMOTE = "remote"


class KindChoice(StrEnum):
    """The kinds of records."""

    INTENT = "intent"
    OUTCOME = "outcome"
    REFUSED = "refused"
    FAILED = "failed"
    ABANDONED = "abandoned"
    ERASURE = "erasure"
    OVERRIDE = "override"


Task = Annotated[str, typer.Option("--task", help="Only this task.")]
Since = Annotated[
    str,
    typer.Option("--since", metavar="TIME", help="From this time on, such as 2026-01-31T08:00."),
]
Until = Annotated[str, typer.Option("--until", metavar="TIME", help="Before this time.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Show so many at most.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Entity = Annotated[
    list[str] | None,
    typer.Option("--entity", "-e", metavar="KEY=VALUE", help="A join key; may stand again."),
]
EntityType = Annotated[
    str, typer.Option("--type", help='The entity\'s name in the catalog, such as "tumour_patient".')
]
Tenant = Annotated[str, typer.Option("--tenant", help="The tenant; empty: the only one.")]


def moment(text: str, option: str) -> int:
    """Read an ISO time (UTC unless it says otherwise) as unix microseconds; 0 for "".

    Raises:
        typer.BadParameter: It isn't one.
    """
    if not text:
        return 0
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    aware = found if found.tzinfo else found.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)


def subject(entity: list[str] | None, kind: str, tenant: str) -> audit_pb2.Subject:
    """Return the subject that the options name.

    Raises:
        typer.BadParameter: They name none.
    """
    if not entity:
        raise typer.BadParameter("say who, as KEY=VALUE", param_hint="--entity")
    pairs = parse_pairs(entity, "--entity")
    return audit_pb2.Subject(entity=pairs, entity_type=kind, tenant=tenant)


def kind_number(kind: KindChoice) -> int:
    """Return the contract's kind."""
    return record_pb2.RecordKind.Value(f"RECORD_KIND_{kind.name}")


def path_number(path: PathChoice | None) -> int:
    """Return the contract's path; unspecified for None."""
    return context_pb2.Path.Value(f"PATH_{path.name}") if path else context_pb2.PATH_UNSPECIFIED
