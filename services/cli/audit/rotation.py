"""`twinpath audit rotate-key`: another key for checkpoints; those there are go on to count."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.audit.checkpoint import CheckpointError
from services.audit.signing import end_rotation, rotate
from services.cli import console
from services.cli.description import home

_NAME = "checkpoints.key"


def rotate_key(
    signing_key: Annotated[
        Path | None,
        typer.Argument(help="TWINPATH_AUDIT_SIGNING_KEY. Default: the mesh's own."),
    ] = None,
    end: Annotated[
        bool, typer.Option("--end", help="Delete the old key: from now on the new one signs alone.")
    ] = False,
) -> None:
    """Sign checkpoints with a new key; those that the old one signed go on to count.

    1. [bold]twinpath audit rotate-key[/], and start the audit service again: both keys sign.
    2. Give auditors the new public key, the file that ends in .vkey, by a way that they trust.
    3. When they have it: [bold]twinpath audit rotate-key --end[/], and start it again.

    End a key that leaked at once, and verify with a checkpoint from before, kept elsewhere
    (`verify --witness`): whoever has the key can sign another past.
    """
    key = signing_key or home() / "keys" / "audit" / _NAME
    try:
        if end:
            if not end_rotation(key):
                console.show_problem("no rotation", f"only {key} signs")
                raise typer.Exit(1)
            console.out.print(f"the old key is deleted; from the next start on {key} signs alone")
            return
        old, new = rotate(key)
    except (CheckpointError, OSError) as error:
        console.show_problem("not rotated", str(error))
        raise typer.Exit(1) from None
    out = console.out
    out.print("[bold]rotated[/]  from the next start of the audit service on both keys sign")
    out.print(f"  old  {old}", markup=False, soft_wrap=True)
    out.print(f"  new  {new}", markup=False, soft_wrap=True)
    out.print(f"Give auditors {key}.vkey; then end it: twinpath audit rotate-key --end")
