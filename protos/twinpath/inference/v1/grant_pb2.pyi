from twinpath.common.v1 import context_pb2 as _context_pb2
from twinpath.common.v1 import rules_pb2 as _rules_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Grant(_message.Message):
    __slots__ = ("claims", "signature", "key_id")
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    claims: bytes
    signature: bytes
    key_id: str
    def __init__(self, claims: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., key_id: _Optional[str] = ...) -> None: ...

class GrantClaims(_message.Message):
    __slots__ = ("grant_id", "decision_id", "candidate", "provider", "input_digest", "data_class", "policy_version", "expire_time_unix_us", "region", "task", "model", "version", "consents")
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    INPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_UNIX_US_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONSENTS_FIELD_NUMBER: _ClassVar[int]
    grant_id: str
    decision_id: str
    candidate: str
    provider: str
    input_digest: bytes
    data_class: _context_pb2.DataClass
    policy_version: str
    expire_time_unix_us: int
    region: str
    task: str
    model: str
    version: str
    consents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, grant_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., candidate: _Optional[str] = ..., provider: _Optional[str] = ..., input_digest: _Optional[bytes] = ..., data_class: _Optional[_Union[_context_pb2.DataClass, str]] = ..., policy_version: _Optional[str] = ..., expire_time_unix_us: _Optional[int] = ..., region: _Optional[str] = ..., task: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., consents: _Optional[_Iterable[str]] = ...) -> None: ...
