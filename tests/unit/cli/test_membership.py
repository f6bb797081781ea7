"""How a service joins the mesh: what it sends, when it tries again, how it leaves."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

import grpc
import jwt
import pytest

from toska_mesh.cli.membership import Member, Membership, service_token, wait_seconds
from toska_mesh.pb import discovery_pb2 as pb

MEMBER = Member("hello", "hello-1", "127.0.0.1", 4000, interval_seconds=10)
SECRET = "s" * 32
NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def unavailable(words: str = "nobody listens") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=words)


class Discovery:
    """A channel whose other side answers from scripts; the last answer of a script repeats."""

    def __init__(self, **scripts: list[object]) -> None:
        self._scripts: dict[str, list[object]] = {
            "Register": [pb.RegisterServiceResponse(success=True)],
            "ReportHealth": [pb.ReportHealthResponse(success=True)],
            "Deregister": [pb.DeregisterServiceResponse(removed=True)],
            **scripts,
        }
        self.calls: list[tuple[float, str, object]] = []
        self.metadata: list[tuple[tuple[str, str], ...]] = []

    def unary_unary(self, path: str, **_: object) -> Callable[..., object]:
        method = path.rsplit("/", 1)[1]

        async def call(
            request: object, *, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] = ()
        ) -> object:
            assert timeout is not None, "a call without a deadline"
            self.calls.append((asyncio.get_running_loop().time(), method, request))
            self.metadata.append(metadata)
            script = self._scripts[method]
            answer = script.pop(0) if len(script) > 1 else script[0]
            if answer == "silence":
                await asyncio.sleep(timeout)
                raise unavailable("deadline")
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call

    def times(self, method: str) -> list[float]:
        return [at for at, name, _ in self.calls if name == method]


def membership(discovery: Discovery, secret: str = "") -> Membership:
    return Membership(discovery, MEMBER, secret, random.Random(1), lambda: NOON)  # type: ignore[arg-type]


async def keep_for(seconds: float, joined: Membership) -> None:
    try:
        async with asyncio.timeout(seconds):
            await joined.keep()
    except TimeoutError:
        pass


async def test_the_registration_says_what_the_mesh_needs() -> None:
    discovery = Discovery()
    joined = membership(discovery)
    await keep_for(1, joined)
    (_, _, request) = discovery.calls[0]
    assert request == pb.RegisterServiceRequest(
        serviceName="hello",
        serviceId="hello-1",
        address="127.0.0.1",
        port=4000,
        metadata={"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1"},
        healthCheck=pb.HealthCheckConfig(endpoint="/health", intervalSeconds=10),
    )


async def test_it_beats_at_a_third_of_the_ttl() -> None:
    discovery = Discovery()
    await keep_for(16, membership(discovery))
    assert discovery.times("Register") == [0.0]
    assert discovery.times("ReportHealth") == [5.0, 10.0, 15.0]


@pytest.mark.parametrize(("interval", "beat"), [(1, 10 / 3), (5, 10 / 3), (10, 5.0), (30, 35 / 3)])
def test_the_ttl_is_never_below_ten_seconds(interval: int, beat: float) -> None:
    assert Member("s", "i", "a", 1, interval).beat_seconds == pytest.approx(beat)


async def test_it_registers_until_discovery_is_there(caplog: pytest.LogCaptureFixture) -> None:
    refused = pb.RegisterServiceResponse(success=False, errorMessage="registry away")
    discovery = Discovery(
        Register=[unavailable(), unavailable(), refused, "silence", pb.RegisterServiceResponse(success=True)]
    )
    joined = membership(discovery)
    await keep_for(20, joined)
    assert len(discovery.times("Register")) == 5
    waits = [record.__dict__["fields"]["reason"] for record in caplog.records if record.levelname == "WARNING"]
    assert waits == ["UNAVAILABLE: nobody listens", "registry away", "UNAVAILABLE: deadline"]


async def test_it_is_registered_only_after_a_success() -> None:
    discovery = Discovery(Register=[unavailable()])
    joined = membership(discovery)
    await keep_for(60, joined)
    assert not joined.is_registered


async def test_a_refused_beat_registers_again_at_once() -> None:
    known, unknown = pb.ReportHealthResponse(success=True), pb.ReportHealthResponse(success=False)
    discovery = Discovery(ReportHealth=[known, unknown, known])
    joined = membership(discovery)
    await keep_for(17, joined)
    assert discovery.times("Register") == [0.0, 10.0]
    assert discovery.times("ReportHealth") == [5.0, 10.0, 15.0]
    assert joined.is_registered


async def test_a_lost_beat_is_repeated_soon_and_does_not_register_again() -> None:
    discovery = Discovery(ReportHealth=[unavailable(), unavailable(), pb.ReportHealthResponse(success=True)])
    await keep_for(9, membership(discovery))
    beats = discovery.times("ReportHealth")
    assert len(beats) == 3
    assert beats[0] == 5.0
    assert beats[2] < 5.5
    assert discovery.times("Register") == [0.0]


async def test_leaving_says_so_and_deregisters() -> None:
    discovery = Discovery()
    joined = membership(discovery)
    await keep_for(1, joined)
    await joined.leave()
    (_, method, report), (_, last, request) = discovery.calls[-2:]
    assert (method, last) == ("ReportHealth", "Deregister")
    assert isinstance(report, pb.ReportHealthRequest)
    assert report.status == pb.HEALTH_STATUS_DEGRADED
    assert request == pb.DeregisterServiceRequest(serviceId="hello-1")
    assert not joined.is_registered


@pytest.mark.parametrize("answer", [unavailable(), "silence"], ids=["refused", "silent"])
async def test_leaving_is_bounded_when_discovery_is_away(answer: object) -> None:
    joined = membership(Discovery(ReportHealth=[answer], Deregister=[answer]))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await joined.leave()
    assert loop.time() - began <= 2.0


async def test_a_secret_makes_a_token_with_every_call() -> None:
    discovery = Discovery()
    joined = membership(discovery, SECRET)
    await keep_for(6, joined)
    await joined.leave()
    assert len(discovery.metadata) == 4
    assert all(key == "authorization" and value.startswith("Bearer ") for ((key, value),) in discovery.metadata)


async def test_without_a_secret_no_token_is_sent() -> None:
    discovery = Discovery()
    await keep_for(1, membership(discovery))
    assert discovery.metadata == [()]


def test_the_token_carries_the_claims_of_the_mesh_family() -> None:
    claims = jwt.decode(
        service_token(MEMBER, SECRET, NOON),
        SECRET,
        algorithms=["HS256"],
        audience="ToskaMesh.Services",
        issuer="ToskaMesh.Services",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["role"] == "Service"
    assert claims["service_id"] == "hello"
    assert claims["exp"] - claims["iat"] == 600


def test_waits_grow_are_bounded_and_differ() -> None:
    rng = random.Random(3)
    assert all(0.05 <= wait_seconds(1, rng) <= 0.1 for _ in range(50))
    assert all(2.5 <= wait_seconds(failures, rng) <= 5 for failures in (7, 20, 10_000))
    assert len({wait_seconds(4, rng) for _ in range(20)}) > 10


async def test_a_cancelled_membership_stops_at_every_await() -> None:
    for seconds in (0.0, 4.9, 5.0, 7.0):
        discovery = Discovery(Register=["silence"] if seconds < 5 else [pb.RegisterServiceResponse(success=True)])
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(membership(discovery).keep())
            await asyncio.sleep(seconds)
            keeper.cancel()
        assert keeper.cancelled()
