"""For tests of services that live in the mesh: a registry and a fake mesh in the test's own process.

The pytest plugin (`plugin`) brings both as fixtures; the names here are for type hints and for fixtures of your own.
They are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toska_mesh.testing.clock import StuckError, VirtualLoop, run_virtual
    from toska_mesh.testing.fake_registry import FakeRegistry
    from toska_mesh.testing.gateway import FakeGateway, GatewayAnswer
    from toska_mesh.testing.handlers import FakeRequest, FakeResponse
    from toska_mesh.testing.history import Event, Events
    from toska_mesh.testing.instance import FakeInstance
    from toska_mesh.testing.member import FakeMember
    from toska_mesh.testing.mesh import FakeClock, FakeMesh, FakeService
    from toska_mesh.testing.registry import EmbeddedRegistry

_HOMES = {
    "EmbeddedRegistry": "registry",
    "Event": "history",
    "Events": "history",
    "FakeClock": "mesh",
    "FakeGateway": "gateway",
    "FakeInstance": "instance",
    "FakeMember": "member",
    "FakeMesh": "mesh",
    "FakeRegistry": "fake_registry",
    "FakeRequest": "handlers",
    "FakeResponse": "handlers",
    "FakeService": "mesh",
    "GatewayAnswer": "gateway",
    "StuckError": "clock",
    "VirtualLoop": "clock",
    "run_virtual": "clock",
}
"""Where each public name lives."""

__all__ = [
    "EmbeddedRegistry",
    "Event",
    "Events",
    "FakeClock",
    "FakeGateway",
    "FakeInstance",
    "FakeMember",
    "FakeMesh",
    "FakeRegistry",
    "FakeRequest",
    "FakeResponse",
    "FakeService",
    "GatewayAnswer",
    "StuckError",
    "VirtualLoop",
    "run_virtual",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
