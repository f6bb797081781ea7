"""Every probe against real sockets that behave well, badly or not at all."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tests.integration.healthmonitor.rude_servers import (
    drips,
    hangs,
    refusing_port,
    resets,
    says,
    serving,
    swallowing_port,
)

from toska_mesh.errors import ConfigError
from toska_mesh.healthmonitor.app import open_prober
from toska_mesh.healthmonitor.probes import NetworkProber, ProbePolicy, Resolver
from toska_mesh.healthmonitor.targets import ProbePlan, plan_probe
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult
from toska_mesh.model import Endpoint, Instance, InstanceId, ServiceName

TIMEOUT = 0.4
QUICK = ProbePolicy(http_timeout_seconds=TIMEOUT, tcp_timeout_seconds=TIMEOUT, grpc_timeout_seconds=2.0)
OK_TEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def a_plan(port: int, host: str = "127.0.0.1", allow_link_local: bool = False, **metadata: str) -> ProbePlan:
    merged = {"health_check_endpoint": "/health?deep=1", **metadata}
    instance = Instance(ServiceName("orders"), InstanceId("orders-1"), Endpoint(host, port), metadata=merged)
    return plan_probe(instance, allow_link_local=allow_link_local)


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    async with Resolver() as resolver:
        yield resolver


@pytest.fixture
def prober(resolver: Resolver) -> NetworkProber:
    return NetworkProber(QUICK, resolver)


@pytest.mark.parametrize(
    ("answer", "outcome", "message"),
    [
        pytest.param(says(OK_TEXT), Outcome.SUCCESS, "HTTP 200", id="200"),
        pytest.param(says(b"HTTP/1.1 204 No Content\r\n\r\n"), Outcome.SUCCESS, "HTTP 204", id="204 without a body"),
        pytest.param(says(b"HTTP/1.0 200 OK\r\n\r\nuntil the end"), Outcome.SUCCESS, "HTTP 200", id="HTTP/1.0"),
        pytest.param(
            says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK_TEXT),
            Outcome.SUCCESS,
            "HTTP 200",
            id="1xx before the answer",
        ),
        pytest.param(
            says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"), Outcome.SUCCESS, "HTTP 200", id="body cut short"
        ),
        pytest.param(
            drips(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), Outcome.SUCCESS, "HTTP 200", id="endless fast body"
        ),
        pytest.param(
            drips(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.01), Outcome.SUCCESS, "HTTP 200", id="endless slow body"
        ),
        pytest.param(
            says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 15\r\n\r\ndatabase\r\n down"),
            Outcome.FAILURE,
            "HTTP 503: database down",
            id="503 with its reason",
        ),
        pytest.param(
            says(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
            Outcome.FAILURE,
            "HTTP 500",
            id="500",
        ),
        pytest.param(
            says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            Outcome.FAILURE,
            "HTTP 302",
            id="a redirect is not followed",
        ),
        pytest.param(
            says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x00\x01"),
            Outcome.FAILURE,
            "HTTP 101",
            id="an unasked upgrade",
        ),
        pytest.param(says(b""), Outcome.FAILURE, "connection closed before an answer", id="hangs up"),
        pytest.param(resets, Outcome.FAILURE, "connection reset", id="resets"),
        pytest.param(hangs, Outcome.TIMEOUT, "connected, but no answer in time (0.4 s)", id="hangs"),
        pytest.param(
            drips(b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n", 0.05),
            Outcome.TIMEOUT,
            "connected, but no answer in time (0.4 s)",
            id="slow endless head",
        ),
        pytest.param(
            drips(b"HTTP/1.1 200 OK\r\n", b"X-Fast: " + b"1" * 4000 + b"\r\n"),
            Outcome.FAILURE,
            "answer without an end of its head in 16384 bytes",
            id="fast endless head",
        ),
    ],
)
async def test_http(prober, answer, outcome, message):
    async with serving(answer) as port:
        assert await prober.probe(a_plan(port)) == ProbeResult(outcome, message, is_connected=True)


@pytest.mark.parametrize("text", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02\x03" * 100, b"HTTP/9.9 abc\r\n\r\n"])
async def test_garbage_is_no_answer(prober, text):
    async with serving(says(text)) as port:
        result = await prober.probe(a_plan(port))
        assert result.outcome is Outcome.FAILURE
        assert "not an HTTP answer" in result.message


async def test_a_refused_connection(prober):
    result = await prober.probe(a_plan(refusing_port()))
    assert result == ProbeResult(Outcome.FAILURE, "connection refused")


async def test_a_swallowed_connection(prober):
    with swallowing_port() as port:
        result = await prober.probe(a_plan(port))
        assert result == ProbeResult(Outcome.TIMEOUT, "no connection in time (0.4 s)")
        result = await prober.probe(a_plan(port, scheme="tcp"))
        assert result == ProbeResult(Outcome.TIMEOUT, "no connection in time (0.4 s)")


async def test_the_request_is_what_was_configured(resolver):
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK_TEXT)
        await writer.drain()

    prober = NetworkProber(ProbePolicy(headers={"X-Probe": "yes"}), resolver)
    async with serving(answer) as port:
        await prober.probe(a_plan(port))
    assert requests == [
        f"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: toska-healthmonitor\r\nAccept: */*\r\n"
        f"X-Probe: yes\r\nConnection: close\r\n\r\n".encode()
    ]


async def test_ipv6(prober):
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK_TEXT)
        await writer.drain()

    async with serving(answer, host="::1") as port:
        assert (await prober.probe(a_plan(port, host="::1"))).message == "HTTP 200"
    assert f"Host: [::1]:{port}\r\n".encode() in requests[0]


async def test_a_name_with_several_addresses_is_tried_until_one_takes_the_connection(resolver):
    async with serving(says(OK_TEXT)) as port:
        resolver._cache["orders.test"] = (float("inf"), ("127.0.0.2", "127.0.0.1"))  # nobody listens on the first
        prober = NetworkProber(QUICK, resolver)
        assert (await prober.probe(a_plan(port, host="orders.test"))).message == "HTTP 200"
        assert (await prober.probe(a_plan(port, host="localhost"))).message == "HTTP 200"


async def test_a_name_that_leads_to_a_metadata_service_is_not_asked(resolver):
    resolver._cache["evil.test"] = (float("inf"), ("169.254.169.254",))
    result = await NetworkProber(QUICK, resolver).probe(a_plan(80, host="evil.test"))
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "169.254.169.254 is link-local" in result.message


async def test_a_name_written_as_a_number_does_not_get_around_the_refusal(prober):
    result = await prober.probe(a_plan(80, host="0xa9fea9fe"))  # 169.254.169.254 to the system's resolver
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "169.254.169.254 is link-local" in result.message


async def test_a_stalled_monitor_does_not_blame_the_instance(prober):
    loop = asyncio.get_running_loop()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        loop.call_soon(time.sleep, TIMEOUT + 0.7)  # as if the whole process had been stopped
        await asyncio.sleep(30)

    async with serving(answer) as port:
        result = await prober.probe(a_plan(port))
        assert result == ProbeResult(Outcome.INCONCLUSIVE, "the monitor could not probe: it was stalled itself")


async def test_tcp(prober):
    async with serving(hangs) as port:
        plan = a_plan(1, health_check_endpoint="", tcp_port=str(port))
        assert await prober.probe(plan) == ProbeResult(Outcome.SUCCESS, "TCP connected", is_connected=True)
    plan = a_plan(refusing_port(), scheme="tcp")
    assert await prober.probe(plan) == ProbeResult(Outcome.FAILURE, "connection refused")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_https_is_verified_against_the_registered_host(resolver, authority, ca_file):
    trusting = NetworkProber(ProbePolicy(ca_file=ca_file), resolver)
    async with serving(says(OK_TEXT), tls=server_tls(authority, "127.0.0.1")) as port:
        assert (await trusting.probe(a_plan(port, scheme="https"))).message == "HTTP 200"
        distrusting = await NetworkProber(ProbePolicy(), resolver).probe(a_plan(port, scheme="https"))
        assert distrusting.outcome is Outcome.FAILURE
        assert distrusting.message.startswith("TLS certificate refused: ")
        careless = NetworkProber(ProbePolicy(verify_tls=False), resolver)
        assert (await careless.probe(a_plan(port, scheme="https"))).message == "HTTP 200"
    async with serving(says(OK_TEXT), tls=server_tls(authority, "other.example")) as port:
        misnamed = await trusting.probe(a_plan(port, scheme="https"))
        assert misnamed.message.startswith("TLS certificate refused: ")


async def test_https_to_a_port_that_speaks_no_tls(prober):
    async with serving(says(b"HTTP/1.1 400 Bad Request\r\n\r\n", after_request=False)) as port:
        result = await prober.probe(a_plan(port, scheme="https"))
        assert result.outcome is Outcome.FAILURE
        assert result.message.startswith("TLS handshake failed: ")
    async with serving(hangs) as port:
        assert (await prober.probe(a_plan(port, scheme="https"))).outcome is Outcome.TIMEOUT


@pytest.mark.parametrize(
    ("status", "outcome", "message"),
    [
        pytest.param(health_pb2.HealthCheckResponse.SERVING, Outcome.SUCCESS, "gRPC SERVING", id="serving"),
        pytest.param(health_pb2.HealthCheckResponse.NOT_SERVING, Outcome.FAILURE, "gRPC NOT_SERVING", id="not serving"),
    ],
)
async def test_grpc(prober, status, outcome, message):
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await servicer.set("", status)
    try:
        result = await prober.probe(a_plan(port, scheme="grpc"))
    finally:
        await server.stop(None)
    assert result == ProbeResult(outcome, message, is_connected=True)


async def test_grpc_without_a_health_service(prober):
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        result = await prober.probe(a_plan(port, scheme="grpc"))
    finally:
        await server.stop(None)
    assert result == ProbeResult(Outcome.FAILURE, "gRPC UNIMPLEMENTED: no health service", is_connected=True)


async def test_grpc_over_tls_is_verified(resolver, authority, ca_file):
    certificate = authority.issue_cert("127.0.0.1")
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        trusting = NetworkProber(ProbePolicy(ca_file=ca_file), resolver)
        assert (await trusting.probe(a_plan(port, scheme="grpcs"))).message == "gRPC SERVING"
        distrusting = await NetworkProber(QUICK, resolver).probe(a_plan(port, scheme="grpcs"))
        assert distrusting.outcome.is_failure
    finally:
        await server.stop(None)


async def test_grpc_nobody_there_and_nobody_answering(prober, resolver):
    refused = await prober.probe(a_plan(refusing_port(), scheme="grpc"))
    assert refused.outcome is Outcome.FAILURE
    assert refused.message.startswith("gRPC UNAVAILABLE")
    impatient = NetworkProber(ProbePolicy(grpc_timeout_seconds=0.4), resolver)
    async with serving(hangs) as port:
        silent = await impatient.probe(a_plan(port, scheme="grpc"))
    assert (silent.outcome, silent.message) == (Outcome.TIMEOUT, "no answer in time (0.4 s)")


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "tcp"])
async def test_a_cancelled_probe_leaves_nothing_behind(prober, scheme):
    async with serving(hangs) as port:
        for delay in (0.0, 0.001, 0.02):
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(prober.probe(a_plan(port, scheme=scheme)))
                await asyncio.sleep(delay)
                task.cancel()


async def test_a_ca_file_that_is_none_is_a_configuration_error(resolver, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")
    with pytest.raises(ConfigError, match="HEALTHMONITOR_TLS_CA_FILE"):
        open_prober(ProbePolicy(ca_file=str(path)), resolver)
