"""Proofs from a running service, checked here with the public key alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.audit.checkpoint import CheckpointError, VerifierKey
from services.audit.checkpoint import verify as verify_note
from services.audit.merkle import (
    ProofError,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from services.cli import client, console
from services.cli.audit import show
from services.cli.audit.offline import Key, load_keys
from twinpath.audit.v1 import audit_pb2, record_pb2


def prove(
    decision: Annotated[str, typer.Argument(help="The decision's id.")] = "",
    leaf: Annotated[int | None, typer.Option("--leaf", help="One leaf, instead.")] = None,
    key: Key = None,
) -> None:
    """Is this record in the log?

    Asks the service for a proof, and checks it here with the public key.
    """
    if bool(decision) == (leaf is not None):
        raise typer.BadParameter("name a decision, or a --leaf", param_hint="DECISION")
    keys = load_keys(key)
    request = audit_pb2.ProveRequest()
    if leaf is not None:
        request.leaf_index = leaf
    else:
        request.decision_id = decision

    async def work(mesh: client.Connection) -> audit_pb2.ProveResponse:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="auditor") as channel:
            answer: audit_pb2.ProveResponse = await audit_pb2_grpc.AuditStub(channel).Prove(request)
            return answer

    answer = client.run("twinpath audit prove", work)
    try:
        _check(answer, keys, decision)
    except (CheckpointError, ProofError) as error:
        console.show_problem("the proof is false", str(error))
        raise typer.Exit(1) from None


def _check(answer: audit_pb2.ProveResponse, keys: list[VerifierKey], decision: str) -> None:
    point = verify_note(answer.checkpoint, keys)
    if not answer.proofs:
        raise ProofError("the service proved nothing")
    for proof in answer.proofs:
        record = record_pb2.Record.FromString(proof.leaf)
        if decision and record.decision_id != decision:
            raise ProofError(f"leaf {proof.leaf_index} is of another decision")
        hashed = leaf_hash(proof.leaf)
        verify_inclusion(proof.leaf_index, point.size, hashed, list(proof.hashes), point.root)
        console.out.print(
            f"[bold green]proven[/]  {show.kind_name(record.kind)} of {record.decision_id} is "
            f"leaf {proof.leaf_index} of {point.size} in {point.origin}"
        )
    console.out.print(answer.checkpoint, style="dim", markup=False, soft_wrap=True)


def grew(
    since: Annotated[Path, typer.Argument(help="A signed checkpoint that was kept earlier.")],
    key: Key = None,
) -> None:
    """Did the log only grow since this checkpoint?

    Keep one with `checkpoint --save`, best where nobody who runs the log can change it.
    """
    keys = load_keys(key)
    try:
        old = verify_note(since.read_text(), keys)
    except (CheckpointError, OSError) as error:
        console.show_problem("the kept checkpoint is no good", str(error))
        raise typer.Exit(2) from None

    async def work(
        mesh: client.Connection,
    ) -> tuple[audit_pb2.CheckpointResponse, audit_pb2.ProveConsistencyResponse]:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="auditor") as channel:
            stub = audit_pb2_grpc.AuditStub(channel)
            now = await stub.Checkpoint(audit_pb2.CheckpointRequest(now=True))
            return now, await stub.ProveConsistency(
                audit_pb2.ProveConsistencyRequest(first_size=old.size, second_size=now.tree_size)
            )

    now, proof = client.run("twinpath audit grew", work)
    try:
        new = verify_note(now.note, keys, old.origin)
        verify_consistency(old.size, new.size, list(proof.hashes), old.root, new.root)
    except (CheckpointError, ProofError) as error:
        console.show_problem("the log did not only grow", str(error))
        raise typer.Exit(1) from None
    console.out.print(
        f"[bold green]proven[/]  {new.origin} grew from {old.size} to {new.size} records, "
        "and changed nothing"
    )


def checkpoint(
    now: Annotated[bool, typer.Option("--now", help="Sign what is there now.")] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Keep it in a file.")] = None,
    key: Key = None,
) -> None:
    """What does the log sign for, and is the signature good?"""
    keys = load_keys(key)

    async def work(mesh: client.Connection) -> audit_pb2.CheckpointResponse:
        from twinpath.audit.v1 import audit_pb2_grpc  # noqa: PLC0415 - heavy

        async with mesh.channel("audit", role="auditor") as channel:
            answer: audit_pb2.CheckpointResponse = await audit_pb2_grpc.AuditStub(
                channel
            ).Checkpoint(audit_pb2.CheckpointRequest(now=now))
            return answer

    answer = client.run("twinpath audit checkpoint", work)
    try:
        verify_note(answer.note, keys)
    except CheckpointError as error:
        console.show_problem("the checkpoint is false", str(error))
        raise typer.Exit(1) from None
    console.out.print(answer.note, end="", markup=False, soft_wrap=True)
    if save is not None:
        save.write_text(answer.note)
