"""Where fences stand in the registry (see `fence`)."""

from typing import Any

from toska_mesh.errors import RegistryError
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.lock import kv_path

PREFIX = "toska/fences/"


def fence_path(service: ServiceName) -> str:
    return kv_path(PREFIX + service)


def fences_in(body: bytes) -> dict[ServiceName, int]:
    """The ModifyIndex of each fence in a recursive reading. Raises RegistryError."""
    entries = parse_json(body, "the fences") if body else []
    if not isinstance(entries, list):
        raise RegistryError("the registry's list of fences is no list")
    found: dict[ServiceName, int] = {}
    for entry in entries:
        key, index = _of(entry, "Key"), _of(entry, "ModifyIndex")
        if isinstance(key, str) and isinstance(index, int) and key.removeprefix(PREFIX):
            found[ServiceName(key.removeprefix(PREFIX))] = index
    return found


def _of(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else None
