"""The real servers do what the tests ask of them: start, freeze, die, come back with or without their data."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import aio_pika
import pytest
from tests.support.ports import free_port
from tests.support.process import ServerFailedError, ServerProcess, http_get
from tests.support.servers import ConsulServer, DaemonProcess, RabbitMQServer, RegistryServer
from tests.support.wait import eventually_now


def put(url: str, body: object) -> None:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200


def services(server: ConsulServer | RegistryServer) -> set[str]:
    return set(json.loads(http_get(f"{server.url}/v1/catalog/services")[1]))


def register(server: ConsulServer, name: str) -> None:
    put(f"{server.url}/v1/catalog/register", {"Node": "n", "Address": "127.0.0.1", "Service": {"Service": name}})


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_frozen_consul_does_not_answer_until_it_is_resumed(consul_factory: Callable[..., ConsulServer]) -> None:
    server = consul_factory()
    server.pause()
    with pytest.raises(OSError, match="timed out"):
        http_get(f"{server.url}/v1/status/leader", timeout_seconds=0.5)
    server.resume()
    eventually_now(server.is_ready)


def test_a_killed_consul_keeps_its_catalog_and_a_wiped_one_does_not(
    consul_factory: Callable[..., ConsulServer],
) -> None:
    server = consul_factory(persistent=True)
    register(server, "orders")
    server.kill()
    with pytest.raises(OSError, match="refused"):
        http_get(f"{server.url}/v1/status/leader")
    server.start()
    assert services(server) == {"consul", "orders"}
    server.wipe_and_restart()
    assert services(server) == {"consul"}


def test_a_development_consul_starts_empty_each_time(consul_factory: Callable[..., ConsulServer]) -> None:
    server = consul_factory()
    register(server, "orders")
    server.restart()
    assert services(server) == {"consul"}


def test_a_server_left_frozen_is_still_cleaned_up() -> None:
    with ConsulServer() as server:
        group = server.pid
        server.pause()
    assert group_is_gone(group)
    assert not server.folder.exists()


def test_two_consuls_run_side_by_side(consul: ConsulServer, consul_factory: Callable[..., ConsulServer]) -> None:
    other = consul_factory()
    assert other.url != consul.url
    assert other.is_ready()
    assert consul.is_ready()


def test_servers_of_a_killed_test_run_are_killed_too(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from tests.support.servers import ConsulServer\n"
        "server = ConsulServer()\n"
        "server.start(wait=False)\n"
        "print(server.pid, server.folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    repository = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", script], cwd=repository, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        group = int(run.stdout.readline().split()[0])
        assert not group_is_gone(group)
        run.kill()
    eventually_now(lambda: group_is_gone(group))


async def test_a_message_survives_a_stop_and_a_kill_of_the_broker_but_not_a_wipe(
    rabbitmq_factory: Callable[[], RabbitMQServer],
) -> None:
    broker = rabbitmq_factory()
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        body = aio_pika.Message(b"hello", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(body, routing_key="kept")

    async def waiting() -> int:
        async with await aio_pika.connect(broker.url) as connection:
            queue = await (await connection.channel()).declare_queue("kept", durable=True)
            return queue.declaration_result.message_count or 0

    assert broker.stop() == 0
    broker.start()
    assert await waiting() == 1
    broker.kill()
    broker.start()
    assert await waiting() == 1
    broker.wipe_and_restart()
    assert await waiting() == 0


def test_a_frozen_broker_does_not_greet(rabbitmq_factory: Callable[[], RabbitMQServer]) -> None:
    broker = rabbitmq_factory()
    broker.pause()
    with pytest.raises(TimeoutError):
        broker.is_ready()
    broker.resume()
    eventually_now(broker.is_ready)


def test_our_registry_is_killed_frozen_and_wiped_like_consul(
    registry_factory: Callable[..., RegistryServer],
) -> None:
    server = registry_factory()
    put(f"{server.url}/v1/agent/service/register", {"Name": "orders"})
    server.pause()
    with pytest.raises(OSError, match="timed out"):
        http_get(f"{server.url}/v1/status/leader", timeout_seconds=0.5)
    server.resume()
    server.kill()
    server.start()
    assert "orders" in services(server)
    server.wipe_and_restart()
    assert "orders" not in services(server)


def test_a_daemon_is_ready_when_it_is_handed_over_and_ends_cleanly(
    consul: ConsulServer, daemon_factory: Callable[..., DaemonProcess]
) -> None:
    http = free_port()
    variables = {
        "DISCOVERY_HOST": "127.0.0.1",
        "DISCOVERY_PORT": str(free_port()),
        "DISCOVERY_HTTP_PORT": str(http),
        "CONSUL_ADDRESS": consul.url,
    }
    daemon = daemon_factory("toska-discovery", variables, f"http://127.0.0.1:{http}/health/ready")
    assert http_get(f"http://127.0.0.1:{http}/health/live")[0] == 200
    assert daemon.events("serving")
    assert daemon.memory_bytes() > 0
    daemon.assert_clean_exit()
    assert daemon.exit_code() == 0


class Scripted(ServerProcess):
    """A few lines of Python as a server."""

    def __init__(self, code: str) -> None:
        super().__init__("scripted")
        self.code = code

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]

    def is_ready(self) -> bool:
        return "up" in self.log_text()


def test_a_server_that_ends_while_starting_shows_its_last_words() -> None:
    with (
        pytest.raises(ServerFailedError, match="ended with 3 while starting:\nno such door"),
        Scripted("print('no such door'); raise SystemExit(3)"),
    ):
        pass


def test_a_server_that_ignores_sigterm_is_killed_in_the_end() -> None:
    server = Scripted(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    server.stop_seconds = 0.5
    started = time.monotonic()
    with server:
        group = server.pid
        with pytest.raises(ServerFailedError, match="did not end"):
            server.stop()
    assert group_is_gone(group)
    assert time.monotonic() - started < 30


def test_what_a_server_started_itself_ends_with_it() -> None:
    child = (
        "import subprocess, sys, time; print('up', subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with Scripted(child) as server:
        grandchild = int(server.log_text().split()[1])
        server.stop()
        eventually_now(lambda: not Path(f"/proc/{grandchild}").exists() or b"Z" in _state(grandchild))


def _state(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]


def test_a_daemon_that_leaves_a_traceback_has_not_ended_cleanly() -> None:
    code = (
        "import signal, sys, time, traceback\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('Traceback (most recent call last)'), sys.exit(0)))\n"
        'print(\'{"msg": "up"}\', flush=True)\n'
        "time.sleep(60)\n"
    )

    class Faulty(DaemonProcess):
        def command(self) -> list[str]:
            return [sys.executable, "-c", code]

        def is_ready(self) -> bool:
            return bool(self.events("up"))

    with Faulty("faulty", {}) as daemon:
        with pytest.raises(AssertionError, match="Traceback"):
            daemon.assert_clean_exit()
        assert daemon.exit_code() == 0


def test_a_signal_reaches_the_main_process() -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('heard', flush=True))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    with Scripted(code) as server:
        server.signal(signal.SIGHUP)
        eventually_now(lambda: "heard" in server.log_text())
