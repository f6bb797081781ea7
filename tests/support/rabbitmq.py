"""A RabbitMQ broker of its own: own node, own port mapper, own data; no system service is touched.

Two ways to run it, see `tests.support.provision`: the installed server started as a process, or a container.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence

from tests.support import guardian, provision
from tests.support.ports import free_port
from tests.support.process import ServerProcess, bare_environment

_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"  # the broker's first frame is connection.start

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users.guest = true
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = info
log.file = false
"""


class RabbitMQServer(ServerProcess):
    """Broker on loopback with the user `guest`; queues and messages survive `stop`, `kill` and `start`."""

    ready_seconds = 90.0
    stop_seconds = 40.0

    def __init__(self) -> None:
        super().__init__("rabbitmq")
        self.source = provision.rabbitmq()
        self.port = free_port()
        self._node = f"toska-{secrets.token_hex(4)}@localhost"
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._volume = f"toska-rabbitmq-{secrets.token_hex(6)}"
        self._container = self._volume

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def is_ready(self) -> bool:
        """The listener opens when the broker has booted; its greeting is the proof."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(_AMQP_HEADER)
            return connection.recv(1) == _METHOD_FRAME

    def command(self) -> Sequence[str]:
        if self.source.image:
            # A name of its own for every start: the last container may still be in removal.
            self._container = f"{self._volume}-{secrets.token_hex(3)}"
            return [
                *("docker", "run", "--rm", "--name", self._container, "--hostname", "broker"),
                *("--publish", f"127.0.0.1:{self.port}:5672", "--volume", f"{self._volume}:/var/lib/rabbitmq"),
                self.source.image,
            ]
        return [str(self.source.path)]

    def environment(self) -> Mapping[str, str]:
        if self.source.image:
            return dict(os.environ)  # the client finds its engine and its login by them
        config = self.folder / "rabbitmq.conf"
        config.write_text(_CONFIG.format(port=self.port))
        plugins = self.folder / "enabled_plugins"
        plugins.write_text("[].\n")
        empty = self.folder / "rabbitmq-env.conf"
        empty.write_text("")
        return {
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_BASE": str(self.data),
            "RABBITMQ_MNESIA_BASE": str(self.data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.data / "log"),
            "RABBITMQ_PID_FILE": str(self.data / "broker.pid"),
            "RABBITMQ_SCHEMA_DIR": str(self.data / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.data / "config"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": str(empty),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            # One scheduler that does not spin: several brokers may share two cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def start(self, wait: bool = True) -> None:
        if not self.source.image:
            self._start_epmd()
        super().start(wait)

    def _start_epmd(self) -> None:
        """In the foreground and ours to end; left to itself, Erlang would start one that outlives everything."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        epmd = shutil.which("epmd") or "/usr/bin/epmd"
        self._epmd = subprocess.Popen(
            [epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            env=bare_environment(self.home, {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        guardian.guard(self._epmd.pid)

    def pause(self) -> None:
        self._docker("pause") if self.source.image else super().pause()

    def resume(self) -> None:
        if not self.source.image:
            super().resume()
        elif self._docker_says("{{.State.Paused}}") == "true":
            self._docker("unpause")

    def kill(self) -> None:
        if self.source.image and self.is_running:
            self._docker("kill", check=False)
        super().kill()

    def terminate(self) -> None:
        if self.source.image:
            self._docker("kill", "--signal", "TERM")
        else:
            super().terminate()

    def wipe_and_restart(self) -> None:
        if self.source.image:
            self.kill()
            self._remove_volume()
        super().wipe_and_restart()

    def close(self) -> None:
        super().close()
        if self.source.image:
            self._remove_volume()
        if self._epmd is not None and self._epmd.poll() is None:
            self._epmd.send_signal(signal.SIGKILL)
            self._epmd.wait(10)
            guardian.release(self._epmd.pid)

    def _docker(self, verb: str, *options: str, check: bool = True) -> None:
        subprocess.run(["docker", verb, *options, self._container], check=check, capture_output=True, timeout=60)

    def _docker_says(self, template: str) -> str:
        asked = subprocess.run(
            ["docker", "inspect", "--format", template, self._container],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return asked.stdout.strip()

    def _remove_volume(self) -> None:
        subprocess.run(
            ["docker", "volume", "rm", "--force", self._volume], check=False, capture_output=True, timeout=60
        )
