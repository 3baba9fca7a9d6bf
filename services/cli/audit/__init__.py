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

_QUESTIONS = "Questions"
_PROOFS = "Proofs"
_CARE = "Care"

for _name, _command in (
    ("get", questions.get),
    ("why", questions.why),
    ("about", questions.about),
    ("by-model", questions.by_model),
    ("egress", questions.egress),
    ("fallbacks", questions.fallbacks),
    ("overrides", questions.overrides),
    ("refusals", questions.refusals),
    ("replay", replay.replay),
    ("parity", parity.parity),
    ("query", questions.query),
    ("export", questions.export),
):
    app.command(_name, rich_help_panel=_QUESTIONS)(_command)
for _name, _proof in (
    ("verify", offline.verify),
    ("prove", proofs.prove),
    ("grew", proofs.grew),
    ("checkpoint", proofs.checkpoint),
):
    app.command(_name, rich_help_panel=_PROOFS)(_proof)
for _name, _job in (
    ("erase", care.erase),
    ("retention", care.retention),
    ("backup", care.backup),
    ("restore", care.restore),
):
    app.command(_name, rich_help_panel=_CARE)(_job)
