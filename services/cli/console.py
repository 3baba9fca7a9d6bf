"""What every command prints with: one console, and one look for errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from services.chassis.errors import ServiceError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_HINTS = {
    "UNAVAILABLE": "Does the mesh run? `twinpath up` starts one and shows where each part listens.",
    "UNAUTHENTICATED": "The token is missing, expired, or signed for another mesh.",
    "POLICY_REFUSED": "deploy/catalog/policies/ holds the rules; the refusal is in the audit log.",
    "PERMISSION_DENIED": "deploy/catalog/access.yaml says who may call what.",
}


def show_error(error: ServiceError) -> None:
    """Show an error of the mesh: code, reason, message, names, and each field that is wrong."""
    parts: list[RenderableType] = [Text(error.message)]
    if error.violations:
        parts += [
            Text(""),
            _pairs((field or "(request)", text) for field, text in error.violations),
        ]
    if error.metadata:
        parts += [Text(""), _pairs(sorted(error.metadata.items()))]
    if error.retry_after is not None:
        parts += [Text(""), Text(f"Try again in {error.retry_after:g} s.")]
    hint = _HINTS.get(error.reason) or _HINTS.get(error.code.name)
    if hint:
        parts += [Text(""), Text(hint, style="dim")]
    err.print(
        Panel(
            Group(*parts),
            title=f"[bold red]{error.code.name}[/] [red]{error.reason}[/]",
            title_align="left",
            border_style="red",
            expand=False,
        )
    )


def show_not_running(why: str) -> None:
    """Say that there is no mesh, and how to get one."""
    text = Text.assemble(
        f"{why}.\n\nStart one in another terminal:  ",
        ("twinpath up", "bold"),
        "   (or `make up`)\nOr name a router:  ",
        ("TWINPATH_ROUTER_ADDRESS", "bold"),
        "=host:port and ",
        ("TWINPATH_TOKEN_FILE", "bold"),
        "=path",
    )
    show_problem("the mesh is not running", text)


def show_problem(title: str, text: str | Text) -> None:
    """Show anything else that went wrong."""
    err.print(
        Panel(
            text if isinstance(text, Text) else Text(text),
            title=f"[bold red]{title}[/]",
            title_align="left",
            border_style="red",
            expand=False,
        )
    )


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return table
