"""The real servers of the integration and contract tests: Consul, RabbitMQ, Redis, our registry and our daemons.

Each is a context manager with the methods of `ServerProcess` (start, stop, kill, pause, resume, wipe_and_restart, …).
"""

import importlib.metadata
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import provision
from tests.support.ports import free_port
from tests.support.process import ServerFailedError, ServerProcess, bare_environment, http_get
from tests.support.rabbitmq import RabbitMQServer

__all__ = [
    "ConsulServer",
    "DaemonProcess",
    "RabbitMQServer",
    "RedisServer",
    "RegistryServer",
    "ServerFailedError",
    "ServerProcess",
    "ToskaStoreServer",
    "bare_environment",
    "http_get",
]


class ConsulServer(ServerProcess):
    """One Consul server on loopback.

    In memory (`-dev`, an empty catalog after each start), or with `persistent=True` a single-server cluster whose
    catalog survives `kill` and `start`.
    """

    def __init__(self, persistent: bool = False, **config: object) -> None:
        """Further keys of Consul's own configuration go into `config`."""
        super().__init__("consul")
        self.persistent = persistent
        self.binary = provision.consul()
        self.port = free_port()
        self._config: dict[str, object] = {
            "node_name": "consul-under-test",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": True,
            "performance": {"raft_multiplier": 1},
            "ports": {
                "http": self.port,
                "https": -1,
                "dns": -1,
                "grpc": -1,
                "server": free_port(),
                "serf_lan": free_port(),
                "serf_wan": -1,
            },
        }
        if self.binary.version >= (1, 14):
            self._config["ports"] |= {"grpc_tls": -1}  # type: ignore[operator]
        if persistent:
            self._config |= {"server": True, "bootstrap_expect": 1}
        self._config |= config

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        path = self.folder / "config.json"
        path.write_text(json.dumps(self._config))
        mode = [f"-data-dir={self.data}"] if self.persistent else ["-dev"]
        return [str(self.binary.path), "agent", *mode, f"-config-file={path}"]

    def is_ready(self) -> bool:
        """A leader that has taken the catalog over: it has registered itself and found itself healthy."""
        status, body = http_get(f"{self.url}/v1/health/service/consul?passing")
        return status == 200 and bool(json.loads(body))


class RedisServer(ServerProcess):
    """One Redis on loopback. Every write is on the disk before it is answered, so `kill` and `start` keep the data."""

    def __init__(self, *arguments: str) -> None:
        """Further options of redis-server, as `--requirepass`, `secret`."""
        super().__init__("redis")
        self.binary = provision.redis()
        self.port = free_port()
        self._arguments = arguments

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [
            *(str(self.binary.path), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no"),
            *self._arguments,
        ]

    def is_ready(self) -> bool:
        """An answer of its own; without the password it is an error, which is one, too."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


class ToskaStoreServer(ServerProcess):
    """Our stand-in for ToskaStore, in a process of its own; its data survives `kill` and `start`."""

    def __init__(self, *arguments: str) -> None:
        """Further options of `tests.support.toska_store`."""
        super().__init__("toska-store")
        self.port = free_port()
        self._arguments = arguments

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        log = str(self.data / "toska.aof")
        return [
            *(sys.executable, "-m", "tests.support.toska_store", "--port", str(self.port), "--log", log),
            *self._arguments,
        ]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[2])}

    def is_ready(self) -> bool:
        return http_get(f"{self.url}/health")[0] == 200


class DaemonProcess(ServerProcess):
    """One of our daemons, run from its console script with the given variables and nothing else."""

    stop_seconds = 30.0

    def __init__(
        self,
        program: str,
        env: Mapping[str, str],
        ready_url: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """`ready_url` has to answer 200 before `start` returns; without one `start` returns at once."""
        super().__init__(program)
        self.program = program
        self.env = dict(env)
        self.ready_url = ready_url
        self.arguments = tuple(arguments)

    def command(self) -> Sequence[str]:
        script = Path(sys.executable).with_name(self.program)
        if script.exists():
            return [str(script), *self.arguments]
        entry = next(e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == self.program)
        code = f"import sys; sys.argv[0] = {self.program!r}; from {entry.module} import {entry.attr} as main; main()"
        return [sys.executable, "-c", code, *self.arguments]

    def environment(self) -> Mapping[str, str]:
        return self.env

    def is_ready(self) -> bool:
        return self.ready_url is None or http_get(self.ready_url)[0] == 200

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The JSON log lines, all or those of one event (the field `msg`)."""
        found = []
        for line in self.log_lines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and (name is None or value.get("msg") == name):
                found.append(value)
        return found

    def assert_clean_exit(self) -> None:
        """SIGTERM ends it with code 0 and without a traceback in its log."""
        code = self.stop()
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"
        assert "Traceback" not in self.log_text(), self.log_text()


class RegistryServer(DaemonProcess):
    """`toska-registry` with its state in the server's data folder, so that it survives `kill` and `start`."""

    def __init__(self, **env: str) -> None:
        super().__init__("toska-registry", env)
        self.port = free_port()
        self.env = {
            "REGISTRY_HOST": "127.0.0.1",
            "REGISTRY_PORT": str(self.port),
            "REGISTRY_DATA_DIR": str(self.data),
            **env,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        status, body = http_get(f"{self.url}/v1/status/leader")
        return status == 200 and body.strip() not in (b"", b'""')
