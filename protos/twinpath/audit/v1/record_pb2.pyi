from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import decision_pb2 as _decision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECORD_KIND_UNSPECIFIED: _ClassVar[RecordKind]
    RECORD_KIND_INTENT: _ClassVar[RecordKind]
    RECORD_KIND_OUTCOME: _ClassVar[RecordKind]
    RECORD_KIND_REFUSED: _ClassVar[RecordKind]
    RECORD_KIND_ABANDONED: _ClassVar[RecordKind]
    RECORD_KIND_ERASURE: _ClassVar[RecordKind]
    RECORD_KIND_OVERRIDE: _ClassVar[RecordKind]
    RECORD_KIND_FAILED: _ClassVar[RecordKind]
RECORD_KIND_UNSPECIFIED: RecordKind
RECORD_KIND_INTENT: RecordKind
RECORD_KIND_OUTCOME: RecordKind
RECORD_KIND_REFUSED: RecordKind
RECORD_KIND_ABANDONED: RecordKind
RECORD_KIND_ERASURE: RecordKind
RECORD_KIND_OVERRIDE: RecordKind
RECORD_KIND_FAILED: RecordKind

class Record(_message.Message):
    __slots__ = ("kind", "decision_id", "trace_id", "caller", "task", "subject", "data_class", "lineage", "input_hmac", "plan", "attempts", "candidates", "output_hmac", "filters_applied", "feature_handling", "event_time_unix_us", "record_time_unix_us", "deadline_unix_us", "code", "reason", "replay_of", "fallback", "cached", "arm", "event", "payload_digest", "catalog_stale")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    INPUT_HMAC_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_HMAC_FIELD_NUMBER: _ClassVar[int]
    FILTERS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    FEATURE_HANDLING_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPLAY_OF_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CATALOG_STALE_FIELD_NUMBER: _ClassVar[int]
    kind: RecordKind
    decision_id: str
    trace_id: str
    caller: _context_pb2.Caller
    task: str
    subject: str
    data_class: _context_pb2.DataClass
    lineage: _decision_pb2.Lineage
    input_hmac: bytes
    plan: _decision_pb2.Plan
    attempts: _containers.RepeatedCompositeFieldContainer[_decision_pb2.Attempt]
    candidates: _containers.RepeatedCompositeFieldContainer[_decision_pb2.CandidateRef]
    output_hmac: bytes
    filters_applied: _containers.RepeatedScalarFieldContainer[str]
    feature_handling: _containers.RepeatedCompositeFieldContainer[_decision_pb2.FeatureHandling]
    event_time_unix_us: int
    record_time_unix_us: int
    deadline_unix_us: int
    code: int
    reason: str
    replay_of: str
    fallback: bool
    cached: bool
    arm: str
    event: AdminEvent
    payload_digest: bytes
    catalog_stale: bool
    def __init__(self, kind: _Optional[_Union[RecordKind, str]] = ..., decision_id: _Optional[str] = ..., trace_id: _Optional[str] = ..., caller: _Optional[_Union[_context_pb2.Caller, _Mapping]] = ..., task: _Optional[str] = ..., subject: _Optional[str] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., lineage: _Optional[_Union[_decision_pb2.Lineage, _Mapping]] = ..., input_hmac: _Optional[bytes] = ..., plan: _Optional[_Union[_decision_pb2.Plan, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[_decision_pb2.Attempt, _Mapping]]] = ..., candidates: _Optional[_Iterable[_Union[_decision_pb2.CandidateRef, _Mapping]]] = ..., output_hmac: _Optional[bytes] = ..., filters_applied: _Optional[_Iterable[str]] = ..., feature_handling: _Optional[_Iterable[_Union[_decision_pb2.FeatureHandling, _Mapping]]] = ..., event_time_unix_us: _Optional[int] = ..., record_time_unix_us: _Optional[int] = ..., deadline_unix_us: _Optional[int] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., replay_of: _Optional[str] = ..., fallback: _Optional[bool] = ..., cached: _Optional[bool] = ..., arm: _Optional[str] = ..., event: _Optional[_Union[AdminEvent, _Mapping]] = ..., payload_digest: _Optional[bytes] = ..., catalog_stale: _Optional[bool] = ...) -> None: ...

class AdminEvent(_message.Message):
    __slots__ = ("action", "actor", "target", "reason", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    action: str
    actor: str
    target: str
    reason: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, action: _Optional[str] = ..., actor: _Optional[str] = ..., target: _Optional[str] = ..., reason: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...
