"""`twinpath audit verify`: needs a copy of the log and the public key, and no service."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from services.audit import verify as verifier
from services.audit.checkpoint import CheckpointError, VerifierKey
from services.audit.filesystem import OsFileSystem
from services.audit.merkle import ProofError
from services.audit.signing import read_verifiers
from services.cli import console
from services.cli.description import MeshNotRunningError, home, read
from twinpath.audit.v1 import record_pb2

Key = Annotated[
    list[Path] | None,
    typer.Option("--key", help="File with verifier keys, one a line; may stand again."),
]


def default_keys() -> list[Path]:
    """Return the mesh's own verifier keys; a real auditor brings them from elsewhere."""
    try:
        named = read(home() / "run").audit_keys
    except MeshNotRunningError:
        named = ""
    # Beside the key that signs now lie the public halves of those before it.
    folder = Path(named).parent if named else home() / "keys" / "audit"
    return sorted(folder.glob("*.vkey"))


def load_keys(files: list[Path] | None) -> list[VerifierKey]:
    """Read verifier keys from files, by default the mesh's own; exits with 2 if there are none."""
    try:
        keys = [key for file in files or default_keys() for key in read_verifiers(file)]
    except (CheckpointError, OSError) as error:
        console.show_problem("a key can't be read", str(error))
        raise typer.Exit(2) from None
    if not keys:
        console.show_problem("no verifier key", "Say whose signature counts: --key FILE")
        raise typer.Exit(2)
    return keys


def log_folder(directory: Path | None) -> Path:
    """Return the folder with the segments, given it or the one above it; exits with 2."""
    top = directory or home() / "audit"
    for folder in (top / "log", top):
        if folder.is_dir() and any(folder.glob("*.seg")):
            return folder
    console.show_problem("no log there", f"{top} holds no segments of an audit log")
    raise typer.Exit(2)


def verify(
    directory: Annotated[
        Path | None, typer.Argument(help="The log, or a copy of it. Default: the mesh's own.")
    ] = None,
    key: Key = None,
    decision: Annotated[
        str, typer.Option("--decision", help="Prove that this decision is in the log.")
    ] = "",
    witness: Annotated[
        list[Path] | None,
        typer.Option("--witness", help="A signed checkpoint kept elsewhere; may stand again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Is this copy of the log whole, without asking any service?

    Recomputes everything. Exits with 1 and names the first record that breaks. A log that was
    rolled back together with its own checkpoints is only found with one from elsewhere: --witness.
    """
    folder, keys = log_folder(directory), load_keys(key)
    notes = [file.read_text() for file in witness or ()]
    wanted: list[int] = []
    visit = None
    if decision:
        needle = decision.encode()

        def visit(index: int, leaf: bytes) -> None:
            if needle in leaf and record_pb2.Record.FromString(leaf).decision_id == decision:
                wanted.append(index)

    start = time.monotonic()
    files = OsFileSystem(folder, exclusive=False)
    with console.err.status(f"verifying {folder}"):
        report = verifier.verify_log(files, keys, witnessed=notes, visit=visit)
    files.close()
    took = time.monotonic() - start
    proofs, problem = _proofs(report, decision, wanted)
    if as_json:
        print(json.dumps(_as_dict(report, proofs, problem)))
    else:
        _show(report, folder, took)
        for index, hashes in proofs.items():
            _show_proof(report, index, hashes)
        if problem:
            console.show_problem("not proven", problem)
    if not report.ok or problem:
        raise typer.Exit(1)


def _proofs(
    report: verifier.Report, decision: str, leaves: list[int]
) -> tuple[dict[int, list[bytes]], str]:
    """Return a checked proof for each leaf, or why there is none."""
    if not decision:
        return {}, ""
    if not leaves:
        return {}, f"no record of decision {decision} can be read in this log"
    try:
        return {leaf: verifier.prove_inclusion(report, leaf) for leaf in leaves}, ""
    except ProofError as error:
        return {}, str(error)


def _show(report: verifier.Report, folder: Path, took: float) -> None:
    out = console.out
    if report.ok:
        out.print(f"[bold green]verified[/]  {report.size} records in {folder}  ({took:.1f} s)")
    else:
        out.print(f"[bold red]broken[/]  {folder}")
        first = report.first
        for found in report.breaks:
            out.print(f"  [red]{'first: ' if found is first else ''}{found}[/]")
        out.print(f"  {report.size} records can be read from the start")
    if report.last is not None:
        out.print(
            f"  {report.checkpoints} signed checkpoints hold; the last covers {report.last.size} "
            f"records of {report.last.origin}"
        )
        out.print(f"  root {report.last.root.hex()}", style="dim")
    if report.ok and report.unsigned:
        out.print(f"  {report.unsigned} records came after it and are not signed yet")


def _show_proof(report: verifier.Report, index: int, hashes: list[bytes]) -> None:
    assert report.last is not None
    out = console.out
    out.print(
        f"[bold green]proven[/]  record {index} is in the log of {report.last.size}: "
        f"{len(hashes)} hashes lead from it to the signed root"
    )
    out.print(f"  leaf  {report.tree.leaf(index).hex()}", style="dim")
    for hashed in hashes:
        out.print(f"        {hashed.hex()}", style="dim")
    out.print(f"  root  {report.last.root.hex()}", style="dim")


def _as_dict(
    report: verifier.Report, proofs: dict[int, list[bytes]], problem: str
) -> dict[str, object]:
    first = report.first
    return {
        "ok": report.ok and not problem,
        "records": report.size,
        "root": report.root.hex(),
        "checkpoints": report.checkpoints,
        "signed_records": report.last.size if report.last else 0,
        "first_break": {"record": first.index, "what": first.what} if first else None,
        "breaks": [{"record": found.index, "what": found.what} for found in report.breaks],
        "proofs": [
            {"record": index, "hashes": [hashed.hex() for hashed in hashes]}
            for index, hashes in proofs.items()
        ],
        "problem": problem,
    }
