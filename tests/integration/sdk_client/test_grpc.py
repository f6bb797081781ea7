"""Generated stubs over the mesh: real gRPC servers, chosen per call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.integration.faults.mesh import Mesh as FaultyMesh
from tests.integration.faults.mesh import in_thread
from tests.support.ports import free_port
from tests.support.wait import eventually

from toska_mesh.errors import NoInstanceError
from toska_mesh.resilience import BreakerPolicy, Deadline
from toska_mesh.sdk import context as contexts
from toska_mesh.sdk.client import CallOptions
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.options import ConnectOptions

SECRET = "a secret of at least thirty-two bytes"


class Server:
    """One instance of the service `shop.Orders`; messages are plain bytes."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.port = free_port()
        self.calls: list[tuple[str, dict[str, Any], float | None]] = []
        self.fails_with: grpc.StatusCode | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        handlers = {
            "Get": grpc.unary_unary_rpc_method_handler(self._get),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            "Put": grpc.stream_unary_rpc_method_handler(self._put),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", handlers),))
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)

    async def _note(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        self.calls.append((self.instance, metadata, context.time_remaining()))
        if self.fails_with is not None:
            await context.abort(self.fails_with, "as the test wants it")

    async def _get(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await self._note(context)
        if request == b"slow":
            await asyncio.sleep(30)
        return self.instance.encode()

    async def _watch(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        await self._note(context)
        for number in range(int(request)):
            yield b"%b %d" % (self.instance.encode(), number)
            await asyncio.sleep(0.01)

    async def _put(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await self._note(context)
        return b"".join([part async for part in requests])


class Shop:
    """The service with its servers, registered, and a mesh that calls it."""

    def __init__(self, faulty: FaultyMesh, stack: AsyncExitStack) -> None:
        self._faulty = faulty
        self._stack = stack
        self.mesh: Mesh

    async def server(self, name: str, *, wire_port: int = 0, **metadata: str) -> Server:
        server = Server(f"{self._faulty.service}-{name}")
        await server.start()
        self._stack.push_async_callback(server.stop)
        await in_thread(
            lambda: self._faulty.register(server.instance, wire_port or server.port, **({"scheme": "grpc"} | metadata))
        )
        return server

    async def open(self, **options: Any) -> None:
        connect = ConnectOptions(
            provider="consul", consul_address=self._faulty.registry.url, auth_secret=SECRET, identity="caller"
        )
        self.mesh = await self._stack.enter_async_context(
            Mesh(connect, calls=CallOptions(slow_start_seconds=0.0, **options))
        )

    def method(self, kind: str, name: str, **options: Any) -> Any:
        channel = self.mesh.grpc_channel(self._faulty.service, **options)
        return getattr(channel, kind)(f"/shop.Orders/{name}", None, None)

    def in_flight(self) -> int:
        return sum(target.in_flight for target in self.mesh._grpc.all_targets())

    def breakers(self) -> dict[str, str]:
        return {target.instance.id: target.circuit.state.value for target in self.mesh._grpc.all_targets()}


@pytest.fixture
async def shop(mesh: FaultyMesh) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        yield Shop(mesh, stack)


async def test_calls_are_spread_and_carry_deadline_ids_and_token(shop: Shop) -> None:
    one, two = await shop.server("one"), await shop.server("two")
    await shop.open()
    get = shop.method("unary_unary", "Get")
    deadline = asyncio.get_running_loop().time() + 5.0
    with contexts.serving_request(contexts.RequestContext("corr-1", "req-1", deadline=Deadline(deadline))):
        answers = [await get(b"x", metadata=(("x-mine", "1"),)) for _ in range(4)]
    assert sorted(answers) == sorted([one.instance.encode(), two.instance.encode()] * 2)
    for _, metadata, remaining in one.calls + two.calls:
        assert metadata["x-correlation-id"] == "corr-1"
        assert metadata["x-mine"] == "1"
        assert metadata["authorization"].startswith("Bearer ")
        assert 0 < int(metadata["x-toska-timeout-ms"]) <= 5000
        assert remaining is not None
        assert remaining <= 5.2
    assert shop.in_flight() == 0


async def test_an_instance_that_is_gone_is_left_for_another_whatever_the_method(shop: Shop) -> None:
    one, two = await shop.server("one"), await shop.server("two")
    await shop.open(breaker=BreakerPolicy(3, 0.3))
    get = shop.method("unary_unary", "Get")
    assert len({await get(b"x") for _ in range(2)}) == 2
    await one.stop()
    call = get(b"x")
    answers = {await call} | {await get(b"x") for _ in range(7)}
    assert answers == {two.instance.encode()}
    assert call.mesh_instance.id == two.instance
    await eventually(lambda: shop.breakers()[one.instance] == "open")
    await one.start()

    async def is_back() -> bool:
        return await get(b"x") == one.instance.encode()

    async with asyncio.timeout(10):
        while not await is_back():
            await asyncio.sleep(0.05)
    assert shop.in_flight() == 0


@pytest.mark.parametrize(("idempotent", "is_repeated"), [(False, False), (True, True), (frozenset({"Get"}), True)])
async def test_unavailable_is_repeated_only_where_the_caller_says_so(
    shop: Shop, idempotent: bool | frozenset[str], is_repeated: bool
) -> None:
    one, two = await shop.server("one"), await shop.server("two")
    await shop.open()
    one.fails_with = grpc.StatusCode.UNAVAILABLE
    get = shop.method("unary_unary", "Get", idempotent=idempotent)
    failures = []
    for _ in range(2):
        try:
            assert await get(b"x") == two.instance.encode()
        except grpc.aio.AioRpcError as error:
            failures.append(error)
    assert len(one.calls) == (2 if is_repeated else 1)  # the repeated one took the other's turn
    if is_repeated:
        assert not failures
    else:
        (failure,) = failures
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert f"{one.instance} (127.0.0.1:{one.port}): as the test wants it" in str(failure.details())


async def test_any_other_status_is_the_server_s_answer(shop: Shop) -> None:
    one = await shop.server("one")
    await shop.open(breaker=BreakerPolicy(1))
    one.fails_with = grpc.StatusCode.NOT_FOUND
    get = shop.method("unary_unary", "Get", idempotent=True)
    for _ in range(3):
        call = get(b"x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await call.code() is grpc.StatusCode.NOT_FOUND
    assert len(one.calls) == 3
    assert shop.breakers()[one.instance] == "closed"


async def test_streams_pass_and_are_counted_until_their_end(shop: Shop) -> None:
    one = await shop.server("one")
    await shop.open()
    watch = shop.method("unary_stream", "Watch")
    assert [message async for message in watch(b"3")] == [b"%b %d" % (one.instance.encode(), n) for n in range(3)]
    await eventually(lambda: shop.in_flight() == 0)
    call = watch(b"1000")
    assert await call.read() == b"%b 0" % one.instance.encode()
    assert shop.in_flight() == 1
    call.cancel()
    await eventually(lambda: shop.in_flight() == 0)

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"a", b"b", b"c"):
            yield part

    assert await shop.method("stream_unary", "Put")(parts()) == b"abc"
    assert shop.breakers()[one.instance] == "closed"


async def test_an_http_service_may_speak_grpc_on_a_second_port(shop: Shop) -> None:
    server = Server("unused")
    one = await shop.server("one", wire_port=server.port, scheme="http", grpc_port=str(free_port()))
    await in_thread(lambda: shop._faulty.register(one.instance, server.port, scheme="http", grpc_port=str(one.port)))
    await shop.open()
    assert await shop.method("unary_unary", "Get")(b"x") == one.instance.encode()


async def test_errors_are_grpc_s_own_with_the_mesh_s_words(shop: Shop) -> None:
    await shop.server("one")
    await shop.open()
    get = shop.method("unary_unary", "Get")
    with pytest.raises(grpc.aio.AioRpcError, match="failed after 1 try") as late:
        await get(b"slow", timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    nobody = shop.mesh.grpc_channel("nobody").unary_unary("/shop.Orders/Get", None, None)
    with pytest.raises(grpc.aio.AioRpcError, match="there is no such service") as caught:
        await nobody(b"x")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value.__cause__, NoInstanceError)
    assert shop.in_flight() == 0
