"""`twinpath`: a client of the mesh, and the launcher of the whole mesh on one machine."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import typer
import typer.core
import typer.main

# Commands that stand in modules of their own, imported only when they are asked for.
_LAZY = {
    "up": ("services.cli.operate", "up"),
    "demo": ("services.cli.operate", "demo"),
    "trace": ("services.cli.operate", "trace"),
    "infer": ("services.cli.decide", "infer"),
    "explain": ("services.cli.decide", "explain"),
    "tasks": ("services.cli.decide", "tasks"),
    "jobs": ("services.cli.jobs", "app"),
    "path": ("services.cli.path", "app"),
    "features": ("services.cli.features", "app"),
    "audit": ("services.cli.audit", "app"),
    "models": ("services.cli.models", "app"),
    "providers": ("services.cli.providers", "app"),
    "drill": ("services.cli.drill.app", "drill"),
}


class LazyGroup(typer.core.TyperGroup):
    """A group whose commands are imported when they are used.

    Any, because typer brings its own copy of click in some versions and takes click in others.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands whose modules are there."""
        del ctx
        return [name for name, (module, _) in _LAZY.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, attribute = _LAZY[cmd_name]
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            command = typer.main.get_command(found)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode="rich")
            single.command(cmd_name)(found)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="One model question, two paths: ask it, see the plan, prove the record.",
)


@app.callback()
def _root() -> None:
    """One model question, two paths: ask it, see the plan, prove the record."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
