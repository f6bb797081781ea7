"""The way to discovery: TLS, tokens, and the difference between "no" and "not now"."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import trustme
from tests.integration.discovery.conftest import DiscoveryServer
from tests.support.go_discovery import go_discovery
from tests.support.ports import free_port
from tests.support.servers import RegistryServer
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError, RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.sdk.discovery import DiscoveryEnrolment, open_channel
from toska_mesh.sdk.enrolment import Member, NobodyListensError
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.tokens import ServiceToken

SECRET = "kJ8sLq2vXz0pRt6wYb4nMc7dFg9hUe3a"
MEMBER = Member(ServiceName("orders"), InstanceId("orders-1"), "10.1.2.3", 80, {"scheme": "http"})


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def enrolment(stack: AsyncExitStack, options: ConnectOptions, service: str = "orders") -> DiscoveryEnrolment:
    channel = await stack.enter_async_context(open_channel(options))
    return DiscoveryEnrolment(channel, ServiceToken(options, service), options.discovery_address)


class Files:
    """PEM files of one CA: its own certificate, a server's and a client's."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.server = authority.issue_cert("localhost", "127.0.0.1")
        client = authority.issue_cert("orders@mesh.test")
        self.ca = folder / "ca.pem"
        self.cert = folder / "client.pem"
        self.key = folder / "client.key"
        self.both = folder / "both.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))
        client.private_key_pem.write_to_path(self.key)
        self.both.write_bytes(self.key.read_bytes() + self.cert.read_bytes())

    def credentials(self, with_client: bool) -> grpc.ServerCredentials:
        pair = (
            self.server.private_key_pem.bytes(),
            b"".join(blob.bytes() for blob in self.server.cert_chain_pems),
        )
        return grpc.ssl_server_credentials(
            [pair], self.ca.read_bytes() if with_client else None, require_client_auth=with_client
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("theirs"))


async def test_a_discovery_with_a_certificate_is_spoken_to_over_tls(files: Files) -> None:
    async with go_discovery(credentials=files.credentials(with_client=False)) as discovery, AsyncExitStack() as stack:
        options = ConnectOptions(discovery_address=f"https://127.0.0.1:{discovery.port}", ca_file=str(files.ca))
        assert await (await enrolment(stack, options)).register(MEMBER, soon()) == MEMBER.id


async def test_a_discovery_that_somebody_else_vouches_for_is_not_told_anything(files: Files, strangers: Files) -> None:
    async with go_discovery(credentials=strangers.credentials(False)) as discovery, AsyncExitStack() as stack:
        options = ConnectOptions(discovery_address=f"https://127.0.0.1:{discovery.port}", ca_file=str(files.ca))
        with pytest.raises(RegistryUnavailableError):
            await (await enrolment(stack, options)).register(MEMBER, soon())
        assert discovery.order == []


@pytest.mark.parametrize("in_one_file", [False, True])
async def test_a_client_certificate_is_shown_where_one_is_asked_for(files: Files, in_one_file: bool) -> None:
    async with go_discovery(credentials=files.credentials(with_client=True)) as discovery, AsyncExitStack() as stack:
        address = f"https://127.0.0.1:{discovery.port}"
        bare = ConnectOptions(discovery_address=address, ca_file=str(files.ca))
        with pytest.raises(RegistryUnavailableError):
            await (await enrolment(stack, bare)).register(MEMBER, soon())
        options = ConnectOptions(
            discovery_address=address,
            ca_file=str(files.ca),
            client_cert=str(files.both if in_one_file else files.cert),
            client_key="" if in_one_file else str(files.key),
        )
        assert await (await enrolment(stack, options)).register(MEMBER, soon()) == MEMBER.id


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_where_nobody_listens_it_names_what_was_configured_and_nothing_else(host: str) -> None:
    address = f"{host}:{free_port()}"
    words = set()
    async with AsyncExitStack() as stack:
        closed = await enrolment(stack, ConnectOptions(discovery_address=address))
        for _ in range(6):  # localhost has two addresses, and gRPC names the one that it tried last
            with pytest.raises(NobodyListensError) as refused:
                await closed.register(MEMBER, soon())
            assert refused.value.is_here
            words.add(str(refused.value))
    assert words == {f"nobody listens at discovery={address} (MESH_DISCOVERY_ADDRESS): connection refused"}


async def test_a_file_for_tls_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    address = "https://discovery:1"
    with pytest.raises(ConfigError, match=r"ca_file='/nowhere/ca.pem' cannot be read: No such file"):
        open_channel(ConnectOptions(discovery_address=address, ca_file="/nowhere/ca.pem"))
    pfx = tmp_path / "client.pfx"
    pfx.write_bytes(b"\x30\x82")
    with pytest.raises(ConfigError, match=r"client_cert=.* is no PEM file; .*openssl pkcs12 -in client.pfx"):
        open_channel(ConnectOptions(discovery_address=address, client_cert=str(pfx)))


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


@pytest.fixture(scope="module")
def discovery(registry: RegistryServer) -> Iterator[DiscoveryServer]:
    with DiscoveryServer(registry.url, DISCOVERY_AUTH="required", MESH_SERVICE_AUTH_SECRET=SECRET) as server:
        yield server


async def test_without_a_token_discovery_says_what_is_missing(discovery: DiscoveryServer) -> None:
    async with AsyncExitStack() as stack:
        nobody = await enrolment(stack, ConnectOptions(discovery_address=discovery.target))
        with pytest.raises(RegistryError, match="UNAUTHENTICATED: a service token is required") as refused:
            await nobody.register(MEMBER, soon())
        assert not isinstance(refused.value, RegistryUnavailableError)


async def test_with_a_token_it_is_let_in_and_what_is_ours_stays_ours(discovery: DiscoveryServer) -> None:
    async with AsyncExitStack() as stack:
        options = ConnectOptions(discovery_address=discovery.target, auth_secret=SECRET)
        ours = await enrolment(stack, options)
        await ours.register(MEMBER, soon())
        theirs = await enrolment(stack, options, "payments")
        assert await theirs.report(MEMBER.id, HealthStatus.UNHEALTHY, "down", soon()) is False
        with pytest.raises(RegistryError, match="another identity"):
            await theirs.register(MEMBER, soon())
        assert await ours.report(MEMBER.id, HealthStatus.HEALTHY, "serving", soon()) is True
        assert (await ours.wait_applied(MEMBER.service, soon())).is_complete
        assert await ours.deregister(MEMBER.id, soon()) is True


async def test_while_the_registry_is_away_discovery_says_not_now_and_not_no(
    registry: RegistryServer, discovery: DiscoveryServer
) -> None:
    async with AsyncExitStack() as stack:
        options = ConnectOptions(discovery_address=discovery.target, auth_secret=SECRET)
        ours = await enrolment(stack, options)
        await ours.register(MEMBER, soon())
        await asyncio.to_thread(registry.kill)
        try:
            with pytest.raises(RegistryUnavailableError):
                await ours.report(MEMBER.id, HealthStatus.HEALTHY, "serving", soon(1))
            with pytest.raises(RegistryUnavailableError):
                await ours.register(MEMBER, soon(1))
            with pytest.raises(RegistryUnavailableError):
                await ours.deregister(MEMBER.id, soon(1))
        finally:
            await asyncio.to_thread(registry.start)

        async def is_known_again() -> bool:
            try:
                return await ours.report(MEMBER.id, HealthStatus.HEALTHY, "serving", soon(2))
            except RegistryUnavailableError:
                return False

        await eventually(is_known_again)


async def test_a_go_discovery_whose_registry_is_away_is_not_believed_that_we_are_gone() -> None:
    async with go_discovery() as discovery, AsyncExitStack() as stack:
        ours = await enrolment(stack, ConnectOptions(discovery_address=discovery.target))
        await ours.register(MEMBER, soon())
        discovery.is_registry_away = True
        with pytest.raises(RegistryUnavailableError, match="connection refused"):
            await ours.deregister(MEMBER.id, soon())
        discovery.is_registry_away = False
        assert await ours.deregister(MEMBER.id, soon()) is True
        assert await ours.deregister(MEMBER.id, soon()) is False
