"""`serve` as the program that people start: signals, exit codes, what it says."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Protocol

import pytest
from tests.integration.sdk.apps import KINDS
from tests.integration.sdk.processes import ServiceProcess
from tests.support.ports import free_port
from tests.support.process import http_get
from tests.support.wait import eventually_now


class Start(Protocol):
    def __call__(self, kind: str, **env: str) -> ServiceProcess: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """A service whose discovery is not there."""
    with ExitStack() as stack:

        def run(kind: str, **env: str) -> ServiceProcess:
            nowhere = {
                "MESH_SERVICE_NAME": "orders",
                "MESH_SERVICE_HOST": "127.0.0.1",
                "MESH_DISCOVERY_ADDRESS": f"127.0.0.1:{free_port()}",
            }
            command = ("-m", "tests.integration.sdk.app_process", kind)
            process = ServiceProcess(command, "orders", **(nowhere | env))
            stack.callback(process.close)
            process.start(wait=False)
            return process

        yield run


def test_it_serves_while_discovery_is_down_says_so_and_ends_with_0(start: Start) -> None:
    process = start("aiohttp")
    process.wait_ready()
    eventually_now(lambda: process.events("waiting_for_registration"))
    status, body = http_get(f"http://127.0.0.1:{process.port}/health")
    assert (status, b"nothing" in body) == (200, True)
    assert process.stop() == 0
    assert "Traceback" not in process.log_text()
    assert [event["signal"] for event in process.events("stop_requested")] == ["SIGTERM"]


def test_a_port_of_the_environment_is_taken(start: Start) -> None:
    port = free_port()
    process = start("aiohttp", MESH_SERVICE_PORT=str(port))
    process.wait_ready()
    assert process.port == port


def test_a_wrong_setting_is_one_line_and_exit_code_2(start: Start) -> None:
    process = start("aiohttp", MESH_SERVICE_PORT="eighty")
    assert process.wait() == 2
    assert "MESH_SERVICE_PORT" in process.log_text()
    assert "Traceback" not in process.log_text()


def test_a_taken_port_is_one_line_and_exit_code_2(start: Start) -> None:
    first = start("aiohttp")
    first.wait_ready()
    second = start("aiohttp", MESH_SERVICE_PORT=str(first.port))
    assert second.wait() == 2
    assert f"orders: port {first.port} is in use" in second.log_text()


def test_a_signal_while_the_app_starts_ends_it_without_a_stay(start: Start) -> None:
    process = start("slow-start")
    eventually_now(lambda: "starting" in process.log_text())
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not process.events("serving")
    assert process.events("stopped")[0]["reason"] == "before it had started"


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_signal_ends_all_waiting(start: Start, kind: str) -> None:
    process = start(kind)
    process.wait_ready()
    with suppress(OSError), ThreadPoolExecutor() as threads:
        slow = threads.submit(http_get, f"http://127.0.0.1:{process.port}/slow?seconds=30", 60)
        eventually_now(lambda: b'http_server_active_requests{service_name="orders"} 1.0' in metrics(process))
        process.signal(signal.SIGINT)
        eventually_now(lambda: process.events("stop_requested"))
        process.signal(signal.SIGINT)
        assert process.wait(15) == 0, "it waited for a request that takes 30 s"
        slow.result()
    told = process.events("stop_requested")
    assert [event["consequence"] for event in told] == ["draining", "leaving at once"]
    assert told[0]["hint"] == "SIGINT again leaves at once"
    assert "Traceback" not in process.log_text(), "a request that was cut off is no bug of the app's"


def test_a_signal_while_it_waits_for_the_mesh_says_what_it_had_waited_for(start: Start) -> None:
    process = start("aiohttp", MESH_SERVICE_WAIT_FOR_REGISTRATION="true")
    process.wait_ready()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.events("stopped")[0]["reason"] == "while it waited for its registration"


def metrics(process: ServiceProcess) -> bytes:
    return http_get(f"http://127.0.0.1:{process.port}/metrics")[1]
