"""Decisions, plans and tasks as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli.tracing.tree import duration
from twinpath.common.v1 import context_pb2, decision_pb2
from twinpath.inference import tensors
from twinpath.inference.v1 import inference_pb2, tensor_pb2
from twinpath.router.v1 import router_pb2

_MANY = 8
_NANOS = 1_000_000_000
_PATH_STYLE = {context_pb2.PATH_LOCAL: "green", context_pb2.PATH_REMOTE: "magenta"}


def path_name(path: int) -> str:
    """`local` or `remote`."""
    return context_pb2.Path.Name(path).removeprefix("PATH_").lower()


def data_class_name(data_class: int) -> str:
    """`internal`, `restricted`, ..."""
    return context_pb2.DataClass.Name(data_class).removeprefix("DATA_CLASS_").lower()


def candidate(ref: decision_pb2.CandidateRef) -> Text:
    """A candidate in one line: path, model, version, vendor."""
    line = Text(path_name(ref.path), style=_PATH_STYLE.get(ref.path, ""))
    line.append(f"  {ref.model} v{ref.version}", style="bold")
    if ref.provider:
        line.append(f"  at {ref.provider} ({ref.region or 'no region'})", style="dim")
    return line


def cost(amount: decision_pb2.Cost | None) -> str:
    """An amount with what it is known from; `not known` without one."""
    if amount is None or not amount.currency_code:
        return "not known"
    basis = decision_pb2.CostBasis.Name(amount.basis).removeprefix("COST_BASIS_").lower()
    return f"{amount.nanos / _NANOS:.7f} {amount.currency_code} ({basis})"


def tensor(value: tensor_pb2.Tensor) -> str:
    """A tensor's name and its values, the first few of many."""
    flat = tensors.to_numpy(value).reshape(-1)
    shown = [_number(item) for item in flat[:_MANY].tolist()]
    more = f", … {flat.size} values" if flat.size > _MANY else ""
    text = ", ".join(shown) + more
    return f"{value.name} = {text}" if flat.size == 1 else f"{value.name} = [{text}]"


def _number(item: object) -> str:
    if isinstance(item, float):
        return f"{item:.6g}"
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def decision(reply: router_pb2.InferResponse) -> RenderableType:
    """One decision: the outputs first, then who, when, how much, and where to look further."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for output in reply.outputs:
        table.add_row("output", Text(tensor(output), style="bold"))
    table.add_row("answered by", candidate(reply.answered_by))
    table.add_row("latency", duration(reply.latency_us))
    table.add_row("cost", cost(reply.cost if reply.HasField("cost") else None))
    if reply.input_digest:
        table.add_row("input digest", reply.input_digest.hex())
    table.add_row("decision", f"{reply.decision_id}  (leaf {reply.leaf_index})")
    if reply.trace_id:
        table.add_row("trace", reply.trace_id)
    for name in ("repeated", "fallback", "cached", "catalog_stale"):
        if getattr(reply, name):
            table.add_row("note", Text(_NOTES[name], style="yellow"))
    if reply.finish_reason == inference_pb2.FINISH_REASON_LENGTH:
        table.add_row("note", Text("the answer is cut: the length limit was met", style="yellow"))
    for line in _handling(reply.feature_handling):
        table.add_row("feature", line)
    if reply.filters_applied:
        table.add_row("filters", Text(", ".join(reply.filters_applied)))
    for number, attempt in enumerate(reply.attempts, start=1):
        if len(reply.attempts) > 1 or attempt.code:
            table.add_row(f"attempt {number}", _attempt(attempt))
    return table


_NOTES = {
    "repeated": "this decision was made before, for the same idempotency key",
    "fallback": "the first candidate of the plan did not answer; another did",
    "cached": "the response cache answered",
    "catalog_stale": "decided on the last good catalog; the newest can't be read",
}


def _attempt(attempt: decision_pb2.Attempt) -> Text:
    kind = decision_pb2.AttemptKind.Name(attempt.kind).removeprefix("ATTEMPT_KIND_").lower()
    line = Text(f"{kind}: ")
    line.append_text(candidate(attempt.candidate))
    line.append(f"  {duration(attempt.latency_us)}  ")
    ok = attempt.code == 0
    line.append("ok" if ok else attempt.reason or "failed", style="green" if ok else "red")
    return line


def _handling(items: Iterable[decision_pb2.FeatureHandling]) -> Iterable[Text]:
    for item in items:
        status = decision_pb2.FeatureStatus.Name(item.status).removeprefix("FEATURE_STATUS_")
        action = decision_pb2.FeatureAction.Name(item.action).removeprefix("FEATURE_ACTION_")
        yield Text(f"{item.feature} was {status.lower()}: {action.lower()}", style="yellow")


def plan(value: decision_pb2.Plan) -> RenderableType:
    """A plan: who is tried in which order, and who is not and why."""
    table = Table(title="plan", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("candidate")
    table.add_column("predicted", justify="right")
    table.add_column("why not")
    for entry in value.entries:
        reasons = Text("\n").join(
            Text.assemble((refusal.rule, "bold"), f"  {refusal.message}")
            for refusal in entry.refusals
        )
        predicted = duration(entry.predicted_p50_us) if entry.predicted_p50_us else "—"
        rank = str(entry.rank) if entry.rank else Text("refused", style="red")
        table.add_row(rank, candidate(entry.candidate), predicted, reasons)
    facts = f"data class {data_class_name(value.data_class)}, policy {value.policy_version}"
    return Group(table, Text(facts, style="dim"))


def input_facts(reply: router_pb2.ExplainResponse) -> RenderableType:
    """What would be sent, as far as people may see it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if reply.input_digest:
        table.add_row("input digest", reply.input_digest.hex())
    for line in _handling(reply.feature_handling):
        table.add_row("feature", line)
    if reply.filters_applied:
        table.add_row("filters", Text(", ".join(reply.filters_applied)))
    lineage = reply.lineage
    if lineage.feature_service:
        views = ", ".join(view.view for view in lineage.views)
        table.add_row("features", f"{lineage.feature_service}: {views}")
    table.add_row("contract", f"v{lineage.contract_version}, catalog {lineage.catalog_version}")
    return table


def tasks(reply: router_pb2.DescribeResponse) -> RenderableType:
    """Every task in a few lines."""
    blocks: list[RenderableType] = []
    for task in reply.tasks:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("data class", data_class_name(task.data_class))
        table.add_row("entity", ", ".join(task.entity) or "—")
        table.add_row("fields", ", ".join(task.fields) or "—")
        table.add_row("features", task.feature_service or "—")
        table.add_row("inputs", ", ".join(_spec(spec) for spec in task.inputs))
        table.add_row("outputs", ", ".join(_spec(spec) for spec in task.outputs))
        for position, ref in enumerate(task.candidates, start=1):
            table.add_row(f"candidate {position}", candidate(ref))
        blocks += [Text(task.name, style="bold"), Text(task.summary), table, Text("")]
    blocks.append(Text(f"catalog {reply.catalog_version}", style="dim"))
    return Group(*blocks)


def _spec(spec: tensor_pb2.TensorSpec) -> str:
    return f"{spec.name} {tensors.datatype_name(spec.datatype)}{list(spec.shape)}"
