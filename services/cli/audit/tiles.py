"""`twinpath audit tiles`: the log as static files that others' tools check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import console
from services.cli.audit.offline import Key, load_keys, log_folder


def tiles(
    target: Annotated[Path, typer.Argument(help="Where to; publishing again adds what is new.")],
    directory: Annotated[
        Path | None, typer.Argument(help="The log, or a copy of it. Default: the mesh's own.")
    ] = None,
    key: Key = None,
) -> None:
    """Publish the log as C2SP tlog-tiles: static files, which tools that are not ours can check.

    Entries are records as they stand in the log: pseudonyms and keyed digests, no payloads.
    """
    from services.audit.tiles import TileError, publish  # noqa: PLC0415 - heavy

    try:
        size = publish(log_folder(directory), target, load_keys(key))
    except TileError as error:
        console.show_problem("not published", str(error))
        raise typer.Exit(1) from None
    console.out.print(f"[bold green]published[/]  {size} records in {target}")
