"""`RABBITMQ_URL`: what is accepted, and that its password never shows."""

import pytest

from toska_mesh.errors import ConfigError
from toska_mesh.messaging.address import parse_broker_url


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost", "tls"),
    [
        pytest.param("amqp://h", "h", 5672, "/", False, id="host alone"),
        pytest.param("amqp://h/", "h", 5672, "/", False, id="root path is the default vhost"),
        pytest.param("amqp://u:p@h:5673/mesh", "h", 5673, "mesh", False, id="all parts"),
        pytest.param("amqp://u:p%40ss@h/%2Fmesh", "h", 5672, "/mesh", False, id="percent-encoded"),
        pytest.param("amqps://h/mesh?cafile=/ca.pem", "h", 5671, "mesh", True, id="tls"),
        pytest.param("amqp://u:p@[::1]:5672/", "::1", 5672, "/", False, id="ipv6"),
        pytest.param("  amqp://h\n", "h", 5672, "/", False, id="blanks around"),
    ],
)
def test_an_amqp_address_is_read(url, host, port, vhost, tls):
    address = parse_broker_url(url)
    assert (address.host, address.port, address.virtual_host, address.uses_tls) == (host, port, vhost, tls)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://u:pa55word@h/", id="another scheme"),
        pytest.param("u:pa55word@h", id="no scheme"),
        pytest.param("amqp://u:pa55word@/", id="no host"),
        pytest.param("amqp://u:pa55word@h:seven/", id="port in words"),
        pytest.param("amqp://u:pa55word@h:99999/", id="port out of range"),
        pytest.param("amqp://u:pa55#word@h/", id="fragment: an unescaped # in the password"),
    ],
)
def test_anything_else_is_a_config_error_that_hides_the_value(url):
    with pytest.raises(ConfigError, match="RABBITMQ_URL is not an AMQP address") as caught:
        parse_broker_url(url)
    assert "pa55" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "percent-encoded" in str(caught.value)


def test_credentials_show_neither_in_text_nor_in_repr():
    address = parse_broker_url("amqp://someuser:pa55word@h/v?heartbeat=5")
    assert str(address) == "amqp://h:5672/v"
    for text in (str(address), repr(address), address.uri("x")):
        assert "pa55word" not in text
        assert "someuser" not in text


def test_heartbeats_are_on_unless_the_url_says_otherwise():
    assert parse_broker_url("amqp://h").connection_url.query["heartbeat"] == "10"
    assert parse_broker_url("amqp://h?heartbeat=3").connection_url.query["heartbeat"] == "3"
