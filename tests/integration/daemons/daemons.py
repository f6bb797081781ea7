"""What there is to know about each daemon so that one test can treat them all: its ports, its folder, its settings."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.ports import free_port
from tests.support.process import bare_environment
from tests.support.servers import DaemonProcess, http_get

from toska_mesh.discovery.settings import DiscoverySettings
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.healthmonitor.settings import HealthMonitorSettings
from toska_mesh.registryd.settings import RegistrySettings
from toska_mesh.settings import DaemonSettings

NOBODY = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""
NO_BROKER = "amqp://guest:guest@127.0.0.1:9/"

RUN_SECONDS = 40.0
"""Longest life of a daemon that is expected to refuse; generous, the machine may be busy."""


@dataclass(frozen=True, slots=True)
class Daemon:
    name: str
    settings: type[DaemonSettings]
    ports: tuple[str, ...]
    """Variables of its ports; the last one serves health and metrics."""
    data_dir: str = ""
    """Variable of its folder."""
    follows: bool = True
    """Whether it asks a registry."""
    announces: bool = False
    """Whether it publishes events."""

    @property
    def program(self) -> str:
        return f"toska-{self.name}"

    @property
    def prefix(self) -> str:
        return f"{self.name.upper()}_"

    def __str__(self) -> str:
        return self.name


GATEWAY = Daemon("gateway", GatewaySettings, ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT"))
DISCOVERY = Daemon(
    "discovery", DiscoverySettings, ("DISCOVERY_PORT", "DISCOVERY_HTTP_PORT"), "DISCOVERY_DATA_DIR", announces=True
)
HEALTHMONITOR = Daemon(
    "healthmonitor", HealthMonitorSettings, ("HEALTHMONITOR_PORT",), "HEALTHMONITOR_DATA_DIR", announces=True
)
REGISTRY = Daemon("registry", RegistrySettings, ("REGISTRY_PORT",), "REGISTRY_DATA_DIR", follows=False)

ALL = (GATEWAY, DISCOVERY, HEALTHMONITOR, REGISTRY)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a daemon ended that was run to its end."""

    code: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.errors.splitlines()

    def assert_refusal(self, program: str, *words: str) -> None:
        """Exit code 2 and one line that carries all the words; never a traceback, nothing on standard output."""
        said = f"code {self.code}\n{self.errors}\n{self.output}"
        assert self.code == 2, said
        assert "Traceback" not in said, said
        assert len(self.lines) == 1, said
        assert self.errors.startswith(f"{program}: "), said
        for word in words:
            assert word in self.errors, f"{word!r} is missing: {said}"


def run_to_the_end(program: str, home: Path, env: Mapping[str, str], *arguments: str) -> Ended:
    """Run the console script with these variables and nothing else; it has to end by itself."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        env=bare_environment(home, env),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Running(DaemonProcess):
    """A daemon on free ports, with its data in the server's own folder."""

    def __init__(self, daemon: Daemon, registry_url: str = NOBODY, **env: str) -> None:
        super().__init__(daemon.program, {})
        self.daemon = daemon
        self.ports = {variable: free_port() for variable in daemon.ports}
        self.stdout: int | None = None
        """A file descriptor to use as standard output instead of the log file."""
        self.env = {
            f"{daemon.prefix}HOST": "127.0.0.1",
            **{variable: str(port) for variable, port in self.ports.items()},
            **({daemon.data_dir: str(self.data)} if daemon.data_dir else {}),
            **({"CONSUL_ADDRESS": registry_url} if daemon.follows else {}),
            **env,
        }

    def _spawn(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        if self.stdout is None:
            return super()._spawn(output)
        command: Sequence[str] = list(self.command())
        if self.stdout < 0:
            command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command]
        return subprocess.Popen(
            command,
            env=bare_environment(self.home, self.environment()),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self.stdout if self.stdout >= 0 else output,
            stderr=output,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[self.daemon.ports[-1]]}"

    def is_ready(self) -> bool:
        return http_get(f"{self.url}/health/ready")[0] == 200

    def is_live(self) -> bool:
        return http_get(f"{self.url}/health/live")[0] == 200

    def readiness(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Status code and checks by name."""
        status, body = http_get(f"{self.url}/health/ready")
        return status, {check["name"]: check for check in json.loads(body)["checks"]}

    def assert_ended_well(self, *codes: int) -> None:
        code = self.wait()
        self.kill()
        assert code in (codes or (0,)), f"{self.name} ended with {code}:\n{self.tail()}"
        assert "Traceback" not in self.log_text(), self.log_text()
