"""`toska wait` as a deploy script uses it, in front of a real gateway."""

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.faults.mesh import Mesh, Pool
from tests.support.ports import free_port
from tests.support.servers import RegistryServer

from toska_mesh.model import HealthStatus, InstanceId
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as started:
        yield started


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def mesh(server: RegistryServer, pool: Pool) -> Iterator[Mesh]:
    with Mesh(server, f"orders{next(_numbers)}", pool) as made:
        yield made


async def drain(server: RegistryServer, instance: str) -> None:
    async with ConsulClient(ConsulOptions(server.url)) as client:
        await ConsulRegistry(client).report_health(InstanceId(instance), HealthStatus.DEGRADED, "draining")


async def toska_wait(server: RegistryServer, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """`environ` instead of the server's address."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("toska")),
        "wait",
        *arguments,
        env={"PATH": os.environ["PATH"], **(environ or {"CONSUL_ADDRESS": server.url})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode().strip(), err.decode().strip()


async def test_a_deploy_script_waits_for_a_version_and_for_the_old_one_to_go(
    server: RegistryServer, mesh: Mesh
) -> None:
    old = mesh.backend("old", version="v1")
    mesh.start()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(toska_wait(server, mesh.service, "--version", "v2"))
        early = tasks.create_task(toska_wait(server, mesh.service, "--version", "v2", "--timeout", "0.5"))
        code, out, err = await early
        assert (code, out) == (1, "")
        assert err == (
            f"toska wait: {mesh.service}, after 0.5 s: 0 of 1 healthy instances of version v2 "
            f"({old.instance} of version v1: Healthy)"
        )
        new = mesh.backend("new", version="v2")
        code, out, err = await waiting
    assert code == 0
    assert out.startswith(f"{mesh.service}: 1 healthy instance of version v2; applied by ")
    assert {old.instance, new.instance} <= mesh.instances().keys()

    only = ("--version", "v2", "--only", "--gone", old.instance)
    code, _, err = await toska_wait(server, mesh.service, *only, "--timeout", "0.5")
    assert code == 1
    assert f"{old.instance} of version v1: Healthy is registered and not draining" in err
    assert "other versions still get requests" in err
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(toska_wait(server, mesh.service, *only))
        await drain(server, old.instance)
        code, out, _ = await waiting
    assert code == 0
    assert out.startswith(f"{mesh.service}: {old.instance} is draining, only 1 healthy instance of version v2; applied")
    mesh.deregister(old.instance)
    assert (await toska_wait(server, mesh.service, "--gone", old.instance))[1].startswith(
        f"{mesh.service}: {old.instance} is not registered; applied by "
    )
    code, out, _ = await toska_wait(server, mesh.service)
    assert code == 0
    assert out.startswith(f"{mesh.service}: 1 instance in use; applied by ")


async def test_a_gateway_that_hangs_is_what_the_script_reads(server: RegistryServer, mesh: Mesh) -> None:
    mesh.backend("1")
    gateway = mesh.start(own=True)
    gateway.pause()
    try:
        code, _, err = await toska_wait(server, mesh.service, "--timeout", "4")
    finally:
        gateway.resume()
    await asyncio.to_thread(gateway.stop)
    assert code == 1
    told, gave_up = err.splitlines()
    assert told.startswith(f"toska wait: {mesh.service}: waiting: 1 instance in use in the registry, but 1 of ")
    assert f"{mesh.service}, after 4 s: 1 instance in use in the registry, but 1 of " in gave_up
    assert f"-{gateway.pid}-" in told
    assert f"-{gateway.pid}-" in gave_up


async def test_without_an_answer_it_says_soon_which_registry_is_asked(server: RegistryServer) -> None:
    port = str(free_port())
    code, out, err = await toska_wait(server, "orders", "--timeout", "3", REGISTRY_PORT=port)
    assert (code, out) == (1, "")
    reason = f"registry http://127.0.0.1:{port} cannot be reached: connection refused (by REGISTRY_PORT)"
    assert err.splitlines() == [
        f"toska wait: orders: waiting: {reason}",
        f"toska wait: orders, after 3 s: {reason}",
    ]


async def test_the_port_of_the_embedded_registry_is_enough(server: RegistryServer, mesh: Mesh) -> None:
    mesh.backend("1")
    mesh.start()
    code, out, _ = await toska_wait(server, mesh.service, REGISTRY_PORT=server.url.rpartition(":")[2])
    assert code == 0
    assert out.startswith(f"{mesh.service}: 1 instance in use")
    _, _, err = await toska_wait(server, "nobody", "--timeout", "0.5")
    assert f"none is registered); asked is registry {server.url} (by CONSUL_ADDRESS)" in err
