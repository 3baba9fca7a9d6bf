from twinpath.common.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Datatype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATATYPE_UNSPECIFIED: _ClassVar[Datatype]
    DATATYPE_BOOL: _ClassVar[Datatype]
    DATATYPE_UINT8: _ClassVar[Datatype]
    DATATYPE_UINT16: _ClassVar[Datatype]
    DATATYPE_UINT32: _ClassVar[Datatype]
    DATATYPE_UINT64: _ClassVar[Datatype]
    DATATYPE_INT8: _ClassVar[Datatype]
    DATATYPE_INT16: _ClassVar[Datatype]
    DATATYPE_INT32: _ClassVar[Datatype]
    DATATYPE_INT64: _ClassVar[Datatype]
    DATATYPE_FP16: _ClassVar[Datatype]
    DATATYPE_FP32: _ClassVar[Datatype]
    DATATYPE_FP64: _ClassVar[Datatype]
    DATATYPE_BF16: _ClassVar[Datatype]
    DATATYPE_BYTES: _ClassVar[Datatype]
DATATYPE_UNSPECIFIED: Datatype
DATATYPE_BOOL: Datatype
DATATYPE_UINT8: Datatype
DATATYPE_UINT16: Datatype
DATATYPE_UINT32: Datatype
DATATYPE_UINT64: Datatype
DATATYPE_INT8: Datatype
DATATYPE_INT16: Datatype
DATATYPE_INT32: Datatype
DATATYPE_INT64: Datatype
DATATYPE_FP16: Datatype
DATATYPE_FP32: Datatype
DATATYPE_FP64: Datatype
DATATYPE_BF16: Datatype
DATATYPE_BYTES: Datatype

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "raw", "contents")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: Datatype
    shape: _containers.RepeatedScalarFieldContainer[int]
    raw: bytes
    contents: TensorContents
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[_Union[Datatype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., raw: _Optional[bytes] = ..., contents: _Optional[_Union[TensorContents, _Mapping]] = ...) -> None: ...

class TensorContents(_message.Message):
    __slots__ = ("bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents", "fp64_contents", "bytes_contents")
    BOOL_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    INT_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    INT64_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    UINT_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    UINT64_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    FP32_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    FP64_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    bool_contents: _containers.RepeatedScalarFieldContainer[bool]
    int_contents: _containers.RepeatedScalarFieldContainer[int]
    int64_contents: _containers.RepeatedScalarFieldContainer[int]
    uint_contents: _containers.RepeatedScalarFieldContainer[int]
    uint64_contents: _containers.RepeatedScalarFieldContainer[int]
    fp32_contents: _containers.RepeatedScalarFieldContainer[float]
    fp64_contents: _containers.RepeatedScalarFieldContainer[float]
    bytes_contents: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, bool_contents: _Optional[_Iterable[bool]] = ..., int_contents: _Optional[_Iterable[int]] = ..., int64_contents: _Optional[_Iterable[int]] = ..., uint_contents: _Optional[_Iterable[int]] = ..., uint64_contents: _Optional[_Iterable[int]] = ..., fp32_contents: _Optional[_Iterable[float]] = ..., fp64_contents: _Optional[_Iterable[float]] = ..., bytes_contents: _Optional[_Iterable[bytes]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: Datatype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[_Union[Datatype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelInput(_message.Message):
    __slots__ = ("tensors", "digest")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    digest: bytes
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., digest: _Optional[bytes] = ...) -> None: ...
