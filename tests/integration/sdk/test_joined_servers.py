"""Real servers with a joined app, where something is not as it should be; no mesh needed."""

import signal
import socket

import pytest
from tests.integration.sdk.processes import ServiceProcess
from tests.support.ports import free_port
from tests.support.wait import eventually_now

RUN = {
    "uvicorn": ("-m", "uvicorn", "--host", "127.0.0.1", "tests.integration.sdk.joined_apps:wrapped", "--port"),
    "run_app": ("-m", "tests.integration.sdk.joined_apps"),
}


def process(kind: str, port: int) -> ServiceProcess:
    nowhere = {"MESH_SERVICE_NAME": "orders", "MESH_DISCOVERY_ADDRESS": f"127.0.0.1:{free_port()}"}
    return ServiceProcess((*RUN[kind], str(port)), "orders", **nowhere)


@pytest.mark.parametrize("kind", RUN)
def test_a_server_whose_port_is_taken_ends_at_once(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        started = process(kind, other.getsockname()[1])
        try:
            started.start(wait=False)
            assert started.wait(12) in (1, 3), "it waited for the 20 s of a drain"
            assert "address already in use" in started.log_text().lower()
        finally:
            started.close()


@pytest.mark.parametrize("kind", RUN)
def test_a_joined_service_says_that_it_heard_the_signal_and_how_to_wait_for_nothing(kind: str) -> None:
    started = process(kind, 0)
    try:
        started.start(wait=False)
        eventually_now(lambda: started.events("waiting_for_registration"))
        started.signal(signal.SIGINT)
        started.wait(30)
        (told,) = started.events("stop_requested")
        assert (told["signal"], told["hint"]) == ("SIGINT", "SIGINT again leaves at once")
    finally:
        started.close()
