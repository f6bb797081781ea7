"""Services of every kind in a real mesh: replaced under load, they lose no request."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.integration.sdk.apps import KINDS
from tests.integration.sdk.processes import ServiceProcess, SmallMesh
from tests.support.load import Load
from tests.support.wait import eventually

BODY = b"x" * 20_000


@pytest.fixture(scope="module")
def mesh() -> Iterator[SmallMesh]:
    with SmallMesh() as small:
        yield small


def instance(mesh: SmallMesh, kind: str) -> ServiceProcess:
    command = ("-m", "tests.integration.sdk.app_process", kind)
    return ServiceProcess(
        command,
        f"shop-{kind}",
        MESH_SERVICE_HOST="127.0.0.1",
        MESH_DISCOVERY_ADDRESS=f"127.0.0.1:{mesh.grpc_port}",
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_an_instance_that_is_told_to_stop_under_load_loses_no_request(mesh: SmallMesh, kind: str) -> None:
    service = f"shop-{kind}"
    with ExitStack() as stack:
        pair = [stack.enter_context(instance(mesh, kind)) for _ in range(2)]
        ids = {process.instance_id for process in pair}
        await eventually(lambda: mesh.eligible(service) == ids, 20)
        gets = Load(mesh.port, f"/api/{service}/hello", connections=3)
        slow = Load(mesh.port, f"/api/{service}/slow?seconds=0.2", connections=3)
        posts = Load(
            mesh.port,
            f"/api/{service}/echo",
            "POST",
            connections=3,
            bodies=itertools.repeat((BODY, {"Content-Type": "application/octet-stream"})),
            is_fine=lambda answer: answer.status == 200 and answer.body == BODY,
        )
        async with gets.running(), slow.running(), posts.running():
            await asyncio.sleep(0.5)
            code = await asyncio.to_thread(pair[0].stop)
            await asyncio.sleep(0.3)
        for load in (gets, slow, posts):
            load.figures.assert_no_failure()
        assert code == 0, pair[0].tail()
        assert "Traceback" not in pair[0].log_text(), pair[0].log_text()
        (left,) = pair[0].events("left")
        assert left["level"] == "info", left
        assert mesh.eligible(service) == {pair[1].instance_id}
