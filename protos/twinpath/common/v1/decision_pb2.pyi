from twinpath.common.v1 import context_pb2 as _context_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CostBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COST_BASIS_UNSPECIFIED: _ClassVar[CostBasis]
    COST_BASIS_REPORTED: _ClassVar[CostBasis]
    COST_BASIS_ESTIMATED: _ClassVar[CostBasis]
    COST_BASIS_MEASURED: _ClassVar[CostBasis]

class BreakerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BREAKER_STATE_UNSPECIFIED: _ClassVar[BreakerState]
    BREAKER_STATE_CLOSED: _ClassVar[BreakerState]
    BREAKER_STATE_OPEN: _ClassVar[BreakerState]
    BREAKER_STATE_HALF_OPEN: _ClassVar[BreakerState]

class RefusalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_KIND_UNSPECIFIED: _ClassVar[RefusalKind]
    REFUSAL_KIND_POLICY: _ClassVar[RefusalKind]
    REFUSAL_KIND_HEALTH: _ClassVar[RefusalKind]
    REFUSAL_KIND_CONSTRAINT: _ClassVar[RefusalKind]
    REFUSAL_KIND_TIME: _ClassVar[RefusalKind]
    REFUSAL_KIND_RELEASE: _ClassVar[RefusalKind]
    REFUSAL_KIND_BUDGET: _ClassVar[RefusalKind]

class AttemptKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_KIND_UNSPECIFIED: _ClassVar[AttemptKind]
    ATTEMPT_KIND_PRIMARY: _ClassVar[AttemptKind]
    ATTEMPT_KIND_RETRY: _ClassVar[AttemptKind]
    ATTEMPT_KIND_FALLBACK: _ClassVar[AttemptKind]
    ATTEMPT_KIND_HEDGE: _ClassVar[AttemptKind]
    ATTEMPT_KIND_SHADOW: _ClassVar[AttemptKind]
    ATTEMPT_KIND_PROBE: _ClassVar[AttemptKind]
    ATTEMPT_KIND_CACHE: _ClassVar[AttemptKind]
    ATTEMPT_KIND_BULK: _ClassVar[AttemptKind]

class FeatureStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_STATUS_UNSPECIFIED: _ClassVar[FeatureStatus]
    FEATURE_STATUS_PRESENT: _ClassVar[FeatureStatus]
    FEATURE_STATUS_STALE: _ClassVar[FeatureStatus]
    FEATURE_STATUS_NULL: _ClassVar[FeatureStatus]
    FEATURE_STATUS_ABSENT_FEATURE: _ClassVar[FeatureStatus]
    FEATURE_STATUS_ABSENT_ENTITY: _ClassVar[FeatureStatus]

class FeatureAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_ACTION_UNSPECIFIED: _ClassVar[FeatureAction]
    FEATURE_ACTION_ACCEPTED_STALE: _ClassVar[FeatureAction]
    FEATURE_ACTION_DEFAULTED: _ClassVar[FeatureAction]
    FEATURE_ACTION_IMPUTED: _ClassVar[FeatureAction]
COST_BASIS_UNSPECIFIED: CostBasis
COST_BASIS_REPORTED: CostBasis
COST_BASIS_ESTIMATED: CostBasis
COST_BASIS_MEASURED: CostBasis
BREAKER_STATE_UNSPECIFIED: BreakerState
BREAKER_STATE_CLOSED: BreakerState
BREAKER_STATE_OPEN: BreakerState
BREAKER_STATE_HALF_OPEN: BreakerState
REFUSAL_KIND_UNSPECIFIED: RefusalKind
REFUSAL_KIND_POLICY: RefusalKind
REFUSAL_KIND_HEALTH: RefusalKind
REFUSAL_KIND_CONSTRAINT: RefusalKind
REFUSAL_KIND_TIME: RefusalKind
REFUSAL_KIND_RELEASE: RefusalKind
REFUSAL_KIND_BUDGET: RefusalKind
ATTEMPT_KIND_UNSPECIFIED: AttemptKind
ATTEMPT_KIND_PRIMARY: AttemptKind
ATTEMPT_KIND_RETRY: AttemptKind
ATTEMPT_KIND_FALLBACK: AttemptKind
ATTEMPT_KIND_HEDGE: AttemptKind
ATTEMPT_KIND_SHADOW: AttemptKind
ATTEMPT_KIND_PROBE: AttemptKind
ATTEMPT_KIND_CACHE: AttemptKind
ATTEMPT_KIND_BULK: AttemptKind
FEATURE_STATUS_UNSPECIFIED: FeatureStatus
FEATURE_STATUS_PRESENT: FeatureStatus
FEATURE_STATUS_STALE: FeatureStatus
FEATURE_STATUS_NULL: FeatureStatus
FEATURE_STATUS_ABSENT_FEATURE: FeatureStatus
FEATURE_STATUS_ABSENT_ENTITY: FeatureStatus
FEATURE_ACTION_UNSPECIFIED: FeatureAction
FEATURE_ACTION_ACCEPTED_STALE: FeatureAction
FEATURE_ACTION_DEFAULTED: FeatureAction
FEATURE_ACTION_IMPUTED: FeatureAction

class CandidateRef(_message.Message):
    __slots__ = ("id", "model", "version", "path", "provider", "region")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    version: str
    path: _context_pb2.Path
    provider: str
    region: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., path: _Optional[_Union[_context_pb2.Path, str]] = ..., provider: _Optional[str] = ..., region: _Optional[str] = ...) -> None: ...

class Cost(_message.Message):
    __slots__ = ("currency_code", "nanos", "basis")
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    NANOS_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    currency_code: str
    nanos: int
    basis: CostBasis
    def __init__(self, currency_code: _Optional[str] = ..., nanos: _Optional[int] = ..., basis: _Optional[_Union[CostBasis, str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "rule", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: RefusalKind
    rule: str
    message: str
    def __init__(self, kind: _Optional[_Union[RefusalKind, str]] = ..., rule: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class PlanEntry(_message.Message):
    __slots__ = ("candidate", "rank", "refusals", "predicted_p50_us", "predicted_p95_us", "predicted_cost", "score", "breaker", "demoted")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P50_US_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P95_US_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_COST_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    DEMOTED_FIELD_NUMBER: _ClassVar[int]
    candidate: CandidateRef
    rank: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    predicted_p50_us: int
    predicted_p95_us: int
    predicted_cost: Cost
    score: float
    breaker: BreakerState
    demoted: Refusal
    def __init__(self, candidate: _Optional[_Union[CandidateRef, _Mapping]] = ..., rank: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., predicted_p50_us: _Optional[int] = ..., predicted_p95_us: _Optional[int] = ..., predicted_cost: _Optional[_Union[Cost, _Mapping]] = ..., score: _Optional[float] = ..., breaker: _Optional[_Union[BreakerState, str]] = ..., demoted: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("entries", "policy_version", "data_class", "arm", "policy_rules")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    POLICY_RULES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[PlanEntry]
    policy_version: str
    data_class: _context_pb2.DataClass
    arm: str
    policy_rules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, entries: _Optional[_Iterable[_Union[PlanEntry, _Mapping]]] = ..., policy_version: _Optional[str] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., arm: _Optional[str] = ..., policy_rules: _Optional[_Iterable[str]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("candidate", "kind", "code", "reason", "start_time_unix_us", "latency_us", "cost", "bytes_out", "bytes_in", "wire_digest", "renderer_version", "reported_version", "queue_us", "compute_us", "first_chunk_us", "input_tokens", "output_tokens", "cancelled", "artifact_digest")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    START_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    WIRE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RENDERER_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPORTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_CHUNK_US_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    candidate: CandidateRef
    kind: AttemptKind
    code: int
    reason: str
    start_time_unix_us: int
    latency_us: int
    cost: Cost
    bytes_out: int
    bytes_in: int
    wire_digest: bytes
    renderer_version: str
    reported_version: str
    queue_us: int
    compute_us: int
    first_chunk_us: int
    input_tokens: int
    output_tokens: int
    cancelled: bool
    artifact_digest: bytes
    def __init__(self, candidate: _Optional[_Union[CandidateRef, _Mapping]] = ..., kind: _Optional[_Union[AttemptKind, str]] = ..., code: _Optional[int] = ..., reason: _Optional[str] = ..., start_time_unix_us: _Optional[int] = ..., latency_us: _Optional[int] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., bytes_out: _Optional[int] = ..., bytes_in: _Optional[int] = ..., wire_digest: _Optional[bytes] = ..., renderer_version: _Optional[str] = ..., reported_version: _Optional[str] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., first_chunk_us: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cancelled: _Optional[bool] = ..., artifact_digest: _Optional[bytes] = ...) -> None: ...

class FeatureHandling(_message.Message):
    __slots__ = ("feature", "status", "action")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    feature: str
    status: FeatureStatus
    action: FeatureAction
    def __init__(self, feature: _Optional[str] = ..., status: _Optional[_Union[FeatureStatus, str]] = ..., action: _Optional[_Union[FeatureAction, str]] = ...) -> None: ...

class ViewLineage(_message.Message):
    __slots__ = ("view", "version_hash", "event_time_unix_us")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VERSION_HASH_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    view: str
    version_hash: str
    event_time_unix_us: int
    def __init__(self, view: _Optional[str] = ..., version_hash: _Optional[str] = ..., event_time_unix_us: _Optional[int] = ...) -> None: ...

class Lineage(_message.Message):
    __slots__ = ("feature_service", "views", "registry_version", "catalog_version", "contract_version", "code_version")
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    feature_service: str
    views: _containers.RepeatedCompositeFieldContainer[ViewLineage]
    registry_version: str
    catalog_version: str
    contract_version: str
    code_version: str
    def __init__(self, feature_service: _Optional[str] = ..., views: _Optional[_Iterable[_Union[ViewLineage, _Mapping]]] = ..., registry_version: _Optional[str] = ..., catalog_version: _Optional[str] = ..., contract_version: _Optional[str] = ..., code_version: _Optional[str] = ...) -> None: ...
