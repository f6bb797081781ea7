"""What a service imports to join the mesh: a host for its app, a client for other services, key-value state.

Names are loaded when they are first used, so that importing the package costs nothing that a service does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

_HOMES: dict[str, str] = {}
"""Where each public name lives."""

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
