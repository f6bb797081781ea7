import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HealthStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_STATUS_UNKNOWN: _ClassVar[HealthStatus]
    HEALTH_STATUS_HEALTHY: _ClassVar[HealthStatus]
    HEALTH_STATUS_UNHEALTHY: _ClassVar[HealthStatus]
    HEALTH_STATUS_DEGRADED: _ClassVar[HealthStatus]
HEALTH_STATUS_UNKNOWN: HealthStatus
HEALTH_STATUS_HEALTHY: HealthStatus
HEALTH_STATUS_UNHEALTHY: HealthStatus
HEALTH_STATUS_DEGRADED: HealthStatus

class HealthCheckConfig(_message.Message):
    __slots__ = ("endpoint", "intervalSeconds", "timeoutSeconds", "unhealthyThreshold")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    INTERVALSECONDS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUTSECONDS_FIELD_NUMBER: _ClassVar[int]
    UNHEALTHYTHRESHOLD_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    intervalSeconds: int
    timeoutSeconds: int
    unhealthyThreshold: int
    def __init__(self, endpoint: _Optional[str] = ..., intervalSeconds: _Optional[int] = ..., timeoutSeconds: _Optional[int] = ..., unhealthyThreshold: _Optional[int] = ...) -> None: ...

class RegisterServiceRequest(_message.Message):
    __slots__ = ("serviceName", "serviceId", "address", "port", "metadata", "healthCheck")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    HEALTHCHECK_FIELD_NUMBER: _ClassVar[int]
    serviceName: str
    serviceId: str
    address: str
    port: int
    metadata: _containers.ScalarMap[str, str]
    healthCheck: HealthCheckConfig
    def __init__(self, serviceName: _Optional[str] = ..., serviceId: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., healthCheck: _Optional[_Union[HealthCheckConfig, _Mapping]] = ...) -> None: ...

class RegisterServiceResponse(_message.Message):
    __slots__ = ("success", "serviceId", "errorMessage")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    ERRORMESSAGE_FIELD_NUMBER: _ClassVar[int]
    success: bool
    serviceId: str
    errorMessage: str
    def __init__(self, success: _Optional[bool] = ..., serviceId: _Optional[str] = ..., errorMessage: _Optional[str] = ...) -> None: ...

class DeregisterServiceRequest(_message.Message):
    __slots__ = ("serviceId",)
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    serviceId: str
    def __init__(self, serviceId: _Optional[str] = ...) -> None: ...

class DeregisterServiceResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    def __init__(self, removed: _Optional[bool] = ...) -> None: ...

class GetInstancesRequest(_message.Message):
    __slots__ = ("serviceName",)
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    serviceName: str
    def __init__(self, serviceName: _Optional[str] = ...) -> None: ...

class GetInstancesResponse(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[ServiceInstance]
    def __init__(self, instances: _Optional[_Iterable[_Union[ServiceInstance, _Mapping]]] = ...) -> None: ...

class ServiceInstance(_message.Message):
    __slots__ = ("serviceName", "serviceId", "address", "port", "status", "metadata", "registeredAt", "lastHealthCheck")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVICENAME_FIELD_NUMBER: _ClassVar[int]
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REGISTEREDAT_FIELD_NUMBER: _ClassVar[int]
    LASTHEALTHCHECK_FIELD_NUMBER: _ClassVar[int]
    serviceName: str
    serviceId: str
    address: str
    port: int
    status: HealthStatus
    metadata: _containers.ScalarMap[str, str]
    registeredAt: _timestamp_pb2.Timestamp
    lastHealthCheck: _timestamp_pb2.Timestamp
    def __init__(self, serviceName: _Optional[str] = ..., serviceId: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., status: _Optional[_Union[HealthStatus, str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., registeredAt: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lastHealthCheck: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetServicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServicesResponse(_message.Message):
    __slots__ = ("serviceNames",)
    SERVICENAMES_FIELD_NUMBER: _ClassVar[int]
    serviceNames: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, serviceNames: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportHealthRequest(_message.Message):
    __slots__ = ("serviceId", "status", "output")
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    serviceId: str
    status: HealthStatus
    output: str
    def __init__(self, serviceId: _Optional[str] = ..., status: _Optional[_Union[HealthStatus, str]] = ..., output: _Optional[str] = ...) -> None: ...

class ReportHealthResponse(_message.Message):
    __slots__ = ("success",)
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    success: bool
    def __init__(self, success: _Optional[bool] = ...) -> None: ...
