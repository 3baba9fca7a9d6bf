from google.rpc import status_pb2 as _status_pb2
from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import decision_pb2 as _decision_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from twinpath.common.v1 import value_pb2 as _value_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetFeaturesRequest(_message.Message):
    __slots__ = ("feature_service", "rows", "join_keys", "request_fields")
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEYS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELDS_FIELD_NUMBER: _ClassVar[int]
    feature_service: str
    rows: _containers.RepeatedCompositeFieldContainer[_context_pb2.ItemContext]
    join_keys: _containers.RepeatedCompositeFieldContainer[_value_pb2.Column]
    request_fields: _containers.RepeatedCompositeFieldContainer[_value_pb2.Column]
    def __init__(self, feature_service: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[_context_pb2.ItemContext, _Mapping]]] = ..., join_keys: _Optional[_Iterable[_Union[_value_pb2.Column, _Mapping]]] = ..., request_fields: _Optional[_Iterable[_Union[_value_pb2.Column, _Mapping]]] = ...) -> None: ...

class GetFeaturesResponse(_message.Message):
    __slots__ = ("rows", "columns", "lineage", "data_class")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RowResult]
    columns: _containers.RepeatedCompositeFieldContainer[FeatureColumn]
    lineage: FeatureLineage
    data_class: _context_pb2.DataClass
    def __init__(self, rows: _Optional[_Iterable[_Union[RowResult, _Mapping]]] = ..., columns: _Optional[_Iterable[_Union[FeatureColumn, _Mapping]]] = ..., lineage: _Optional[_Union[FeatureLineage, _Mapping]] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ...) -> None: ...

class RowResult(_message.Message):
    __slots__ = ("id", "status", "broken_rules")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BROKEN_RULES_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: _status_pb2.Status
    broken_rules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., broken_rules: _Optional[_Iterable[str]] = ...) -> None: ...

class FeatureColumn(_message.Message):
    __slots__ = ("view", "feature", "values", "statuses", "event_times_unix_us", "data_class", "pii")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMES_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    PII_FIELD_NUMBER: _ClassVar[int]
    view: str
    feature: str
    values: _value_pb2.Column
    statuses: _containers.RepeatedScalarFieldContainer[_decision_pb2.FeatureStatus]
    event_times_unix_us: _containers.RepeatedScalarFieldContainer[int]
    data_class: _context_pb2.DataClass
    pii: str
    def __init__(self, view: _Optional[str] = ..., feature: _Optional[str] = ..., values: _Optional[_Union[_value_pb2.Column, _Mapping]] = ..., statuses: _Optional[_Iterable[_Union[_decision_pb2.FeatureStatus, str]]] = ..., event_times_unix_us: _Optional[_Iterable[int]] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., pii: _Optional[str] = ...) -> None: ...

class FeatureLineage(_message.Message):
    __slots__ = ("feature_service", "views", "registry_version")
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    feature_service: str
    views: _containers.RepeatedCompositeFieldContainer[ViewVersion]
    registry_version: str
    def __init__(self, feature_service: _Optional[str] = ..., views: _Optional[_Iterable[_Union[ViewVersion, _Mapping]]] = ..., registry_version: _Optional[str] = ...) -> None: ...

class ViewVersion(_message.Message):
    __slots__ = ("view", "version_hash")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VERSION_HASH_FIELD_NUMBER: _ClassVar[int]
    view: str
    version_hash: str
    def __init__(self, view: _Optional[str] = ..., version_hash: _Optional[str] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("push_source", "columns")
    PUSH_SOURCE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    push_source: str
    columns: _containers.RepeatedCompositeFieldContainer[_value_pb2.Column]
    def __init__(self, push_source: _Optional[str] = ..., columns: _Optional[_Iterable[_Union[_value_pb2.Column, _Mapping]]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("written", "older")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    OLDER_FIELD_NUMBER: _ClassVar[int]
    written: int
    older: int
    def __init__(self, written: _Optional[int] = ..., older: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("feature_service",)
    FEATURE_SERVICE_FIELD_NUMBER: _ClassVar[int]
    feature_service: str
    def __init__(self, feature_service: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("feature_services", "registry_version")
    FEATURE_SERVICES_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    feature_services: _containers.RepeatedCompositeFieldContainer[FeatureServiceDescription]
    registry_version: str
    def __init__(self, feature_services: _Optional[_Iterable[_Union[FeatureServiceDescription, _Mapping]]] = ..., registry_version: _Optional[str] = ...) -> None: ...

class FeatureServiceDescription(_message.Message):
    __slots__ = ("name", "join_keys", "request_fields", "features", "views", "data_class")
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOIN_KEYS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    name: str
    join_keys: _containers.RepeatedCompositeFieldContainer[FieldDescription]
    request_fields: _containers.RepeatedCompositeFieldContainer[FieldDescription]
    features: _containers.RepeatedCompositeFieldContainer[FeatureDescription]
    views: _containers.RepeatedCompositeFieldContainer[ViewVersion]
    data_class: _context_pb2.DataClass
    def __init__(self, name: _Optional[str] = ..., join_keys: _Optional[_Iterable[_Union[FieldDescription, _Mapping]]] = ..., request_fields: _Optional[_Iterable[_Union[FieldDescription, _Mapping]]] = ..., features: _Optional[_Iterable[_Union[FeatureDescription, _Mapping]]] = ..., views: _Optional[_Iterable[_Union[ViewVersion, _Mapping]]] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ...) -> None: ...

class FieldDescription(_message.Message):
    __slots__ = ("name", "value_type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value_type: str
    def __init__(self, name: _Optional[str] = ..., value_type: _Optional[str] = ...) -> None: ...

class FeatureDescription(_message.Message):
    __slots__ = ("view", "feature", "value_type", "ttl_seconds", "data_class", "pii")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    PII_FIELD_NUMBER: _ClassVar[int]
    view: str
    feature: str
    value_type: str
    ttl_seconds: int
    data_class: _context_pb2.DataClass
    pii: str
    def __init__(self, view: _Optional[str] = ..., feature: _Optional[str] = ..., value_type: _Optional[str] = ..., ttl_seconds: _Optional[int] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., pii: _Optional[str] = ...) -> None: ...
