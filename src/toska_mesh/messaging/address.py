"""The broker's address: `RABBITMQ_URL` read once, and the URIs MassTransit makes from it.

The URL holds a password. It is kept out of every repr, log line and error text; only `connection_url` has it.
"""

from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from yarl import URL

from toska_mesh.errors import ConfigError

_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
_HEARTBEAT_SECONDS = 10
_FORM = (
    "amqp://user:password@host:5672/vhost, or amqps:// for TLS (with ?cafile=, ?certfile= and ?keyfile= as needed); "
    "special characters of user, password and vhost are percent-encoded"
)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is. `connection_url` carries credentials and options and is for the connection alone."""

    host: str
    port: int
    virtual_host: str
    uses_tls: bool
    connection_url: URL = field(repr=False)

    def __str__(self) -> str:
        return f"{'amqps' if self.uses_tls else 'amqp'}://{self._authority()}:{self.port}/{self._quoted_virtual_host()}"

    def uri(self, name: str, query: str = "") -> str:
        """The address MassTransit gives to an exchange (`RabbitMqEndpointAddress`): a default port is left out."""
        scheme, default = ("rabbitmqs", 5671) if self.uses_tls else ("rabbitmq", 5672)
        port = "" if self.port == default else f":{self.port}"
        vhost = "" if self.virtual_host == "/" else f"{self._quoted_virtual_host()}/"
        return f"{scheme}://{self._authority()}{port}/{vhost}{quote(name, safe=':._-')}{query}"

    def _authority(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def _quoted_virtual_host(self) -> str:
        return quote(self.virtual_host, safe="")


def parse_broker_url(text: str, variable: str = "RABBITMQ_URL") -> BrokerAddress:
    """Read an AMQP URI (RabbitMQ URI specification). Raises ConfigError, without the value: it holds a password."""
    try:
        url = URL(text.strip())
        port = url.port
    except ValueError:
        raise ConfigError(f"{variable} is not an AMQP address (its value is hidden); it looks like {_FORM}") from None
    host = url.host
    if url.scheme not in _DEFAULT_PORTS or not host or url.fragment:
        raise ConfigError(f"{variable} is not an AMQP address (its value is hidden); it looks like {_FORM}")
    if port is None:
        port = _DEFAULT_PORTS[url.scheme]
        url = url.with_port(port)
    if "heartbeat" not in url.query:
        url = url.update_query(heartbeat=str(_HEARTBEAT_SECONDS))
    return BrokerAddress(
        host=host,
        port=port,
        virtual_host=unquote(url.raw_path.removeprefix("/")) or "/",
        uses_tls=url.scheme == "amqps",
        connection_url=url,
    )
