from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import decision_pb2 as _decision_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.common.v1 import value_pb2 as _value_pb2
from twinpath.router.v1 import router_pb2 as _router_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_PREPARING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_ENDED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_INTERRUPTED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_PREPARING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_ENDED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_INTERRUPTED: JobState

class SubmitJobRequest(_message.Message):
    __slots__ = ("task", "items", "idempotency_key", "purpose", "candidate")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    task: str
    items: _containers.RepeatedCompositeFieldContainer[JobItem]
    idempotency_key: str
    purpose: str
    candidate: str
    def __init__(self, task: _Optional[str] = ..., items: _Optional[_Iterable[_Union[JobItem, _Mapping]]] = ..., idempotency_key: _Optional[str] = ..., purpose: _Optional[str] = ..., candidate: _Optional[str] = ...) -> None: ...

class JobItem(_message.Message):
    __slots__ = ("id", "entity", "fields", "data_class", "residency", "consents")
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
    ID_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    CONSENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    entity: _containers.MessageMap[str, _value_pb2.Value]
    fields: _containers.MessageMap[str, _value_pb2.Value]
    data_class: _context_pb2.DataClass
    residency: str
    consents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., entity: _Optional[_Mapping[str, _value_pb2.Value]] = ..., fields: _Optional[_Mapping[str, _value_pb2.Value]] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., residency: _Optional[str] = ..., consents: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobResultsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListJobResultsResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _router_pb2.BatchResult
    def __init__(self, result: _Optional[_Union[_router_pb2.BatchResult, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "task", "state", "items", "succeeded", "failed", "refused", "create_time_unix_us", "end_time_unix_us", "deadline_unix_us", "cost", "parts")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    END_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    state: JobState
    items: int
    succeeded: int
    failed: int
    refused: int
    create_time_unix_us: int
    end_time_unix_us: int
    deadline_unix_us: int
    cost: _decision_pb2.Cost
    parts: _containers.RepeatedCompositeFieldContainer[JobPart]
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., items: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., create_time_unix_us: _Optional[int] = ..., end_time_unix_us: _Optional[int] = ..., deadline_unix_us: _Optional[int] = ..., cost: _Optional[_Union[_decision_pb2.Cost, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[JobPart, _Mapping]]] = ...) -> None: ...

class JobPart(_message.Message):
    __slots__ = ("candidate", "items", "vendor_batch_id")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    VENDOR_BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    candidate: _decision_pb2.CandidateRef
    items: int
    vendor_batch_id: str
    def __init__(self, candidate: _Optional[_Union[_decision_pb2.CandidateRef, _Mapping]] = ..., items: _Optional[int] = ..., vendor_batch_id: _Optional[str] = ...) -> None: ...

class PendingItem(_message.Message):
    __slots__ = ("request", "values", "candidate")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    request: _router_pb2.InferRequest
    values: _containers.ScalarMap[str, str]
    candidate: _decision_pb2.CandidateRef
    def __init__(self, request: _Optional[_Union[_router_pb2.InferRequest, _Mapping]] = ..., values: _Optional[_Mapping[str, str]] = ..., candidate: _Optional[_Union[_decision_pb2.CandidateRef, _Mapping]] = ...) -> None: ...
