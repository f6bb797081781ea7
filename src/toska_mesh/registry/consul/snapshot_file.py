"""The last good table on disk, so that a gateway which starts while the registry is down has something to serve.

Written atomically (a reader sees the old file or the new one) and not at every change. A file that cannot be used is
said and passed over: it is a help, never a condition. So is the table of another registry: its instances are not ours
to route to.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Never

import orjson

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.telemetry import event_log

_FORMAT = 1
log = event_log("registry")


def _utcnow() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SavedTable:
    services: Mapping[ServiceName, tuple[Instance, ...]]
    age_seconds: float


class SnapshotFile:
    """One file, one writer. `debounce_seconds` is the shortest time between two writes.

    `registry`: whose table it is, as `ConsulClient.origin` says it; it goes into the file, so it holds no credentials.
    """

    def __init__(
        self,
        path: Path,
        *,
        registry: str = "",
        debounce_seconds: float = 2.0,
        utcnow: Callable[[], datetime] = _utcnow,
    ) -> None:
        self._path = path
        self._registry = registry
        self._debounce_seconds = debounce_seconds
        self._utcnow = utcnow
        self._encoded: dict[ServiceName, tuple[tuple[Instance, ...], bytes]] = {}

    async def keep(self, catalog: Latest[CatalogSnapshot]) -> Never:
        """Until cancelled, save the newest table that the registry itself confirmed."""
        failed = False
        async for snapshot in catalog.updates():
            if not snapshot.is_stale:
                body = await self._encode(snapshot)
                try:
                    await asyncio.to_thread(self._write, body)
                except OSError as error:
                    if not failed:
                        log.warning("snapshot_not_saved", path=str(self._path), error=str(error))
                    failed = True
                else:
                    failed = False
            await asyncio.sleep(self._debounce_seconds)
        raise AssertionError("updates never end")

    async def _encode(self, snapshot: CatalogSnapshot) -> bytes:
        """Services that did not change since the last time are not encoded again."""
        encoded = {}
        for count, (service, instances) in enumerate(snapshot.services.items()):
            known = self._encoded.get(service)
            if known is None or known[0] is not instances:
                known = (instances, orjson.dumps([_to_json(instance) for instance in instances]))
                if count % 50 == 49:
                    await asyncio.sleep(0)
            encoded[service] = known
        self._encoded = encoded
        head = orjson.dumps({"format": _FORMAT, "saved_at": self._utcnow().isoformat(), "registry": self._registry})
        services = b",\n".join(orjson.dumps(name) + b":" + body for name, (_, body) in encoded.items())
        return head[:-1] + b',"services":{\n' + services + b"}}\n"

    def _write(self, body: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path)

    def load(self) -> SavedTable | None:
        """The saved table; None when there is none that can be used."""
        try:
            return self._parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("snapshot_not_usable", path=str(self._path), error=repr(error))
            return None

    def _parse(self, body: bytes) -> SavedTable | None:
        saved = orjson.loads(body)
        if saved["format"] != _FORMAT:
            raise ValueError(f"format {saved['format']!r} is not {_FORMAT}")
        origin = saved.get("registry", "")  # empty: written before the file said so
        if origin and self._registry and origin != self._registry:
            log.warning(
                "snapshot_of_another_registry", path=str(self._path), registry=self._registry, saved_from=origin
            )
            return None
        age = (self._utcnow() - datetime.fromisoformat(saved["saved_at"])).total_seconds()
        services = {
            ServiceName(name): tuple(_from_json(ServiceName(name), entry) for entry in entries)
            for name, entries in saved["services"].items()
        }
        return SavedTable(MappingProxyType(services), max(0.0, age))


def _to_json(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "host": instance.endpoint.host,
        "port": instance.endpoint.port,
        "status": instance.status.label,
        "metadata": dict(instance.metadata),
        "registered_at": instance.registered_at.isoformat() if instance.registered_at else None,
        "output": instance.output,
        "create_index": instance.create_index,
    }


def _from_json(service: ServiceName, entry: Mapping[str, Any]) -> Instance:
    registered_at = entry["registered_at"]
    return Instance(
        service=service,
        id=InstanceId(entry["id"]),
        endpoint=Endpoint(entry["host"], entry["port"]),
        status=HealthStatus.from_label(entry["status"]),
        metadata=MappingProxyType(dict(entry["metadata"])),
        registered_at=datetime.fromisoformat(registered_at) if registered_at else None,
        output=entry["output"],
        create_index=entry["create_index"],
    )
