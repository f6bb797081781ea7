from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("serviceNames",)
    SERVICENAMES_FIELD_NUMBER: _ClassVar[int]
    serviceNames: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, serviceNames: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchUpdate(_message.Message):
    __slots__ = ("services", "staleReason", "staleSeconds")
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    STALEREASON_FIELD_NUMBER: _ClassVar[int]
    STALESECONDS_FIELD_NUMBER: _ClassVar[int]
    services: _containers.RepeatedCompositeFieldContainer[ServiceState]
    staleReason: str
    staleSeconds: float
    def __init__(self, services: _Optional[_Iterable[_Union[ServiceState, _Mapping]]] = ..., staleReason: _Optional[str] = ..., staleSeconds: _Optional[float] = ...) -> None: ...

class ServiceState(_message.Message):
    __slots__ = ("serviceName", "instances", "verdicts", "probed")
    class VerdictsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    PROBED_FIELD_NUMBER: _ClassVar[int]
    serviceName: str
    instances: _containers.RepeatedCompositeFieldContainer[InstanceState]
    verdicts: _containers.ScalarMap[str, int]
    probed: int
    def __init__(self, serviceName: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[InstanceState, _Mapping]]] = ..., verdicts: _Optional[_Mapping[str, int]] = ..., probed: _Optional[int] = ...) -> None: ...

class InstanceState(_message.Message):
    __slots__ = ("serviceId", "address", "port", "status", "metadata", "output", "createIndex")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CREATEINDEX_FIELD_NUMBER: _ClassVar[int]
    serviceId: str
    address: str
    port: int
    status: int
    metadata: _containers.ScalarMap[str, str]
    output: str
    createIndex: int
    def __init__(self, serviceId: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., status: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., output: _Optional[str] = ..., createIndex: _Optional[int] = ...) -> None: ...

class WaitAppliedRequest(_message.Message):
    __slots__ = ("serviceName",)
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    serviceName: str
    def __init__(self, serviceName: _Optional[str] = ...) -> None: ...

class WaitAppliedResponse(_message.Message):
    __slots__ = ("applied", "index", "gateways", "reason")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    applied: bool
    index: int
    gateways: _containers.RepeatedCompositeFieldContainer[GatewayState]
    reason: str
    def __init__(self, applied: _Optional[bool] = ..., index: _Optional[int] = ..., gateways: _Optional[_Iterable[_Union[GatewayState, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class GatewayState(_message.Message):
    __slots__ = ("name", "appliedIndex")
    NAME_FIELD_NUMBER: _ClassVar[int]
    APPLIEDINDEX_FIELD_NUMBER: _ClassVar[int]
    name: str
    appliedIndex: int
    def __init__(self, name: _Optional[str] = ..., appliedIndex: _Optional[int] = ...) -> None: ...
