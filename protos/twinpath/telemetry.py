"""The names of Twinpath's own span attributes, spans and metrics: one registry.

They are a contract like the messages: people read them in Jaeger, dashboards and alerts compare
them. RPC, database and GenAI attributes follow OpenTelemetry's conventions and are not here.
"""

from __future__ import annotations

# Span attributes.
DECISION_ID = "twinpath.decision_id"
TASK = "twinpath.task"
PATH = "twinpath.path"
CANDIDATE = "twinpath.candidate"
MODEL = "twinpath.model"
MODEL_VERSION = "twinpath.model.version"
PROVIDER = "twinpath.provider"
# Not set for restricted data: a digest of guessable data confirms a guess.
INPUT_DIGEST = "twinpath.input.digest"
DATA_CLASS = "twinpath.data_class"
POLICY_VERSION = "twinpath.policy.version"
ATTEMPT_KIND = "twinpath.attempt.kind"
FALLBACK = "twinpath.fallback"
REFUSED_RULE = "twinpath.refused.rule"
BATCH_SIZE = "twinpath.batch.size"
COST_NANOS = "twinpath.cost.nanos"

# Spans inside the router, one for each step of a decision's way, and for each item of a batch.
SPAN_ITEM = "router.item"
SPAN_ENRICH = "router.enrich"
SPAN_ASSEMBLE = "router.assemble"
SPAN_PLAN = "router.plan"
SPAN_ATTEMPT = "router.attempt"
SPAN_RECORD = "router.record"

# The remote service's span around one attempt at a vendor.
SPAN_VENDOR = "remote.vendor"
# Its span around a request about a batch: a file, the batch's state.
SPAN_BULK = "remote.bulk"

# Span inside the local path: one call of Triton.
SPAN_TRITON = "local.triton"
