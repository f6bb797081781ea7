"""Fills a registry with many services, and keeps changing them while a load runs."""

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from typing import Self

import orjson
from tests.support.servers import RegistryServer

from bench.support.contestants import registration


def service_name(number: int) -> str:
    return f"svc-{number:04d}"


def loopback(number: int) -> str:
    """An address of its own for each instance: one pool each in the gateway, as in a real mesh."""
    return f"127.16.{number // 250}.{number % 250 + 1}"


class Catalog:
    """Registrations over one connection. Raises SystemExit when the registry refuses one."""

    def __init__(self, registry: RegistryServer, port: int) -> None:
        """`port`: where the instances listen, on all of their addresses."""
        self._connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=30)
        self._port = port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def register(self, service: str, instance: str, number: int, **metadata: str) -> None:
        body = registration(service, instance, loopback(number), self._port, **metadata)
        self._put("/v1/agent/service/register", orjson.dumps(body))

    def deregister(self, instance: str) -> None:
        self._put(f"/v1/agent/service/deregister/{instance}", b"")

    def fill(self, services: int, instances_each: int) -> list[str]:
        """Register so many; gives the services' names."""
        names = [service_name(number) for number in range(services)]
        for number, name in enumerate(names):
            for instance in range(instances_each):
                self.register(name, f"{name}-{instance}", number * instances_each + instance)
        return names

    def _put(self, path: str, body: bytes) -> None:
        self._connection.request("PUT", path, body)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {text!r}")


@dataclass(slots=True)
class Changes:
    """What was changed while the block ran."""

    made: int = 0
    longest_gap_seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)


def steps(loaded: str, free_number: int) -> Iterator[tuple[str, str, str, int, dict[str, str]]]:
    """Endless changes: a further instance of a loaded service comes, its metadata changes, it goes; so does a stranger.

    Each is (what, service, instance, number of its address, metadata).
    """
    for turn in count():
        yield "register", loaded, f"{loaded}-more", free_number, {}
        yield "register", loaded, f"{loaded}-0", 0, {"version": str(turn)}
        yield "register", "stranger", "stranger-1", free_number + 1, {"version": str(turn)}
        yield "deregister", loaded, f"{loaded}-more", free_number, {}
        yield "deregister", "stranger", "stranger-1", free_number + 1, {}


@contextmanager
def changing(
    registry: RegistryServer, port: int, every_seconds: float, loaded: str, free_number: int
) -> Iterator[Changes]:
    """One change every so many seconds while the block runs, on a schedule that does not drift."""
    changes, over = Changes(), Event()

    def change() -> None:
        with Catalog(registry, port) as catalog:
            begin = last = time.monotonic()
            for number, (what, service, instance, address, metadata) in enumerate(steps(loaded, free_number)):
                if over.wait(max(0.0, begin + number * every_seconds - time.monotonic())):
                    return
                try:
                    if what == "register":
                        catalog.register(service, instance, address, **metadata)
                    else:
                        catalog.deregister(instance)
                except (OSError, http.client.HTTPException, SystemExit) as trouble:
                    changes.trouble.append(repr(trouble))
                    return
                now = time.monotonic()
                changes.made += 1
                changes.longest_gap_seconds = max(changes.longest_gap_seconds, now - last)
                last = now

    worker = Thread(target=change, name="change routes", daemon=True)
    worker.start()
    try:
        yield changes
    finally:
        over.set()
        worker.join(35)
    if changes.trouble:
        raise SystemExit(f"the registry failed: {changes.trouble[0]}")
