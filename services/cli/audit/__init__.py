"""`twinpath audit …`: an auditor's questions, each one command."""

from __future__ import annotations

import typer

from services.cli.audit import care, offline, parity, proofs, questions, replay

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Who was decided about, by what, from which inputs — and the proof.",
)

_PANELS = {
    "Questions": (
        ("about", questions.about),
        ("by-model", questions.by_model),
        ("egress", questions.egress),
        ("fallbacks", questions.fallbacks),
        ("refusals", questions.refusals),
        ("overrides", questions.overrides),
        ("why", questions.why),
        ("get", questions.get),
        ("replay", replay.replay),
        ("parity", parity.parity),
        ("query", questions.query),
    ),
    "Proofs": (
        ("prove", proofs.prove),
        ("grew", proofs.grew),
        ("verify", offline.verify),
        ("checkpoint", proofs.checkpoint),
    ),
    "Care": (
        ("export", questions.export),
        ("erase", care.erase),
        ("retention", care.retention),
        ("backup", care.backup),
        ("restore", care.restore),
    ),
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands:
        app.command(_name, rich_help_panel=_panel)(_command)
