"""What is known about a model, as the contract says it."""

from __future__ import annotations

from collections.abc import Iterable

from services.local.models import READY, WARMING, Known
from services.local.spec import TensorSpec
from twinpath.common.v1 import context_pb2
from twinpath.inference.v1 import inference_pb2, tensor_pb2


def description(known: Known, *, serving: bool) -> inference_pb2.ModelDescription:
    """Return the contract's description of a model; `serving`: it answers who names no version."""
    spec = known.spec
    state, reason = _state(known)
    described = inference_pb2.ModelDescription(
        name=known.name,
        version=known.version,
        path=context_pb2.PATH_LOCAL,
        state=state,
        state_reason=reason,
        artifact_digest=known.artifact.digest,
        serving=serving,
    )
    if spec is not None:
        described.inputs.extend(_tensors(spec.inputs))
        described.outputs.extend(_tensors(spec.outputs))
        described.max_batch_size = spec.max_batch_size
        described.streaming = spec.decoupled
    return described


def _state(known: Known) -> tuple[inference_pb2.ModelState, str]:
    if known.fault:
        return inference_pb2.MODEL_STATE_UNAVAILABLE, known.fault
    if known.serves:
        return inference_pb2.MODEL_STATE_READY, ""
    if known.state == WARMING:
        return inference_pb2.MODEL_STATE_LOADING, "it is being warmed up"
    if known.state in ("LOADING", READY):
        return inference_pb2.MODEL_STATE_LOADING, "it is being loaded"
    return inference_pb2.MODEL_STATE_UNAVAILABLE, known.reason or "it is not loaded"


def _tensors(specs: Iterable[TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    return [tensor_pb2.TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in specs]
