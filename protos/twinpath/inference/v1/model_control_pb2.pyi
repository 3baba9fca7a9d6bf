from twinpath.common.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_UNLOADED: _ClassVar[Stage]
    STAGE_WARMING: _ClassVar[Stage]
    STAGE_READY: _ClassVar[Stage]
    STAGE_DRAINING: _ClassVar[Stage]
    STAGE_REFUSED: _ClassVar[Stage]
STAGE_UNSPECIFIED: Stage
STAGE_UNLOADED: Stage
STAGE_WARMING: Stage
STAGE_READY: Stage
STAGE_DRAINING: Stage
STAGE_REFUSED: Stage

class VersionState(_message.Message):
    __slots__ = ("model", "version", "stage", "serving", "in_flight", "reason")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    stage: Stage
    serving: bool
    in_flight: int
    reason: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ..., serving: _Optional[bool] = ..., in_flight: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("task", "version")
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    task: str
    version: str
    def __init__(self, task: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "version", "aside")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ASIDE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    aside: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., aside: _Optional[bool] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("state", "warm_up_us", "pins")
    STATE_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_US_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    state: VersionState
    warm_up_us: int
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    def __init__(self, state: _Optional[_Union[VersionState, _Mapping]] = ..., warm_up_us: _Optional[int] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("state", "cut_off")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    state: VersionState
    cut_off: int
    def __init__(self, state: _Optional[_Union[VersionState, _Mapping]] = ..., cut_off: _Optional[int] = ...) -> None: ...

class SetServingRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class SetServingResponse(_message.Message):
    __slots__ = ("state", "before", "pins")
    STATE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    state: VersionState
    before: str
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    def __init__(self, state: _Optional[_Union[VersionState, _Mapping]] = ..., before: _Optional[str] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ...) -> None: ...

class ModelStatesRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ModelStatesResponse(_message.Message):
    __slots__ = ("states", "explicit")
    STATES_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedCompositeFieldContainer[VersionState]
    explicit: bool
    def __init__(self, states: _Optional[_Iterable[_Union[VersionState, _Mapping]]] = ..., explicit: _Optional[bool] = ...) -> None: ...
