"""Real servers with a joined app, where something is not as it should be; no mesh needed."""

import socket

import pytest
from tests.integration.sdk.processes import ServiceProcess
from tests.support.ports import free_port

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
