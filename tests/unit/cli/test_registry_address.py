"""Which registry a command means."""

import asyncio
import socket

import pytest

from toska_mesh.cli.registry_address import check_address, check_host, choose_registry
from toska_mesh.errors import ConfigError
from toska_mesh.settings import ConsulSettings


@pytest.mark.parametrize(
    ("environ", "address", "origin"),
    [
        pytest.param({}, "http://localhost:8500", "the default, CONSUL_ADDRESS is not set", id="nothing said"),
        pytest.param({"CONSUL_ADDRESS": "http://here:1"}, "http://here:1", "by CONSUL_ADDRESS", id="ours"),
        pytest.param({"CONSUL_HTTP_ADDR": "here:1"}, "http://here:1", "by CONSUL_HTTP_ADDR", id="Consul's"),
        pytest.param({"REGISTRY_PORT": "18500"}, "http://127.0.0.1:18500", "by REGISTRY_PORT", id="a moved port"),
        pytest.param({"REGISTRY_HOST": "127.0.0.2"}, "http://127.0.0.2:8500", "by REGISTRY_HOST", id="a moved host"),
        pytest.param(
            {"REGISTRY_PORT": "18500", "CONSUL_ADDRESS": "http://here:1"},
            "http://here:1",
            "by CONSUL_ADDRESS",
            id="an address wins",
        ),
        pytest.param(
            {"REGISTRY_PORT": "18500", "CONSUL_ADDRESS": "", "CONSUL_HTTP_SSL": "true"},
            "http://127.0.0.1:18500",
            "by REGISTRY_PORT",
            id="an empty address is none",
        ),
        pytest.param(
            {"REGISTRY_PORT": "tcp://10.0.0.1:8500"},
            "http://localhost:8500",
            "the default, CONSUL_ADDRESS is not set",
            id="what Kubernetes says of a service named registry",
        ),
    ],
)
def test_the_registry_is_the_one_that_was_said(environ: dict[str, str], address: str, origin: str) -> None:
    chosen = choose_registry(ConsulSettings, environ)
    assert chosen.settings.consul_address == address
    assert not chosen.settings.consul_ssl
    assert chosen.origin == origin


def test_the_embedded_registrys_token_goes_with_its_port() -> None:
    chosen = choose_registry(ConsulSettings, {"REGISTRY_TOKEN": "own", "CONSUL_HTTP_TOKEN": "other"})
    assert chosen.settings.consul_token.get_secret_value() == "own"


@pytest.mark.parametrize("written", ["nonsense", "user:secret@nonsense", "localhost"])
def test_a_mere_word_is_no_address(written: str) -> None:
    with pytest.raises(ConfigError, match=r"--consul.*should be a URL such as http://localhost:8500") as caught:
        check_address(written, "--consul")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("written", ["http://nonsense", "consul:8500", "[::1]:8500"])
def test_an_address_may_come_without_its_scheme(written: str) -> None:
    check_address(written, "--consul")


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("label too long")])
async def test_a_host_that_does_not_exist_is_told_with_who_said_it(error: Exception) -> None:
    async def resolve(host: str) -> object:
        raise error

    with pytest.raises(ConfigError, match="no host 'nonsense' is known") as caught:
        await check_host("http://user:secret@nonsense:8500", "CONSUL_ADDRESS", resolve=resolve)
    assert str(caught.value).startswith("CONSUL_ADDRESS='http://***@nonsense:8500'")


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "later"), OSError("no network")])
async def test_a_resolver_in_trouble_says_nothing_about_the_host(error: Exception) -> None:
    async def resolve(host: str) -> object:
        raise error

    await check_host("http://consul:8500", "CONSUL_ADDRESS", resolve=resolve)


async def test_a_resolver_that_hangs_is_not_waited_for() -> None:
    async def resolve(host: str) -> object:
        await asyncio.sleep(1000)
        return None

    await check_host("http://consul:8500", "CONSUL_ADDRESS", 0.5, resolve)
    assert asyncio.get_running_loop().time() == 0.5
