"""Point 4: the log proves itself offline, and one flipped byte is found."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from rich.text import Text

from services.audit.checkpoint import CheckpointError, VerifierKey
from services.audit.checkpoint import verify as verify_note
from services.audit.merkle import ProofError, leaf_hash, verify_inclusion
from services.audit.verify import Report, verify_directory
from services.cli.demo.evidence import Evidence
from services.cli.demo.stage import DIABETES, Stage
from twinpath.audit.v1 import audit_pb2, record_pb2


async def proof(stage: Stage, evidence: Evidence) -> None:
    """Prove one decision to somebody who has nothing but the public key."""
    reply = await stage.infer(DIABETES)
    answer = await stage.audit.Prove(audit_pb2.ProveRequest(leaf_index=reply.leaf_index))
    await stage.audit.Checkpoint(audit_pb2.CheckpointRequest(now=True))
    description = stage.mesh.layout
    keys = [
        VerifierKey.parse(line)
        for line in (description.keys / "audit" / "checkpoints.key.vkey").read_text().splitlines()
    ]
    found = answer.proofs[0]
    record = record_pb2.Record.FromString(found.leaf)
    evidence.show(_record(found, record))
    evidence.check(
        record.decision_id == reply.decision_id and record.kind == record_pb2.RECORD_KIND_OUTCOME,
        f"leaf {found.leaf_index} is the OUTCOME of decision {reply.decision_id}",
    )
    evidence.check(
        _included(found, answer.checkpoint, keys),
        f"{len(found.hashes)} hashes lead from it to the root of a checkpoint over "
        f"{found.tree_size} records, signed by {keys[0].name}",
    )
    with tempfile.TemporaryDirectory(prefix="twinpath-copy-") as folder:
        copy = Path(folder) / "log"
        shutil.copytree(description.audit / "log", copy)
        report = await asyncio.to_thread(verify_directory, copy, keys)
        evidence.check(
            report.ok,
            f"a copy of the log verifies offline: {report.size} records, "
            f"{report.checkpoints} signed checkpoints" + _first(report),
        )
        file, at = _flip_a_byte(copy, found.leaf)
        broken = await asyncio.to_thread(verify_directory, copy, keys)
        evidence.check(
            not broken.ok,
            f"one bit flipped at byte {at} of {file}, and the verifier finds it" + _first(broken),
        )


def _included(found: audit_pb2.InclusionProof, note: str, keys: list[VerifierKey]) -> bool:
    """Check a proof against a signed checkpoint, with nothing else to believe."""
    try:
        checkpoint = verify_note(note, keys)
        verify_inclusion(
            found.leaf_index,
            checkpoint.size,
            leaf_hash(found.leaf),
            list(found.hashes),
            checkpoint.root,
        )
    except (CheckpointError, ProofError):
        return False
    return checkpoint.size == found.tree_size


def _flip_a_byte(log: Path, leaf: bytes) -> tuple[str, int]:
    """Flip the last bit in the middle of a record, wherever it lies in a log's copy."""
    for file in sorted(log.iterdir()):
        data = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        start = data.find(leaf)
        if start >= 0:
            at = start + len(leaf) // 2
            data[at] ^= 1
            file.write_bytes(data)
            return file.name, at
    raise LookupError("the record is in no file of the log")


def _first(report: Report) -> str:
    return f" — {report.first}" if report.first is not None else ""


def _record(found: audit_pb2.InclusionProof, record: record_pb2.Record) -> Text:
    kind = record_pb2.RecordKind.Name(record.kind).removeprefix("RECORD_KIND_")
    model = ", ".join(f"{ref.model} v{ref.version}" for ref in record.candidates)
    subject = f"subject {record.subject[:12]}…" if record.subject else "no subject"
    return Text.assemble(
        (f"leaf {found.leaf_index}  ", "dim"),
        (kind, "bold"),
        f"  {record.task}  {model}  {subject}  input HMAC {record.input_hmac.hex()[:12]}…",
    )
