"""`twinpath audit …`: an auditor's questions, each one command."""

from __future__ import annotations

import typer

from services.cli.audit import care, offline, parity, proofs, questions, replay, rotation, tiles

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Who was decided about, by what, from which inputs — and the proof.",
    epilog="Each takes --since and --until where time matters, and --json for other programs. "
    "`verify`, `backup` and `restore` need the log's folder and no running mesh.",
)

_PANELS = {
    "Who was decided about, by what, and why?": (
        ("about", questions.about),
        ("by-model", questions.by_model),
        ("why", questions.why),
        ("get", questions.get),
        ("query", questions.query),
    ),
    "What was out of the ordinary?": (
        ("egress", questions.egress),
        ("fallbacks", questions.fallbacks),
        ("refusals", questions.refusals),
        ("overrides", questions.overrides),
    ),
    "Would it be decided so again?": (
        ("replay", replay.replay),
        ("parity", parity.parity),
    ),
    "Can I believe the log?": (
        ("prove", proofs.prove),
        ("grew", proofs.grew),
        ("verify", offline.verify),
        ("checkpoint", proofs.checkpoint),
        ("tiles", tiles.tiles),
    ),
    "Hand over, keep, forget": (
        ("export", questions.export),
        ("backup", care.backup),
        ("restore", care.restore),
        ("rotate-key", rotation.rotate_key),
        ("retention", care.retention),
        ("erase", care.erase),
    ),
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands:
        app.command(_name, rich_help_panel=_panel)(_command)
