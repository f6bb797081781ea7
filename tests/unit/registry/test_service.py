"""One service's instances, followed on the virtual clock."""

import asyncio
from contextlib import aclosing

import pytest
from tests.unit.registry.consul_fake import FakeConsul

from toska_mesh.errors import RegistryError
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul.service import ConsulServiceFollower

ORDERS = ServiceName("orders")


class Indexed(FakeConsul):
    """A service's answer carries the index of the services' table, as a registry's does."""

    async def call(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        answer = await super().call(*args, **kwargs)  # type: ignore[arg-type]
        return type(answer)(answer.status, answer.body, self._index_of(str(args[1])))


async def test_instances_come_now_and_at_every_change_also_after_an_outage() -> None:
    consul = Indexed()
    consul.register("orders", "o1")
    troubles: list[str] = []
    follower = ConsulServiceFollower(consul, ORDERS, on_trouble=troubles.append)  # type: ignore[arg-type]
    async with aclosing(follower.updates()) as updates:
        assert [one.id for one in await anext(updates)] == ["o1"]
        asyncio.get_running_loop().call_later(5, consul.register, "orders", "o2")
        assert [one.id for one in await anext(updates)] == ["o1", "o2"]
        assert troubles[-1] == ""
        asyncio.get_running_loop().call_later(1, consul.break_connections, "down")
        asyncio.get_running_loop().call_later(9, consul.deregister, "o1")
        asyncio.get_running_loop().call_later(10, consul.break_connections, "up")
        assert [one.id for one in await anext(updates)] == ["o2"]
        assert "connection refused" in troubles
        assert troubles[-1] == ""


async def test_a_refusal_ends_it() -> None:
    consul = FakeConsul()
    consul.refused_services.add("orders")
    async with aclosing(ConsulServiceFollower(consul, ORDERS).updates()) as updates:
        with pytest.raises(RegistryError, match="403"):
            await anext(updates)
