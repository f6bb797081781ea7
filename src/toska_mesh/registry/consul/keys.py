"""Plain keys and values in Consul's KV store, for replicas that leave each other word."""

from base64 import b64decode
from collections.abc import Mapping

from toska_mesh.errors import RegistryError
from toska_mesh.registry.consul.client import ConsulApi
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.lock import kv_path


class ConsulKeys:
    """Holds no state. Raises as `Registry` does."""

    def __init__(self, api: ConsulApi) -> None:
        self._api = api

    async def put(self, key: str, value: bytes, deadline: float | None = None) -> None:
        await self._api.call("PUT", kv_path(key), body=value, deadline=deadline)

    async def get(self, key: str, deadline: float | None = None) -> bytes | None:
        """The value, or None when there is no such key."""
        answer = await self._api.call("GET", kv_path(key), params={"raw": ""}, deadline=deadline, missing_ok=True)
        return None if answer.status == 404 else answer.body

    async def delete(self, key: str, deadline: float | None = None) -> None:
        await self._api.call("DELETE", kv_path(key), deadline=deadline)

    async def all_below(self, prefix: str, deadline: float | None = None) -> Mapping[str, bytes]:
        """Every key that begins with `prefix`, with its value."""
        answer = await self._api.call(
            "GET", kv_path(prefix), params={"recurse": ""}, deadline=deadline, missing_ok=True
        )
        if answer.status == 404:
            return {}
        entries = parse_json(answer.body, "kv")
        if not isinstance(entries, list):
            raise RegistryError("the registry's list of keys is no list")
        return {str(entry["Key"]): b64decode(entry.get("Value") or "") for entry in entries}
