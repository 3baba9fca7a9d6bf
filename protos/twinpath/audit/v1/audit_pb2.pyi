from google.rpc import status_pb2 as _status_pb2
from twinpath.audit.v1 import record_pb2 as _record_pb2
from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.common.v1 import value_pb2 as _value_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("context", "record", "subject", "input_digest", "output_digest", "payload")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    context: _context_pb2.ItemContext
    record: _record_pb2.Record
    subject: Subject
    input_digest: bytes
    output_digest: bytes
    payload: Payload
    def __init__(self, context: _Optional[_Union[_context_pb2.ItemContext, _Mapping]] = ..., record: _Optional[_Union[_record_pb2.Record, _Mapping]] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ..., input_digest: _Optional[bytes] = ..., output_digest: _Optional[bytes] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Subject(_message.Message):
    __slots__ = ("entity", "tenant", "entity_type")
    class EntityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _value_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_value_pb2.Value, _Mapping]] = ...) -> None: ...
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ENTITY_TYPE_FIELD_NUMBER: _ClassVar[int]
    entity: _containers.MessageMap[str, _value_pb2.Value]
    tenant: str
    entity_type: str
    def __init__(self, entity: _Optional[_Mapping[str, _value_pb2.Value]] = ..., tenant: _Optional[str] = ..., entity_type: _Optional[str] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("model_input", "reply", "request_digest", "request", "model_outputs", "pending")
    MODEL_INPUT_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    model_input: bytes
    reply: bytes
    request_digest: bytes
    request: bytes
    model_outputs: bytes
    pending: bytes
    def __init__(self, model_input: _Optional[bytes] = ..., reply: _Optional[bytes] = ..., request_digest: _Optional[bytes] = ..., request: _Optional[bytes] = ..., model_outputs: _Optional[bytes] = ..., pending: _Optional[bytes] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[AppendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[AppendResult, _Mapping]]] = ...) -> None: ...

class AppendResult(_message.Message):
    __slots__ = ("id", "status", "leaf_index", "existing")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: _status_pb2.Status
    leaf_index: int
    existing: StoredRecord
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., leaf_index: _Optional[int] = ..., existing: _Optional[_Union[StoredRecord, _Mapping]] = ...) -> None: ...

class StoredRecord(_message.Message):
    __slots__ = ("leaf_index", "record", "payload", "erased")
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    leaf_index: int
    record: _record_pb2.Record
    payload: Payload
    erased: bool
    def __init__(self, leaf_index: _Optional[int] = ..., record: _Optional[_Union[_record_pb2.Record, _Mapping]] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ..., erased: _Optional[bool] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("decision_id", "include_payload")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    include_payload: bool
    def __init__(self, decision_id: _Optional[str] = ..., include_payload: _Optional[bool] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[StoredRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[StoredRecord, _Mapping]]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("task", "subject", "start_time_unix_us", "end_time_unix_us", "path", "model", "version", "kinds", "egress", "fallback", "caller")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    END_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    task: str
    subject: Subject
    start_time_unix_us: int
    end_time_unix_us: int
    path: _context_pb2.Path
    model: str
    version: str
    kinds: _containers.RepeatedScalarFieldContainer[_record_pb2.RecordKind]
    egress: bool
    fallback: bool
    caller: str
    def __init__(self, task: _Optional[str] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ..., start_time_unix_us: _Optional[int] = ..., end_time_unix_us: _Optional[int] = ..., path: _Optional[_Union[_context_pb2.Path, str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[_record_pb2.RecordKind, str]]] = ..., egress: _Optional[bool] = ..., fallback: _Optional[bool] = ..., caller: _Optional[str] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: Filter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[Filter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[StoredRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[StoredRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ProveRequest(_message.Message):
    __slots__ = ("decision_id", "leaf_index", "tree_size")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    leaf_index: int
    tree_size: int
    def __init__(self, decision_id: _Optional[str] = ..., leaf_index: _Optional[int] = ..., tree_size: _Optional[int] = ...) -> None: ...

class ProveResponse(_message.Message):
    __slots__ = ("proofs", "checkpoint")
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    proofs: _containers.RepeatedCompositeFieldContainer[InclusionProof]
    checkpoint: str
    def __init__(self, proofs: _Optional[_Iterable[_Union[InclusionProof, _Mapping]]] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class InclusionProof(_message.Message):
    __slots__ = ("leaf_index", "tree_size", "leaf", "hashes", "root_hash")
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEAF_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    leaf_index: int
    tree_size: int
    leaf: bytes
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    root_hash: bytes
    def __init__(self, leaf_index: _Optional[int] = ..., tree_size: _Optional[int] = ..., leaf: _Optional[bytes] = ..., hashes: _Optional[_Iterable[bytes]] = ..., root_hash: _Optional[bytes] = ...) -> None: ...

class ProveConsistencyRequest(_message.Message):
    __slots__ = ("first_size", "second_size")
    FIRST_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECOND_SIZE_FIELD_NUMBER: _ClassVar[int]
    first_size: int
    second_size: int
    def __init__(self, first_size: _Optional[int] = ..., second_size: _Optional[int] = ...) -> None: ...

class ProveConsistencyResponse(_message.Message):
    __slots__ = ("first_size", "second_size", "hashes", "first_root", "second_root")
    FIRST_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECOND_SIZE_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROOT_FIELD_NUMBER: _ClassVar[int]
    SECOND_ROOT_FIELD_NUMBER: _ClassVar[int]
    first_size: int
    second_size: int
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    first_root: bytes
    second_root: bytes
    def __init__(self, first_size: _Optional[int] = ..., second_size: _Optional[int] = ..., hashes: _Optional[_Iterable[bytes]] = ..., first_root: _Optional[bytes] = ..., second_root: _Optional[bytes] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: bool
    def __init__(self, now: _Optional[bool] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("note", "tree_size", "root_hash", "verifier_keys")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    TREE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_HASH_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_KEYS_FIELD_NUMBER: _ClassVar[int]
    note: str
    tree_size: int
    root_hash: bytes
    verifier_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, note: _Optional[str] = ..., tree_size: _Optional[int] = ..., root_hash: _Optional[bytes] = ..., verifier_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("filter", "include_payload", "destination")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    filter: Filter
    include_payload: bool
    destination: str
    def __init__(self, filter: _Optional[_Union[Filter, _Mapping]] = ..., include_payload: _Optional[bool] = ..., destination: _Optional[str] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[StoredRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[StoredRecord, _Mapping]]] = ...) -> None: ...

class EraseRequest(_message.Message):
    __slots__ = ("subject", "reason")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    subject: Subject
    reason: str
    def __init__(self, subject: _Optional[_Union[Subject, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class EraseResponse(_message.Message):
    __slots__ = ("erasure_id", "leaf_index", "records", "not_reached")
    ERASURE_ID_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NOT_REACHED_FIELD_NUMBER: _ClassVar[int]
    erasure_id: str
    leaf_index: int
    records: int
    not_reached: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, erasure_id: _Optional[str] = ..., leaf_index: _Optional[int] = ..., records: _Optional[int] = ..., not_reached: _Optional[_Iterable[str]] = ...) -> None: ...

class RetainRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class RetainResponse(_message.Message):
    __slots__ = ("tasks", "keys_replaced", "waiting", "event_id", "leaf_index", "unnamed")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    KEYS_REPLACED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    LEAF_INDEX_FIELD_NUMBER: _ClassVar[int]
    UNNAMED_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskRetention]
    keys_replaced: int
    waiting: int
    event_id: str
    leaf_index: int
    unnamed: int
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskRetention, _Mapping]]] = ..., keys_replaced: _Optional[int] = ..., waiting: _Optional[int] = ..., event_id: _Optional[str] = ..., leaf_index: _Optional[int] = ..., unnamed: _Optional[int] = ...) -> None: ...

class TaskRetention(_message.Message):
    __slots__ = ("task", "retention_days", "expired", "kept")
    TASK_FIELD_NUMBER: _ClassVar[int]
    RETENTION_DAYS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    task: str
    retention_days: int
    expired: int
    kept: int
    def __init__(self, task: _Optional[str] = ..., retention_days: _Optional[int] = ..., expired: _Optional[int] = ..., kept: _Optional[int] = ...) -> None: ...
