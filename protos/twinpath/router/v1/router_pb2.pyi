from google.rpc import status_pb2 as _status_pb2
from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import decision_pb2 as _decision_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.common.v1 import value_pb2 as _value_pb2
from twinpath.inference.v1 import inference_pb2 as _inference_pb2
from twinpath.inference.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplayPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLAY_PATH_UNSPECIFIED: _ClassVar[ReplayPath]
    REPLAY_PATH_RECORDED: _ClassVar[ReplayPath]
    REPLAY_PATH_OTHER: _ClassVar[ReplayPath]
    REPLAY_PATH_LOCAL: _ClassVar[ReplayPath]
    REPLAY_PATH_REMOTE: _ClassVar[ReplayPath]
REPLAY_PATH_UNSPECIFIED: ReplayPath
REPLAY_PATH_RECORDED: ReplayPath
REPLAY_PATH_OTHER: ReplayPath
REPLAY_PATH_LOCAL: ReplayPath
REPLAY_PATH_REMOTE: ReplayPath

class InferRequest(_message.Message):
    __slots__ = ("task", "entity", "fields", "idempotency_key", "purpose", "data_class", "priority", "only_path", "residency", "consents", "include_plan")
    class EntityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _value_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_value_pb2.Value, _Mapping]] = ...) -> None: ...
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _value_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_value_pb2.Value, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ONLY_PATH_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    CONSENTS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PLAN_FIELD_NUMBER: _ClassVar[int]
    task: str
    entity: _containers.MessageMap[str, _value_pb2.Value]
    fields: _containers.MessageMap[str, _value_pb2.Value]
    idempotency_key: str
    purpose: str
    data_class: _context_pb2.DataClass
    priority: _context_pb2.Priority
    only_path: _context_pb2.Path
    residency: str
    consents: _containers.RepeatedScalarFieldContainer[str]
    include_plan: bool
    def __init__(self, task: _Optional[str] = ..., entity: _Optional[_Mapping[str, _value_pb2.Value]] = ..., fields: _Optional[_Mapping[str, _value_pb2.Value]] = ..., idempotency_key: _Optional[str] = ..., purpose: _Optional[str] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., priority: _Optional[_Union[_context_pb2.Priority, str]] = ..., only_path: _Optional[_Union[_context_pb2.Path, str]] = ..., residency: _Optional[str] = ..., consents: _Optional[_Iterable[str]] = ..., include_plan: _Optional[bool] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("decision_id", "trace_id", "outputs", "answered_by", "input_digest", "latency_us", "cost", "attempts", "feature_handling", "lineage", "plan", "repeated", "fallback", "cached", "catalog_stale", "finish_reason", "leaf_index", "filters_applied")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_HANDLING_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    CATALOG_STALE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    FILTERS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    trace_id: str
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    answered_by: _decision_pb2.CandidateRef
    input_digest: bytes
    latency_us: int
    cost: _decision_pb2.Cost
    attempts: _containers.RepeatedCompositeFieldContainer[_decision_pb2.Attempt]
    feature_handling: _containers.RepeatedCompositeFieldContainer[_decision_pb2.FeatureHandling]
    lineage: _decision_pb2.Lineage
    plan: _decision_pb2.Plan
    repeated: bool
    fallback: bool
    cached: bool
    catalog_stale: bool
    finish_reason: _inference_pb2.FinishReason
    leaf_index: int
    filters_applied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, decision_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., answered_by: _Optional[_Union[_decision_pb2.CandidateRef, _Mapping]] = ..., input_digest: _Optional[bytes] = ..., latency_us: _Optional[int] = ..., cost: _Optional[_Union[_decision_pb2.Cost, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[_decision_pb2.Attempt, _Mapping]]] = ..., feature_handling: _Optional[_Iterable[_Union[_decision_pb2.FeatureHandling, _Mapping]]] = ..., lineage: _Optional[_Union[_decision_pb2.Lineage, _Mapping]] = ..., plan: _Optional[_Union[_decision_pb2.Plan, _Mapping]] = ..., repeated: _Optional[bool] = ..., fallback: _Optional[bool] = ..., cached: _Optional[bool] = ..., catalog_stale: _Optional[bool] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., leaf_index: _Optional[int] = ..., filters_applied: _Optional[_Iterable[str]] = ...) -> None: ...

class InferStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: InferRequest
    def __init__(self, request: _Optional[_Union[InferRequest, _Mapping]] = ...) -> None: ...

class InferStreamResponse(_message.Message):
    __slots__ = ("chunk", "final")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    chunk: _inference_pb2.InferChunk
    final: InferResponse
    def __init__(self, chunk: _Optional[_Union[_inference_pb2.InferChunk, _Mapping]] = ..., final: _Optional[_Union[InferResponse, _Mapping]] = ...) -> None: ...

class BatchInferRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[BatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[BatchItem, _Mapping]]] = ...) -> None: ...

class BatchItem(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: InferRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[InferRequest, _Mapping]] = ...) -> None: ...

class BatchInferResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchResult, _Mapping]]] = ...) -> None: ...

class BatchResult(_message.Message):
    __slots__ = ("id", "status", "response")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: _status_pb2.Status
    response: InferResponse
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., response: _Optional[_Union[InferResponse, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: InferRequest
    def __init__(self, request: _Optional[_Union[InferRequest, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("plan", "input_digest", "feature_handling", "lineage", "filters_applied")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FEATURE_HANDLING_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    FILTERS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    plan: _decision_pb2.Plan
    input_digest: bytes
    feature_handling: _containers.RepeatedCompositeFieldContainer[_decision_pb2.FeatureHandling]
    lineage: _decision_pb2.Lineage
    filters_applied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plan: _Optional[_Union[_decision_pb2.Plan, _Mapping]] = ..., input_digest: _Optional[bytes] = ..., feature_handling: _Optional[_Iterable[_Union[_decision_pb2.FeatureHandling, _Mapping]]] = ..., lineage: _Optional[_Union[_decision_pb2.Lineage, _Mapping]] = ..., filters_applied: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: str
    def __init__(self, task: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("tasks", "catalog_version")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskDescription]
    catalog_version: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskDescription, _Mapping]]] = ..., catalog_version: _Optional[str] = ...) -> None: ...

class TaskDescription(_message.Message):
    __slots__ = ("name", "summary", "feature_service", "entity", "fields", "inputs", "outputs", "data_class", "candidates", "streaming")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    feature_service: str
    entity: _containers.RepeatedScalarFieldContainer[str]
    fields: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    data_class: _context_pb2.DataClass
    candidates: _containers.RepeatedCompositeFieldContainer[_decision_pb2.CandidateRef]
    streaming: bool
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., feature_service: _Optional[str] = ..., entity: _Optional[_Iterable[str]] = ..., fields: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., candidates: _Optional[_Iterable[_Union[_decision_pb2.CandidateRef, _Mapping]]] = ..., streaming: _Optional[bool] = ...) -> None: ...

class OverridePathRequest(_message.Message):
    __slots__ = ("path", "drained", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: _context_pb2.Path
    drained: bool
    reason: str
    def __init__(self, path: _Optional[_Union[_context_pb2.Path, str]] = ..., drained: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class OverridePathResponse(_message.Message):
    __slots__ = ("drained", "leaf_index")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    drained: _containers.RepeatedScalarFieldContainer[_context_pb2.Path]
    leaf_index: int
    def __init__(self, drained: _Optional[_Iterable[_Union[_context_pb2.Path, str]]] = ..., leaf_index: _Optional[int] = ...) -> None: ...

class Tolerance(_message.Message):
    __slots__ = ("absolute", "relative")
    ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    absolute: float
    relative: float
    def __init__(self, absolute: _Optional[float] = ..., relative: _Optional[float] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("decision_id", "path", "tolerance")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    path: ReplayPath
    tolerance: Tolerance
    def __init__(self, decision_id: _Optional[str] = ..., path: _Optional[_Union[ReplayPath, str]] = ..., tolerance: _Optional[_Union[Tolerance, _Mapping]] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("decision_id", "replay_of", "agrees", "outputs", "same_input", "recorded_by", "replayed_by", "changes", "attempts", "plan", "leaf_index", "trace_id")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    REPLAY_OF_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SAME_INPUT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_BY_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_BY_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    replay_of: str
    agrees: bool
    outputs: _containers.RepeatedCompositeFieldContainer[OutputAgreement]
    same_input: bool
    recorded_by: _decision_pb2.CandidateRef
    replayed_by: _decision_pb2.CandidateRef
    changes: _containers.RepeatedScalarFieldContainer[str]
    attempts: _containers.RepeatedCompositeFieldContainer[_decision_pb2.Attempt]
    plan: _decision_pb2.Plan
    leaf_index: int
    trace_id: str
    def __init__(self, decision_id: _Optional[str] = ..., replay_of: _Optional[str] = ..., agrees: _Optional[bool] = ..., outputs: _Optional[_Iterable[_Union[OutputAgreement, _Mapping]]] = ..., same_input: _Optional[bool] = ..., recorded_by: _Optional[_Union[_decision_pb2.CandidateRef, _Mapping]] = ..., replayed_by: _Optional[_Union[_decision_pb2.CandidateRef, _Mapping]] = ..., changes: _Optional[_Iterable[str]] = ..., attempts: _Optional[_Iterable[_Union[_decision_pb2.Attempt, _Mapping]]] = ..., plan: _Optional[_Union[_decision_pb2.Plan, _Mapping]] = ..., leaf_index: _Optional[int] = ..., trace_id: _Optional[str] = ...) -> None: ...

class OutputAgreement(_message.Message):
    __slots__ = ("name", "agrees", "elements", "differing", "max_absolute", "max_relative", "tolerance", "problem")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    DIFFERING_FIELD_NUMBER: _ClassVar[int]
    MAX_ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    MAX_RELATIVE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    name: str
    agrees: bool
    elements: int
    differing: int
    max_absolute: float
    max_relative: float
    tolerance: Tolerance
    problem: str
    def __init__(self, name: _Optional[str] = ..., agrees: _Optional[bool] = ..., elements: _Optional[int] = ..., differing: _Optional[int] = ..., max_absolute: _Optional[float] = ..., max_relative: _Optional[float] = ..., tolerance: _Optional[_Union[Tolerance, _Mapping]] = ..., problem: _Optional[str] = ...) -> None: ...
