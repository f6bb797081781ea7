"""Calls of services that are known through discovery, as most services know them."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.discovery.conftest import DiscoveryServer
from tests.integration.faults.mesh import Mesh as FaultyMesh
from tests.integration.faults.mesh import Pool, in_thread
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.errors import CircuitOpenError, NoInstanceError, UpstreamError
from toska_mesh.sdk import CallOptions, ConnectOptions, Mesh

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def discovery() -> Iterator[tuple[RegistryServer, DiscoveryServer]]:
    """An embedded registry and a discovery over it."""
    with RegistryServer() as registry, DiscoveryServer(registry.url) as server:
        yield registry, server


def options(server: DiscoveryServer) -> ConnectOptions:
    return ConnectOptions(discovery_address=server.target)


async def test_what_is_called_is_followed(discovery: tuple[RegistryServer, DiscoveryServer], pool: Pool) -> None:
    registry, server = discovery
    with FaultyMesh(registry, "followed", pool) as faulty:
        one = faulty.backend("one", **{"toska-timeout-ms": "7000", "toska-retries": "9"})
        async with Mesh(options(server), calls=CallOptions(slow_start_seconds=0)) as mesh:
            client = mesh.client("followed", timeout_seconds=10)
            await eventually(lambda: mesh.explain("followed")["known"], what="discovery has heard of the service")
            assert (await client.get("/items/1")).mesh_instance.id == one.instance
            two = await in_thread(faulty.backend, "two")
            seen: set[str] = set()

            async def has_seen_both() -> bool:
                answer = await client.get("/")
                seen.add(answer.mesh_instance.id)
                return seen == {one.instance, two.instance}

            async with asyncio.timeout(10):
                while not await has_seen_both():
                    await asyncio.sleep(0.01)
            explained = mesh.explain("followed")
            assert {row["id"] for row in explained["instances"]} == seen
            assert (explained["timeout_seconds"], explained["retries"]) == (7.0, 3)
            assert explained["by_metadata"]["toska-timeout-ms"] == one.instance
            assert (
                f"toska-retries=9 of {one.instance}: metadata can lower this, it cannot raise it"
                in explained["ignored"]
            )
            with pytest.raises(NoInstanceError, match="there is no such service"):
                await mesh.client("nobody", timeout_seconds=5).get("/")


async def test_without_discovery_what_is_known_stays_and_what_is_not_is_said(
    registry_factory: Callable[..., RegistryServer],
) -> None:
    registry = await in_thread(registry_factory)
    with DiscoveryServer(registry.url) as server, FaultyMesh(registry, "kept") as faulty:
        one = faulty.backend("one")
        async with Mesh(options(server)) as mesh:
            client = mesh.client("kept", timeout_seconds=10)
            await eventually(lambda: mesh.explain("kept")["known"], what="discovery has heard of the service")
            assert (await client.get("/")).status == 200
            server.kill()
            await eventually(lambda: mesh.stale_seconds > 0)
            assert (await client.get("/")).mesh_instance.id == one.instance
            with pytest.raises(NoInstanceError, match=r"nothing is known of it after .* failed to connect"):
                await mesh.client("others", timeout_seconds=0.3).get("/")


async def test_anything_can_be_picked(consul: ConsulServer, pool: Pool) -> None:
    with FaultyMesh(consul, "picked", pool) as faulty:
        one = faulty.backend("one", register=False)
        faulty.register(one.instance, one.port, scheme="tcp")
        async with Mesh(ConnectOptions(provider="consul", consul_address=consul.url)) as mesh:

            async def use() -> str:
                with await mesh.pick("picked", key="user-7") as picked:
                    assert picked.instance.id == one.instance
                    _, writer = await asyncio.open_connection(picked.host, picked.port)
                    writer.close()
                    return picked.instance.id

            assert await use() == one.instance
            with pytest.raises(NoInstanceError):
                await mesh.pick("nobody")
            with pytest.raises(UpstreamError, match="scheme tcp"):
                await mesh.client("picked").get("/")
            one.kill()
            for _ in range(3):
                with pytest.raises(ConnectionRefusedError):
                    await use()
            with pytest.raises(CircuitOpenError):
                await use()


async def test_the_example_survives_an_instance_being_killed(
    discovery: tuple[RegistryServer, DiscoveryServer], pool: Pool
) -> None:
    registry, server = discovery
    with FaultyMesh(registry, "hello", pool) as faulty:
        one, two = faulty.backend("one"), faulty.backend("two")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "examples" / "client.py"),
            env={"MESH_DISCOVERY_ADDRESS": server.target, "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert process.stdout is not None
            lines: list[str] = []

            async def until(word: str, times: int) -> None:
                assert process.stdout is not None
                async with asyncio.timeout(20):
                    while sum(word in line for line in lines) < times:
                        line = await process.stdout.readline()
                        assert line, "\n".join(lines)
                        lines.append(line.decode())

            await until(one.instance, 1)
            await until(two.instance, 1)
            one.kill()
            lines.clear()
            await until(two.instance, 3)
            assert not [line for line in lines if line.startswith("no answer: hello")]
            assert [line for line in lines if "adder: there is no such service" in line]
        finally:
            process.kill()
            await process.wait()
