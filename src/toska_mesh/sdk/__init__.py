"""What a service imports to join the mesh: a host for its app, a client for other services, key-value state.

Names are loaded when they are first used, so that importing the package costs nothing that a service does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; at run time `__getattr__` looks names up in `_HOMES`
    from toska_mesh.sdk.checks import CheckResult as CheckResult
    from toska_mesh.sdk.client import CallOptions as CallOptions
    from toska_mesh.sdk.client import Client as Client
    from toska_mesh.sdk.context import RequestContext as RequestContext
    from toska_mesh.sdk.environment import connect_options as connect_options
    from toska_mesh.sdk.environment import service_options as service_options
    from toska_mesh.sdk.kv.api import KeyValueStore as KeyValueStore
    from toska_mesh.sdk.kv.open import open_store as open_store
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
    "Answer": "transport",
    "AppStartError": "lifespan",
    "CallOptions": "client",
    "CheckResult": "checks",
    "Client": "client",
    "ConnectOptions": "options",
    "KeyValueStore": "kv.api",
    "LeaveReport": "leaving",
    "Mesh": "mesh",
    "MeshMiddleware": "middleware",
    "MeshService": "service",
    "Picked": "picks",
    "RequestContext": "context",
    "ServiceOptions": "options",
    "connect_options": "environment",
    "join": "serving",
    "open_store": "kv.open",
    "serve": "serving",
    "service_options": "environment",
}
"""The module, below this package, where each public name lives."""

__all__ = list(_HOMES)  # the same names, said once


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
