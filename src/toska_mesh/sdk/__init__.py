"""What a service imports to join the mesh: a host for its app, a client for other services, key-value state.

Names are loaded when they are first used, so that importing the package costs nothing that a service does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; at run time `__getattr__` looks names up in `_HOMES`
    from toska_mesh.errors import CircuitOpenError as CircuitOpenError
    from toska_mesh.errors import ConfigError as ConfigError
    from toska_mesh.errors import KeyValueError as KeyValueError
    from toska_mesh.errors import KeyValueFormatError as KeyValueFormatError
    from toska_mesh.errors import KeyValueUnavailableError as KeyValueUnavailableError
    from toska_mesh.errors import NoInstanceError as NoInstanceError
    from toska_mesh.errors import UpstreamConnectError as UpstreamConnectError
    from toska_mesh.errors import UpstreamError as UpstreamError
    from toska_mesh.errors import UpstreamTimeoutError as UpstreamTimeoutError
    from toska_mesh.model import HealthStatus as HealthStatus
    from toska_mesh.sdk.callstats import CallStats as CallStats
    from toska_mesh.sdk.checks import CheckResult as CheckResult
    from toska_mesh.sdk.checks import HealthCheck as HealthCheck
    from toska_mesh.sdk.client import CallOptions as CallOptions
    from toska_mesh.sdk.client import Client as Client
    from toska_mesh.sdk.context import RequestContext as RequestContext
    from toska_mesh.sdk.environment import connect_options as connect_options
    from toska_mesh.sdk.environment import service_options as service_options
    from toska_mesh.sdk.grpc_channel import MeshChannel as MeshChannel
    from toska_mesh.sdk.kv.api import KeyValueStore as KeyValueStore
    from toska_mesh.sdk.kv.open import open_store as open_store
    from toska_mesh.sdk.kv.options import KeyValueOptions as KeyValueOptions
    from toska_mesh.sdk.leaving import LeaveReport as LeaveReport
    from toska_mesh.sdk.lifespan import AppStartError as AppStartError
    from toska_mesh.sdk.mesh import Mesh as Mesh
    from toska_mesh.sdk.middleware import MeshMiddleware as MeshMiddleware
    from toska_mesh.sdk.options import ConnectOptions as ConnectOptions
    from toska_mesh.sdk.options import ServiceOptions as ServiceOptions
    from toska_mesh.sdk.picks import Picked as Picked
    from toska_mesh.sdk.service import MeshService as MeshService
    from toska_mesh.sdk.serving import join as join
    from toska_mesh.sdk.serving import serve as serve
    from toska_mesh.sdk.transport import Answer as Answer

_HOMES = {
    "Answer": "toska_mesh.sdk.transport",
    "AppStartError": "toska_mesh.sdk.lifespan",
    "CallOptions": "toska_mesh.sdk.client",
    "CallStats": "toska_mesh.sdk.callstats",
    "CheckResult": "toska_mesh.sdk.checks",
    "CircuitOpenError": "toska_mesh.errors",
    "Client": "toska_mesh.sdk.client",
    "ConfigError": "toska_mesh.errors",
    "ConnectOptions": "toska_mesh.sdk.options",
    "HealthCheck": "toska_mesh.sdk.checks",
    "HealthStatus": "toska_mesh.model",
    "KeyValueError": "toska_mesh.errors",
    "KeyValueFormatError": "toska_mesh.errors",
    "KeyValueOptions": "toska_mesh.sdk.kv.options",
    "KeyValueStore": "toska_mesh.sdk.kv.api",
    "KeyValueUnavailableError": "toska_mesh.errors",
    "LeaveReport": "toska_mesh.sdk.leaving",
    "Mesh": "toska_mesh.sdk.mesh",
    "MeshChannel": "toska_mesh.sdk.grpc_channel",
    "MeshMiddleware": "toska_mesh.sdk.middleware",
    "MeshService": "toska_mesh.sdk.service",
    "NoInstanceError": "toska_mesh.errors",
    "Picked": "toska_mesh.sdk.picks",
    "RequestContext": "toska_mesh.sdk.context",
    "ServiceOptions": "toska_mesh.sdk.options",
    "UpstreamConnectError": "toska_mesh.errors",
    "UpstreamError": "toska_mesh.errors",
    "UpstreamTimeoutError": "toska_mesh.errors",
    "connect_options": "toska_mesh.sdk.environment",
    "join": "toska_mesh.sdk.serving",
    "open_store": "toska_mesh.sdk.kv.open",
    "serve": "toska_mesh.sdk.serving",
    "service_options": "toska_mesh.sdk.environment",
}
"""The module where each public name lives."""

__all__ = list(_HOMES)  # the same names, said once


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
