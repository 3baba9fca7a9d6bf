from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.inference.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BulkState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BULK_STATE_UNSPECIFIED: _ClassVar[BulkState]
    BULK_STATE_RUNNING: _ClassVar[BulkState]
    BULK_STATE_DONE: _ClassVar[BulkState]
    BULK_STATE_FAILED: _ClassVar[BulkState]
BULK_STATE_UNSPECIFIED: BulkState
BULK_STATE_RUNNING: BulkState
BULK_STATE_DONE: BulkState
BULK_STATE_FAILED: BulkState

class SubmitBulkRequest(_message.Message):
    __slots__ = ("job_id", "items")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    items: _containers.RepeatedCompositeFieldContainer[_inference_pb2.InferItem]
    def __init__(self, job_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_inference_pb2.InferItem, _Mapping]]] = ...) -> None: ...

class SubmitBulkResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: BulkJob
    def __init__(self, job: _Optional[_Union[BulkJob, _Mapping]] = ...) -> None: ...

class GetBulkRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetBulkResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: BulkJob
    def __init__(self, job: _Optional[_Union[BulkJob, _Mapping]] = ...) -> None: ...

class CancelBulkRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelBulkResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: BulkJob
    def __init__(self, job: _Optional[_Union[BulkJob, _Mapping]] = ...) -> None: ...

class ForgetBulkRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ForgetBulkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BulkJob(_message.Message):
    __slots__ = ("id", "state", "reason", "items", "results", "vendor_batch_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    VENDOR_BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: BulkState
    reason: str
    items: int
    results: _containers.RepeatedCompositeFieldContainer[_inference_pb2.InferResult]
    vendor_batch_id: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[BulkState, str]] = ..., reason: _Optional[str] = ..., items: _Optional[int] = ..., results: _Optional[_Iterable[_Union[_inference_pb2.InferResult, _Mapping]]] = ..., vendor_batch_id: _Optional[str] = ...) -> None: ...
