"""What the HTTP client makes of addresses and refusals. Its traffic is tried on real servers in the contract suite."""

import errno
import socket
import ssl
from unittest.mock import Mock

import aiohttp
import pytest

from toska_mesh.errors import ConfigError, InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.registry.consul import ConsulClient, ConsulOptions
from toska_mesh.registry.consul.client import SessionLostError, ThrottledError, _refusal, segment, words_of


@pytest.mark.parametrize(
    ("options", "address"),
    [
        (ConsulOptions("http://localhost:8500"), "http://localhost:8500"),
        (ConsulOptions("http://localhost:8500/"), "http://localhost:8500"),
        (ConsulOptions("http://user:secret@consul:8500/base/"), "http://consul:8500/base"),
        (ConsulOptions("http://consul:8501", use_tls=True), "https://consul:8501"),
        (ConsulOptions("https://[::1]:8501"), "https://[::1]:8501"),
        (ConsulOptions("https://consul.example"), "https://consul.example"),
    ],
)
def test_addresses(options: ConsulOptions, address: str) -> None:
    assert ConsulClient(options).address == address


@pytest.mark.parametrize(
    ("options", "origin"),
    [
        (ConsulOptions("http://user:secret@consul:8500/", token="word"), "http://consul:8500"),
        (ConsulOptions("http://consul:8500", namespace="team a"), "http://consul:8500?ns=team+a"),
        (ConsulOptions("http://consul", partition="p", namespace="n"), "http://consul?partition=p&ns=n"),
    ],
)
def test_what_is_read_where_is_told_without_credentials(options: ConsulOptions, origin: str) -> None:
    assert ConsulClient(options).origin == origin


@pytest.mark.parametrize("address", ["", "localhost:8500", "ftp://consul", "http://", "ftp://user:secret@consul"])
def test_an_address_that_is_no_http_url_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="CONSUL_ADDRESS") as caught:
        ConsulClient(ConsulOptions(address))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, "Missing service name", RegistryError),
        (403, "ACL not found", RegistryError),
        (404, "404 page not found", RegistryError),
        (404, "unknown service ID: x", InstanceNotFoundError),
        (404, 'Unknown service ID "x". Ensure that the service ID is passed', InstanceNotFoundError),
        (404, 'Unknown check ID "service:x".', InstanceNotFoundError),
        (500, 'CheckID "service:x" does not have associated TTL', InstanceNotFoundError),
        (500, "No cluster leader", RegistryUnavailableError),
        (503, "", RegistryUnavailableError),
        (429, "Your IP is issuing too many concurrent connections", RegistryUnavailableError),
        (500, 'invalid session "0b0"', SessionLostError),
        (404, "Session id '0b0' not found", SessionLostError),
    ],
)
def test_refusals_become_our_errors(status: int, text: str, expected: type[RegistryError]) -> None:
    error = _refusal(status, text, "")
    assert type(error) is expected
    assert text in str(error)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("100000", 60.0)])
def test_retry_after_is_kept_within_reason(header: str, seconds: float) -> None:
    error = _refusal(429, "slow down", header)
    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == seconds


def test_a_path_segment_cannot_break_out() -> None:
    assert segment("a/b?c#d e%") == "a%2Fb%3Fc%23d%20e%25"


def test_secrets_do_not_show_in_the_options() -> None:
    shown = repr(ConsulOptions("http://user:hush@consul", token="hush", http_auth="user:hush"))
    assert "hush" not in shown


async def test_a_call_outside_the_client_s_life_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        await ConsulClient(ConsulOptions()).call("GET", "/v1/status/leader")


def refused_by(cause: OSError) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(Mock(host="localhost", port=8500, ssl=True), cause)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused_by(OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 8500)")), "connection refused"),
        (refused_by(OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.1', 8500)")), "no route to host"),
        (refused_by(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), "name or service not known"),
        (refused_by(OSError("Multiple exceptions: a, b")), "Multiple exceptions: a, b"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "connection refused"),
        (ConnectionResetError(), "ConnectionResetError"),
        (aiohttp.ServerDisconnectedError(), "Server disconnected"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
    ],
)
def test_a_failed_connection_is_told_in_the_systems_words(error: Exception, words: str) -> None:
    said = words_of(error)
    assert words in said
    assert "Connect call" not in said
    assert "Errno" not in said
