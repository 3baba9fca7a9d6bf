"""Point 5: one decision, one trace, every process."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from services.cli.demo.evidence import Evidence
from services.cli.demo.stage import DIABETES, Stage, patiently
from services.cli.tracing.spans import Span
from services.cli.tracing.tree import services, tree
from twinpath.common.v1 import context_pb2

_EXPECTED = {
    "twinpath-cli",
    "twinpath-router",
    "twinpath-features",
    "twinpath-local",
    "twinpath-remote",
    "twinpath-audit",
    "triton",
    "standin-vendor",
}


async def one_trace(stage: Stage, evidence: Evidence) -> None:
    """Let the vendor fail once, so that one decision tries both paths, and draw its trace."""
    await stage.until_answered(DIABETES, context_pb2.PATH_REMOTE)
    await stage.until_first(DIABETES, context_pb2.PATH_REMOTE)
    await stage.faults({"fault": "error;status=503"})
    try:
        reply = await stage.infer(DIABETES)
    finally:
        await stage.faults()
    collector = stage.mesh.collector
    if collector is None:
        where = stage.mesh.wiring.otlp_endpoint
        evidence.show(Text(f"spans went to {where}: look for trace {reply.trace_id} there"))
        evidence.check(bool(reply.trace_id), f"the decision has trace {reply.trace_id}")
        return

    asked = 0

    async def complete() -> bool:
        nonlocal asked
        asked += 1
        if asked % 10 == 0:  # Triton keeps the spans of its last request until the next one comes
            await stage.infer(DIABETES, only_path=context_pb2.PATH_LOCAL)
        spans = collector.spans.trace(reply.trace_id)
        return set(services(spans)) >= _EXPECTED and _hang_together(spans)

    await patiently(complete)
    spans = collector.spans.trace(reply.trace_id)
    there = set(services(spans))
    evidence.show(tree(spans))
    evidence.check(
        there >= _EXPECTED,
        f"{len(spans)} spans of {len(there)} processes"
        + (f"; missing: {', '.join(sorted(_EXPECTED - there))}" if _EXPECTED - there else ""),
    )
    evidence.check(
        any(s.service == "twinpath-features" and is_redis(s) for s in spans),
        "the feature store's own read is in it",
    )
    evidence.check(
        any(s.service == "triton" for s in spans), "Triton's own spans joined the caller's trace"
    )
    evidence.check(_hang_together(spans), "one root, and every span hangs below it")


def is_redis(span: Span) -> bool:
    """Whether a span is a call of the Redis protocol."""
    names = ("db.system", "db.system.name")
    return any(str(span.attributes.get(name, "")).startswith("redis") for name in names)


def _hang_together(spans: Sequence[Span]) -> bool:
    known = {span.span_id for span in spans}
    return sum(span.parent_id not in known for span in spans) == 1
