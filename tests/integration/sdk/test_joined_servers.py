"""Real servers with a joined app, where something is not as it should be; no mesh needed."""

import asyncio
import signal
import socket

import pytest
from tests.integration.sdk.processes import ServiceProcess
from tests.integration.sdk.scripted import Recorder
from tests.support.ports import free_port
from tests.support.wait import eventually, eventually_now

from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.options import ServiceOptions

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


async def test_where_the_signal_is_the_servers_the_end_is_told_when_the_server_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "toska")
    mesh = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = ServiceOptions(name="orders", port=server.getsockname()[1], drain_seconds=20)
        joined = Joined(options, metrics_registry=None, open_enrolment=mesh.open)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(joined.run())
            await eventually(joined.stay.is_registered)
            await joined.leave()
    told = [vars(record)["fields"] for record in caplog.records if "stop_requested" in record.getMessage()]
    assert [fields["reason"] for fields in told] == ["the server stops"]
