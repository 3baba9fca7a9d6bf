"""Records as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli import console, render
from services.cli.tracing.tree import duration
from twinpath.audit.v1 import audit_pb2, record_pb2
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference.v1 import tensor_pb2
from twinpath.router.v1 import router_pb2

_STYLES = {
    record_pb2.RECORD_KIND_OUTCOME: "green",
    record_pb2.RECORD_KIND_REFUSED: "yellow",
    record_pb2.RECORD_KIND_FAILED: "red",
    record_pb2.RECORD_KIND_ABANDONED: "red",
    record_pb2.RECORD_KIND_ERASURE: "magenta",
    record_pb2.RECORD_KIND_OVERRIDE: "magenta",
}


def kind_name(kind: int) -> str:
    """`INTENT`, `OUTCOME`, ..."""
    return record_pb2.RecordKind.Name(kind).removeprefix("RECORD_KIND_")


def when(unix_us: int) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(unix_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def lines(records: Iterable[audit_pb2.StoredRecord]) -> None:
    """Print one JSON object a line."""
    for record in records:
        print(json.dumps(MessageToDict(record, preserving_proto_field_name=True)))


def listing(records: Iterable[audit_pb2.StoredRecord]) -> RenderableType:
    """Two lines a record, which fit eighty columns: when, what, by whom; about what, and its id."""
    blocks = []
    for stored in records:
        record = stored.record
        block = Text(f"{stored.leaf_index:>7}  ", style="dim")
        block.append(f"{when(record.record_time_unix_us)}  ", style="not dim")
        kind = f"{kind_name(record.kind):<9}"
        block.append(kind, style=f"not dim {_STYLES.get(record.kind, '')}")
        refs = [_short(ref) for ref in record.candidates]
        block.append(f"  {', '.join(refs)}" if refs else "", style="not dim")
        subject = record.task or f"{record.event.action} {record.event.target}"
        block.append(f"\n{'':9}{subject}  ", style="not dim")
        block.append(record.decision_id)
        notes = _notes(stored)
        block.append(f"  {notes}" if notes else "", style="not dim yellow")
        blocks.append(block)
    return Group(*blocks)


def _short(ref: decision_pb2.CandidateRef) -> str:
    vendor = f" ({ref.provider})" if ref.provider else ""
    return f"{render.path_name(ref.path)} {ref.model} v{ref.version}{vendor}"


def _notes(stored: audit_pb2.StoredRecord) -> str:
    record = stored.record
    rules: set[str] = set()
    if record.kind == record_pb2.RECORD_KIND_REFUSED:
        rules = {refusal.rule for entry in record.plan.entries for refusal in entry.refusals}
    found = [
        name
        for name, holds in (
            ("fallback", record.fallback),
            ("cached", record.cached),
            ("replay", bool(record.replay_of)),
            ("subject erased", stored.erased),
            (record.reason, bool(record.reason)),
            (f"by {', '.join(sorted(rules))}", any(rules)),
            (f"arm {record.arm}", bool(record.arm)),
        )
        if holds
    ]
    return ", ".join(found)


def detail(stored: audit_pb2.StoredRecord) -> RenderableType:
    """Everything that one record says, but the plan."""
    record = stored.record
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    title = Text(f"{kind_name(record.kind)}  leaf {stored.leaf_index}", style="bold")
    table.add_row("decision", record.decision_id)
    table.add_row("recorded", when(record.record_time_unix_us))
    for name, value in (
        ("task", record.task),
        ("caller", " ".join(filter(None, (record.caller.tenant, record.caller.identity)))),
        ("purpose", record.caller.purpose),
        ("trace", record.trace_id),
        ("reason", record.reason),
        ("input HMAC", record.input_hmac.hex()),
        ("output HMAC", record.output_hmac.hex()),
        ("filters", ", ".join(record.filters_applied)),
        ("replay of", record.replay_of),
        ("notes", _notes(stored)),
    ):
        if value:
            table.add_row(name, value)
    if record.data_class:
        table.add_row("data class", render.data_class_name(record.data_class))
    if record.subject:
        erased = "  (erased: this means nobody any more)" if stored.erased else ""
        table.add_row("subject", f"{record.subject}{erased}")
    for ref in record.candidates:
        word = "answered by" if record.kind == record_pb2.RECORD_KIND_OUTCOME else "may call"
        table.add_row(word, render.candidate(ref))
    for number, attempt in enumerate(record.attempts, 1):
        table.add_row(f"attempt {number}", attempt_line(attempt, wire="wire HMAC"))
    lineage = record.lineage
    if lineage.feature_service:
        views = ", ".join(view.view for view in lineage.views)
        table.add_row("features", f"{lineage.feature_service}: {views}")
    if lineage.code_version or lineage.catalog_version:
        table.add_row("versions", f"code {lineage.code_version}, catalog {lineage.catalog_version}")
    if stored.HasField("payload"):
        for name, value in _opened(stored.payload):
            table.add_row(name, value)
    if record.HasField("event"):
        event = record.event
        table.add_row("done", f"{event.action} on {event.target} by {event.actor}: {event.reason}")
        for name, text in sorted(event.details.items()):
            table.add_row(name.replace("_", " "), text)
    if stored.HasField("payload"):
        payload = stored.payload
        sizes = f"model input {len(payload.model_input)} bytes, reply {len(payload.reply)} bytes"
        table.add_row("payload", sizes)
    return Group(title, table)


def _opened(payload: audit_pb2.Payload) -> Iterable[tuple[str, str]]:
    """What a payload holds, for those who may see it."""
    try:
        found = tensor_pb2.ModelInput.FromString(payload.model_input).tensors
        reply = router_pb2.InferResponse.FromString(payload.reply)
    except DecodeError:  # of another version of the contracts: the bytes are there all the same
        yield "payload", f"{payload.ByteSize()} bytes that this version can't read"
        return
    yield from (("input", render.tensor(tensor)) for tensor in found)
    yield from (("output", render.tensor(tensor)) for tensor in reply.outputs)
    for number, attempt in enumerate(reply.attempts, 1):
        if attempt.wire_digest:  # the record itself has an HMAC of it
            yield f"body {number}", f"SHA-256 {attempt.wire_digest.hex()}"


def egress(stored: audit_pb2.StoredRecord) -> RenderableType:
    """What a decision sent out: to whom, how much, of which class, for what, by which rule."""
    record, plan = stored.record, stored.record.plan
    ranks = {entry.candidate.id: entry.rank for entry in plan.entries}
    block = Text(f"{stored.leaf_index:>7}  ", style="dim")
    block.append(f"{when(record.record_time_unix_us)}  {record.task}", style="not dim")
    block.append(f"\n{'':9}{record.decision_id}", style="not dim")
    if record.kind != record_pb2.RECORD_KIND_OUTCOME:
        block.append(f"  {kind_name(record.kind)}", style="not dim yellow")
    if record.replay_of:
        block.append(f"\n{'':9}a replay of {record.replay_of}", style="not dim yellow")
    sent = [one for one in record.attempts if one.candidate.path == context_pb2.PATH_REMOTE]
    for attempt in sent:
        ref = attempt.candidate
        block.append(f"\n{'':9}to {ref.provider} ({ref.region or 'no region'})", "not dim magenta")
        block.append(f"  {attempt.bytes_out} bytes for {ref.model} v{ref.version}", "not dim")
        if attempt.code:
            block.append(f", which failed: {attempt.reason}", "not dim red")
        block.append(f"\n{'':9}wire HMAC {attempt.wire_digest.hex() or 'not known'}")
        rules = ", ".join(plan.policy_rules) or "no rule"
        admitted = f"policy {plan.policy_version} admitted it at rank {ranks.get(ref.id, 0)}"
        block.append(f"\n{'':9}{admitted}: it passed {rules}")
    if not sent:  # an INTENT that never saw its end: bytes may have gone
        for ref in record.candidates:
            block.append(f"\n{'':9}perhaps to {_short(ref)}", "not dim yellow")
    facts = f"{render.data_class_name(record.data_class)} data, asked by {record.caller.identity}"
    if record.caller.purpose:
        facts += f" for {record.caller.purpose}"
    block.append(f"\n{'':9}{facts}\n")
    return block


def attempt_line(attempt: decision_pb2.Attempt, wire: str = "wire") -> Text:
    """An attempt in one line: who, how it went, how long, what left.

    `wire` says what its wire digest is: a record's is an HMAC.
    """
    line = render.candidate(attempt.candidate)
    ok = attempt.code == 0
    line.append("  ok" if ok else f"  {attempt.reason or 'failed'}", "green" if ok else "red")
    line.append(f"  {duration(attempt.latency_us)}")
    if attempt.candidate.path == context_pb2.PATH_REMOTE:
        line.append(f"  {attempt.bytes_out} bytes out")
        if attempt.wire_digest:
            line.append(f"  {wire} {attempt.wire_digest.hex()[:16]}…", "dim")
    if attempt.reported_version not in {"", attempt.candidate.version}:
        line.append(f"  says it is {attempt.reported_version}", "dim")
    return line


def print_records(records: list[audit_pb2.StoredRecord], *, as_json: bool, more: bool) -> None:
    """Print a list of records, and say if there are more."""
    if as_json:
        lines(records)
        return
    if not records:
        console.out.print("no record fits", style="dim")
        return
    console.out.print(listing(records))
    if more:
        console.out.print("there are more: --limit shows them, `export` takes all", style="dim")
