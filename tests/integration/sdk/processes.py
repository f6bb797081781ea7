"""Services of the SDK as processes, and a small mesh for them to join."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.support.ports import free_port
from tests.support.process import ServerProcess, http_get
from tests.support.servers import DaemonProcess, RegistryServer

ROOT = Path(__file__).resolve().parents[3]


class ServiceProcess(ServerProcess):
    """One instance; ready when it says that it serves, or that it is registered."""

    stop_seconds = 40.0

    def __init__(self, command: Sequence[str], name: str, **env: str) -> None:
        super().__init__(name)
        self._command = command
        self._env = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "TOSKA_LOG_FORMAT": "json",
            **env,
        }

    def command(self) -> Sequence[str]:
        return [sys.executable, *self._command]

    def environment(self) -> Mapping[str, str]:
        return self._env

    def is_ready(self) -> bool:
        return bool(self._told())

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in self.log_lines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and value.get("msg") == name:
                found.append(value)
        return found

    @property
    def instance_id(self) -> str:
        return str(self._told()[0]["instance"])

    @property
    def port(self) -> int:
        return int(self._told()[0]["port"])

    def _told(self) -> list[dict[str, Any]]:
        return self.events("serving") or self.events("registered")


class SmallMesh:
    """Registry, discovery and gateway as processes; started and stopped by `with`."""

    def __init__(self) -> None:
        self.registry = RegistryServer()
        self.grpc_port, self.port, self.admin_port, rest_port = (free_port() for _ in range(4))
        where = {"CONSUL_ADDRESS": self.registry.url}
        self.discovery = DaemonProcess(
            "toska-discovery",
            where
            | {
                "DISCOVERY_HOST": "127.0.0.1",
                "DISCOVERY_PORT": str(self.grpc_port),
                "DISCOVERY_HTTP_PORT": str(rest_port),
            },
            f"http://127.0.0.1:{rest_port}/health/ready",
        )
        self.gateway = DaemonProcess(
            "toska-gateway",
            where
            | {
                "GATEWAY_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(self.port),
                "GATEWAY_ADMIN_PORT": str(self.admin_port),
                "GATEWAY_RATE_LIMIT_ENABLED": "false",
                "GATEWAY_SLOW_START_SECONDS": "0",
                "GATEWAY_ACCESS_LOG": "false",
            },
            f"http://127.0.0.1:{self.port}/health/ready",
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        processes = (self.registry, self.discovery, self.gateway)
        with self._stack:
            for process in processes:
                self._stack.callback(process.close)
                process.start(wait=False)
            for process in processes:
                process.wait_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def eligible(self, service: str) -> set[str]:
        """Ids of the instances that the gateway sends requests to."""
        status, body = http_get(f"http://127.0.0.1:{self.admin_port}/instances?service={service}")
        return {item["id"] for item in json.loads(body) if item["isEligible"]} if status == 200 else set()
