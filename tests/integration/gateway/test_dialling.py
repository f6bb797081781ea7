"""How the gateway gets its connections to instances: names, addresses, TLS, and the pool."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, Gateway, running_gateway
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError
from toska_mesh.gateway.dialling import MAX_LOOKUPS, Dialler, Resolver
from toska_mesh.gateway.listener import upstream_tls
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.resilience import State

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def named(host: str, port: int, number: int = 0, **metadata: str) -> Instance:
    """An instance that is registered under this name."""
    return Instance(
        ServiceName("orders"),
        InstanceId(f"orders-{number}"),
        Endpoint(host, port),
        HealthStatus.HEALTHY,
        {"scheme": "http"} | metadata,
    )


class Names:
    """A resolver whose answers the test writes; `lookups` is what it was asked, in its threads."""

    def __init__(self, answers: dict[str, list[str]] | None = None, connect_timeout_seconds: float = 5) -> None:
        self.answers = answers or {}
        self.lookups: list[str] = []
        self.go = threading.Event()
        self.seconds = connect_timeout_seconds

    def __call__(self, host: str) -> Sequence[str]:
        self.lookups.append(host)
        if host.startswith("hanging"):
            self.go.wait(30)
        try:
            return self.answers[host]
        except KeyError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    def options(self, _: asyncio.TaskGroup) -> dict[str, Any]:
        return {"dialler": Dialler(self.seconds, Resolver(self.seconds, self))}


@pytest.fixture
def names() -> Iterator[Names]:
    stub = Names()
    yield stub
    stub.go.set()


# -- names


async def test_a_name_of_the_hosts_file() -> None:
    async with Backend() as backend, running_gateway() as gateway:
        gateway.route({"orders": [named("localhost", backend.port)]})
        assert (await gateway.get()).body == b"ok"
    assert backend.requests[0].get("Host") == f"localhost:{backend.port}"


async def test_every_dial_follows_the_record(names: Names) -> None:
    async with Backend() as old, running_gateway(options=names.options) as gateway:
        old.script = old.answer(CLOSING)
        names.answers = {"orders.test": ["127.0.0.1"]}
        gateway.route({"orders": [named("orders.test", old.port)]})
        assert (await gateway.get()).status == 200
        # Moved: the same name and port, another address.
        new = Backend(host="127.0.0.2")
        new._server = await asyncio.start_server(new._serve, "127.0.0.2", old.port)
        names.answers = {"orders.test": ["127.0.0.2"]}
        assert (await gateway.get()).status == 200
        assert (len(old.requests), len(new.requests)) == (1, 1)
        assert names.lookups == ["orders.test"] * 2
        await new.__aexit__(None, None, None)


async def test_dials_of_the_same_moment_share_one_lookup(names: Names) -> None:
    async with Backend() as backend, running_gateway(options=names.options) as gateway:
        names.answers = {"hanging.test": ["127.0.0.1"]}
        gateway.route({"orders": [named("hanging.test", backend.port)]})
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(gateway.get()) for _ in range(20)]
            await eventually(lambda: gateway.in_flight == 20)
            names.go.set()
        assert {task.result().status for task in answers} == {200}
        assert names.lookups == ["hanging.test"]


async def test_a_name_without_an_address_is_a_502_and_asked_again(names: Names) -> None:
    async with (
        Backend() as backend,
        running_gateway(options=names.options, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=9) as gateway,
    ):
        gateway.route({"orders": [named("orders.test", backend.port)]})
        answer = await gateway.get()
        assert answer.status == 502
        assert b"the registered name has no address" in answer.body
        assert b"orders.test" not in answer.body, "internal names are nobody's business outside"
        names.answers = {"orders.test": ["127.0.0.1"]}
        assert (await gateway.get()).status == 200


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "ä" * 300, ".."])
async def test_what_is_no_name_at_all_is_a_502(host: str) -> None:
    async with running_gateway(GATEWAY_RETRY_COUNT=0) as gateway:
        gateway.route({"orders": [named(host, 9)]})
        answer = await gateway.get()
        assert answer.status == 502
        assert b"the registered address is no host name" in answer.body


async def test_names_that_hang_hold_up_nobody_else(names: Names) -> None:
    seconds = 0.5
    names = Names({"orders.test": ["127.0.0.1"]}, seconds)
    try:
        async with (
            Backend() as backend,
            running_gateway(
                options=names.options, GATEWAY_RETRY_COUNT=0, GATEWAY_CONNECT_TIMEOUT_SECONDS=seconds
            ) as gateway,
        ):
            hanging = {f"s{number}": [named(f"hanging-{number}.test", 9)] for number in range(MAX_LOOKUPS + 5)}
            gateway.route(hanging | {"orders": [named("orders.test", backend.port)]})
            async with asyncio.TaskGroup() as tasks:
                stuck = [tasks.create_task(gateway.get(f"/api/s{number}/")) for number in range(MAX_LOOKUPS - 1)]
                await eventually(lambda: len(names.lookups) == MAX_LOOKUPS - 1)
                assert (await gateway.get()).status == 200
                assert not any(task.done() for task in stuck)
                # Nor are the threads used up that the rest of the process needs.
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(5):
                    assert await loop.getaddrinfo("localhost", 80)
                    assert await asyncio.to_thread(lambda: 1) == 1
            assert {task.result().status for task in stuck} == {502}
            assert b"no connection in time" in stuck[0].result().body
            # They still hang. There is a bound to the threads, and it is said.
            async with asyncio.TaskGroup() as tasks:
                more = [tasks.create_task(gateway.get(f"/api/s{MAX_LOOKUPS + n}/")) for n in range(5)]
            assert sum(b"too many names" in task.result().body for task in more) == 4
            names.go.set()
            await eventually(lambda: gateway.proxy._dialler._resolver._threads == 0)
            assert (await gateway.get()).status == 200
    finally:
        names.go.set()


async def test_a_lookup_that_hangs_is_not_joined_for_ever() -> None:
    names = Names({"hanging.test": ["127.0.0.1"]}, 0.3)
    async with (
        Backend() as backend,
        running_gateway(options=names.options, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=9) as gateway,
    ):
        gateway.route({"orders": [named("hanging.test", backend.port)]})
        assert (await gateway.get()).status == 502
        await asyncio.sleep(0.1)
        async with asyncio.TaskGroup() as tasks:
            second = tasks.create_task(gateway.get())
            await eventually(lambda: len(names.lookups) == 2, what="a lookup of its own")
            names.go.set()
        assert second.result().status == 200


# -- several addresses


@contextlib.contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """An address that takes no connection and refuses none: its queue is full."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield


@pytest.mark.parametrize("first", ["refuses", "is silent"])
@pytest.mark.parametrize("tls", [False, True])
async def test_the_next_address_is_tried(first: str, tls: bool, names: Names, tmp_path: Path) -> None:
    names.answers = {"orders.test": ["127.0.0.2", "127.0.0.3", "127.0.0.1"]}
    authority = Authority(tmp_path)
    async with (
        Backend(tls=authority.server("orders.test") if tls else None) as backend,
        running_gateway(options=names.options, GATEWAY_UPSTREAM_CA_FILE=authority.file) as gateway,
    ):
        with black_hole("127.0.0.2", backend.port) if first == "is silent" else contextlib.nullcontext():
            gateway.route({"orders": [named("orders.test", backend.port, scheme="https" if tls else "http")]})
            async with asyncio.timeout(4):  # below the connect timeout
                assert (await gateway.get()).status == 200
        assert backend.connections == 1
        assert names.lookups == ["orders.test"]
        assert gateway.outcomes() == {}


async def test_an_address_that_comes_second_is_not_kept(names: Names) -> None:
    """Both are reached in the end; only one connection stays open."""
    names.answers = {"orders.test": ["127.0.0.2", "127.0.0.1"]}
    async with Backend() as backend, running_gateway(options=names.options) as gateway:
        with black_hole("127.0.0.2", backend.port):
            gateway.route({"orders": [named("orders.test", backend.port)]})
            assert (await gateway.get()).status == 200
        assert [len(upstream.idle) for upstream in gateway.proxy.upstreams()] == [1]
        assert len([task for task in asyncio.all_tasks() if "dial" in task.get_name()]) == 0


async def test_no_address_answers(names: Names) -> None:
    names.answers = {"orders.test": ["127.0.0.2", "::1", "127.0.0.3"]}
    async with running_gateway(options=names.options, GATEWAY_RETRY_COUNT=0) as gateway:
        gateway.route({"orders": [named("orders.test", 1)]})
        answer = await gateway.get()
        assert answer.status == 502
        assert b"cannot connect: Connection refused" in answer.body


async def test_every_address_is_silent(names: Names) -> None:
    names.answers = {"orders.test": ["127.0.0.2", "127.0.0.3"]}
    names.seconds = 0.6
    async with (
        Backend() as backend,
        running_gateway(options=names.options, GATEWAY_RETRY_COUNT=0) as gateway,
    ):
        with black_hole("127.0.0.2", backend.port), black_hole("127.0.0.3", backend.port):
            gateway.route({"orders": [named("orders.test", backend.port)]})
            answer = await gateway.get()
        assert answer.status == 502
        assert b"no connection in time" in answer.body
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("dial")]


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (["1.1.1.1"], ["1.1.1.1"]),
        (["::1", "::2", "1.1.1.1", "1.1.1.2", "1.1.1.3"], ["::1", "1.1.1.1", "::2", "1.1.1.2", "1.1.1.3"]),
        (["1.1.1.1", "1.1.1.1", "::1"], ["1.1.1.1", "::1"]),
    ],
)
async def test_families_alternate(found: list[str], order: list[str]) -> None:
    assert await Resolver(1, lambda _: found).addresses("orders.test") == order


async def test_ipv6_instances_get_brackets_in_host() -> None:
    async with Backend(host="::1") as backend, running_gateway() as gateway:
        for host in ("::1", "0:0:0:0:0:0:0:1"):
            gateway.route({"orders": [named(host, backend.port)]})
            client = await gateway.connect()
            assert (await client.ask(REQUEST)).status == 200
            assert (await client.ask(POST)).status == 200
            assert backend.requests[-1].get("Host") == f"[{host}]:{backend.port}"


# -- TLS


class Authority:
    """Issues certificates for instances; `file` is what GATEWAY_UPSTREAM_CA_FILE names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.ca = trustme.CA()
        self.file = str(folder / "authority.pem")
        self.ca.cert_pem.write_to_path(self.file)
        self.names: list[str | None] = []
        """What the clients called the server (SNI, RFC 6066 section 3)."""

    def server(self, *identities: str, **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*identities, **options).configure_cert(context)
        context.sni_callback = lambda _, name, __: self.names.append(name)
        return context


@pytest.mark.parametrize(
    ("host", "identity", "sni"),
    [
        ("localhost", "localhost", "localhost"),
        ("localhost.", "localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1", None),
        ("::1", "::1", None),
    ],
)
async def test_names_and_addresses_are_verified(
    host: str, identity: str, sni: str | None, names: Names, tmp_path: Path
) -> None:
    names.answers = {"localhost": ["127.0.0.1"], "localhost.": ["127.0.0.1"]}
    authority = Authority(tmp_path)
    listening = "::1" if host == "::1" else "127.0.0.1"
    async with (
        Backend(host=listening, tls=authority.server(identity)) as backend,
        running_gateway(options=names.options, GATEWAY_UPSTREAM_CA_FILE=authority.file) as gateway,
    ):
        gateway.route({"orders": [named(host, backend.port, scheme="https")]})
        client = await gateway.connect()
        for request in (REQUEST, POST, REQUEST):
            assert (await client.ask(request)).status == 200
        assert backend.connections == 1
        assert authority.names == [sni]


def expired() -> dict[str, Any]:
    return {"not_before": datetime.now(UTC) - timedelta(days=9), "not_after": datetime.now(UTC) - timedelta(days=1)}


REFUSED: dict[str, tuple[str, Callable[[Authority, Authority], ssl.SSLContext], str]] = {
    "another authority": ("127.0.0.1", lambda _, other: other.server("127.0.0.1"), "unable to get local issuer"),
    "another name": ("localhost", lambda ours, _: ours.server("elsewhere.test"), "Hostname mismatch"),
    "another address": ("127.0.0.1", lambda ours, _: ours.server("127.0.0.2"), "IP address mismatch"),
    "a name for an address": ("127.0.0.1", lambda ours, _: ours.server("localhost"), "IP address mismatch"),
    "expired": ("127.0.0.1", lambda ours, _: ours.server("127.0.0.1", **expired()), "certificate has expired"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_certificate_that_is_not_believed(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host, make, reason = REFUSED[case]
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    async with (
        Backend(tls=make(ours, other)) as backend,
        running_gateway(
            GATEWAY_UPSTREAM_CA_FILE=ours.file, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=9
        ) as gateway,
    ):
        gateway.route({"orders": [named(host, backend.port, scheme="https")]})
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                answer = await gateway.get()
                assert answer.status == 502
                assert f"certificate verification failed: {reason}".encode() in answer.body
                for inside in (host, str(backend.port), "elsewhere"):
                    assert inside.encode() not in answer.body
        assert not backend.requests, "nothing was said to a peer that is not believed"
        (record,) = (record for record in caplog.records if vars(record).get("event") == "certificate_not_verified")
        assert record.levelno == logging.WARNING


async def test_an_instance_that_does_not_speak_tls_although_it_says_so() -> None:
    async def script(caller: Caller) -> None:
        await caller.reader.read(100)
        await caller.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with (
        Backend(script) as backend,
        running_gateway(GATEWAY_UPSTREAM_TLS_VERIFY="true", GATEWAY_RETRY_COUNT=0) as gateway,
    ):
        gateway.route({"orders": [named("127.0.0.1", backend.port, scheme="https")]})
        answer = await gateway.get()
        assert answer.status == 502
        assert b"the TLS handshake failed" in answer.body


async def test_a_handshake_that_hangs_ends_with_the_connect_timeout() -> None:
    ended = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.wait_closed()
        ended.set()

    async with (
        Backend(script) as backend,
        running_gateway(
            GATEWAY_UPSTREAM_TLS_VERIFY="true", GATEWAY_RETRY_COUNT=0, GATEWAY_CONNECT_TIMEOUT_SECONDS=0.4
        ) as gateway,
    ):
        gateway.route({"orders": [named("127.0.0.1", backend.port, scheme="https")]})
        answer = await gateway.get()
        assert answer.status == 502
        assert b"no connection in time" in answer.body
        async with asyncio.timeout(5):
            await ended.wait()


async def test_the_probe_of_an_open_breaker_follows_the_record_and_speaks_tls(names: Names, tmp_path: Path) -> None:
    names.answers = {"orders.test": ["127.0.0.2"]}
    authority = Authority(tmp_path)
    async with (
        Backend(tls=authority.server("orders.test")) as backend,
        running_gateway(
            options=names.options,
            GATEWAY_UPSTREAM_CA_FILE=authority.file,
            GATEWAY_RETRY_COUNT=0,
            GATEWAY_BREAKER_FAILURE_THRESHOLD=1,
            GATEWAY_BREAKER_OPEN_SECONDS=0.2,
        ) as gateway,
    ):
        gateway.route({"orders": [named("orders.test", backend.port, scheme="https")]})
        assert (await gateway.get()).status == 502
        assert gateway.breakers == {State.OPEN}
        names.answers = {"orders.test": ["127.0.0.1"]}
        await eventually(lambda: bool(backend.requests), what="the probe")
        assert backend.requests[0].start == "OPTIONS * HTTP/1.1"
        async with asyncio.timeout(5):
            while (await gateway.get()).status != 200:
                await asyncio.sleep(0.05)


async def test_an_unusable_authority_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    with pytest.raises(ConfigError, match="GATEWAY_UPSTREAM_CA_FILE"):
        upstream_tls(GatewaySettings(upstream_ca_file=str(tmp_path / "empty.pem")))


# -- the pool


def idle(gateway: Gateway) -> int:
    return sum(len(upstream.idle) for upstream in gateway.proxy.upstreams())


@pytest.mark.parametrize(("limit", "kept"), [(3, 3), (0, 0), (100, 8)])
async def test_the_pool_is_sized(limit: int, kept: int) -> None:
    go = asyncio.Event()
    closed = 0

    async def script(caller: Caller) -> None:
        nonlocal closed
        while await caller.request() is not None:
            await go.wait()
            await caller.send(OK)
        closed += 1

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_UPSTREAM_MAX_IDLE=limit) as gateway:
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(gateway.get()) for _ in range(8)]
            await eventually(lambda: backend.connections == 8)
            go.set()
        assert {task.result().status for task in answers} == {200}
        assert idle(gateway) == kept
        await eventually(lambda: closed == 8 - kept)
        assert (await gateway.get()).status == 200
        assert backend.connections == (8 if kept else 9)


async def test_idle_connections_expire() -> None:
    ended = asyncio.Event()

    async def script(caller: Caller) -> None:
        await backend.answer(OK)(caller)
        ended.set()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_UPSTREAM_IDLE_SECONDS=0.3) as gateway:
        assert (await gateway.get()).status == 200
        assert idle(gateway) == 1
        async with asyncio.timeout(5):
            await ended.wait()
        assert idle(gateway) == 0


@pytest.mark.parametrize("change", ["the service removed", "the instance replaced", "the instance moved"])
async def test_idle_connections_of_an_instance_that_is_gone_are_closed(change: str) -> None:
    ended = asyncio.Event()

    async def script(caller: Caller) -> None:
        await backend.answer(OK)(caller)
        ended.set()

    async with Backend(script) as backend, Backend() as other, running_gateway(backend) as gateway:
        assert (await gateway.get()).status == 200
        changed = {
            "the service removed": {},
            "the instance replaced": {"orders": [named("127.0.0.1", other.port, 1)]},
            "the instance moved": {"orders": [named("127.0.0.1", other.port)]},
        }
        gateway.route(changed[change])
        async with asyncio.timeout(5):
            await ended.wait()
        assert idle(gateway) == 0


async def test_a_connection_in_use_when_its_instance_goes_is_closed_after_its_answer() -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        await go.wait()
        await caller.send(OK)
        await caller.wait_closed()
        ended.set()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(gateway.get())
            await eventually(lambda: backend.connections == 1)
            gateway.route({})
            go.set()
        assert answer.result().status == 200
        async with asyncio.timeout(5):
            await ended.wait()
