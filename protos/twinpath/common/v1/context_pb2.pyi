from twinpath.common.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Path(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PATH_UNSPECIFIED: _ClassVar[Path]
    PATH_LOCAL: _ClassVar[Path]
    PATH_REMOTE: _ClassVar[Path]

class DataClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_CLASS_UNSPECIFIED: _ClassVar[DataClass]
    DATA_CLASS_PUBLIC: _ClassVar[DataClass]
    DATA_CLASS_INTERNAL: _ClassVar[DataClass]
    DATA_CLASS_CONFIDENTIAL: _ClassVar[DataClass]
    DATA_CLASS_RESTRICTED: _ClassVar[DataClass]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]
PATH_UNSPECIFIED: Path
PATH_LOCAL: Path
PATH_REMOTE: Path
DATA_CLASS_UNSPECIFIED: DataClass
DATA_CLASS_PUBLIC: DataClass
DATA_CLASS_INTERNAL: DataClass
DATA_CLASS_CONFIDENTIAL: DataClass
DATA_CLASS_RESTRICTED: DataClass
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_NORMAL: Priority
PRIORITY_BATCH: Priority

class TraceContext(_message.Message):
    __slots__ = ("traceparent", "tracestate")
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    traceparent: str
    tracestate: str
    def __init__(self, traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ("tenant", "identity", "purpose")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    identity: str
    purpose: str
    def __init__(self, tenant: _Optional[str] = ..., identity: _Optional[str] = ..., purpose: _Optional[str] = ...) -> None: ...

class ItemContext(_message.Message):
    __slots__ = ("id", "trace", "time_left_us", "priority", "caller")
    ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_US_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    id: str
    trace: TraceContext
    time_left_us: int
    priority: Priority
    caller: Caller
    def __init__(self, id: _Optional[str] = ..., trace: _Optional[_Union[TraceContext, _Mapping]] = ..., time_left_us: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., caller: _Optional[_Union[Caller, _Mapping]] = ...) -> None: ...
