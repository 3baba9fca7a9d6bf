from google.rpc import status_pb2 as _status_pb2
from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import decision_pb2 as _decision_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.inference.v1 import grant_pb2 as _grant_pb2
from twinpath.inference.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CONTENT_FILTER: _ClassVar[FinishReason]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_UNAVAILABLE: _ClassVar[ModelState]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CONTENT_FILTER: FinishReason
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_UNAVAILABLE: ModelState

class InferRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[InferItem]
    def __init__(self, items: _Optional[_Iterable[_Union[InferItem, _Mapping]]] = ...) -> None: ...

class InferItem(_message.Message):
    __slots__ = ("context", "model", "version", "provider", "input", "grant", "decision_id")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    context: _context_pb2.ItemContext
    model: str
    version: str
    provider: str
    input: _tensor_pb2.ModelInput
    grant: _grant_pb2.Grant
    decision_id: str
    def __init__(self, context: _Optional[_Union[_context_pb2.ItemContext, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., provider: _Optional[str] = ..., input: _Optional[_Union[_tensor_pb2.ModelInput, _Mapping]] = ..., grant: _Optional[_Union[_grant_pb2.Grant, _Mapping]] = ..., decision_id: _Optional[str] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[InferResult]
    def __init__(self, results: _Optional[_Iterable[_Union[InferResult, _Mapping]]] = ...) -> None: ...

class InferResult(_message.Message):
    __slots__ = ("id", "status", "outputs", "metering", "finish_reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    METERING_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: _status_pb2.Status
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    metering: Metering
    finish_reason: FinishReason
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., metering: _Optional[_Union[Metering, _Mapping]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ...) -> None: ...

class Metering(_message.Message):
    __slots__ = ("reported_version", "artifact_digest", "latency_us", "queue_us", "compute_us", "bytes_out", "bytes_in", "cost", "wire_digest", "renderer_version", "input_tokens", "output_tokens", "first_chunk_us", "sent")
    REPORTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    WIRE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RENDERER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_US_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    reported_version: str
    artifact_digest: bytes
    latency_us: int
    queue_us: int
    compute_us: int
    bytes_out: int
    bytes_in: int
    cost: _decision_pb2.Cost
    wire_digest: bytes
    renderer_version: str
    input_tokens: int
    output_tokens: int
    first_chunk_us: int
    sent: bool
    def __init__(self, reported_version: _Optional[str] = ..., artifact_digest: _Optional[bytes] = ..., latency_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., bytes_out: _Optional[int] = ..., bytes_in: _Optional[int] = ..., cost: _Optional[_Union[_decision_pb2.Cost, _Mapping]] = ..., wire_digest: _Optional[bytes] = ..., renderer_version: _Optional[str] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., first_chunk_us: _Optional[int] = ..., sent: _Optional[bool] = ...) -> None: ...

class InferStreamRequest(_message.Message):
    __slots__ = ("item",)
    ITEM_FIELD_NUMBER: _ClassVar[int]
    item: InferItem
    def __init__(self, item: _Optional[_Union[InferItem, _Mapping]] = ...) -> None: ...

class InferStreamResponse(_message.Message):
    __slots__ = ("chunk", "final", "failed")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    chunk: InferChunk
    final: InferResult
    failed: InferResult
    def __init__(self, chunk: _Optional[_Union[InferChunk, _Mapping]] = ..., final: _Optional[_Union[InferResult, _Mapping]] = ..., failed: _Optional[_Union[InferResult, _Mapping]] = ...) -> None: ...

class InferChunk(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelDescription]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelDescription, _Mapping]]] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("name", "version", "path", "provider", "state", "state_reason", "inputs", "outputs", "artifact_digest", "max_batch_size", "streaming", "region", "serving", "bulk")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    BULK_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    path: _context_pb2.Path
    provider: str
    state: ModelState
    state_reason: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    artifact_digest: bytes
    max_batch_size: int
    streaming: bool
    region: str
    serving: bool
    bulk: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., path: _Optional[_Union[_context_pb2.Path, str]] = ..., provider: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_reason: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., artifact_digest: _Optional[bytes] = ..., max_batch_size: _Optional[int] = ..., streaming: _Optional[bool] = ..., region: _Optional[str] = ..., serving: _Optional[bool] = ..., bulk: _Optional[bool] = ...) -> None: ...
