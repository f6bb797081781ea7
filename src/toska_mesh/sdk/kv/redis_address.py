"""Where a Redis is: a connection string of StackExchange.Redis, as the C# runtime takes it, or a redis:// URL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from toska_mesh.errors import ConfigError

DEFAULT_PORT: Final = 6379
DEFAULT_TLS_PORT: Final = 6380
"""What StackExchange.Redis takes when `ssl=true` and no port is named."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis server and how to speak to it."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    database: int | None = None
    """None: not said."""
    user: str = ""
    password: str = field(default="", repr=False)
    use_tls: bool = False
    client_name: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database or 0}"


_NOT_NEEDED: Final = frozenset(
    {
        *("abortconnect", "allowadmin", "asynctimeout", "channelprefix", "checkcertificaterevocation"),
        *("configchannel", "configcheckseconds", "connectretry", "connecttimeout", "heartbeatconsistencychecks"),
        *("heartbeatinterval", "highintegrity", "keepalive", "lib", "prefersync", "preserveasyncorder", "protocol"),
        *("resolvedns", "responsetimeout", "setlib", "sslprotocols", "synctimeout", "tiebreaker", "version"),
        "writebuffer",
    }
)
"""Options of StackExchange.Redis that tune its own connection; a string that is shared with C# may carry them."""

_NOT_SUPPORTED: Final[Mapping[str, str]] = {
    "servicename": "Sentinel is not supported: name the primary's own address",
    "proxy": "proxies for commands are not supported: name the server's own address",
    "tunnel": "tunnels are not supported: name the server's own address",
    "sslhost": "another name in the certificate is not supported: name the server as its certificate does",
}


def parse(text: str, origin: str) -> RedisAddress:
    """Raises ConfigError that begins with `origin`, the name of the setting, and never shows a password."""
    if "://" in text:
        return _parse_url(text, origin)
    tokens = [token.strip() for token in text.split(",") if token.strip()]
    hosts = [token for token in tokens if "=" not in token]
    if len(hosts) != 1:
        # Not named here: a piece of a password with a comma in it would look like a server, too.
        found = f"{len(hosts)} servers" if hosts else "no server"
        raise ConfigError(f"{origin} names {found}; it should name one: the address of the primary, as localhost:6379")
    address = RedisAddress()
    for token in tokens:
        name, is_option, value = token.partition("=")
        if is_option:
            address = _with_option(address, name.strip(), value.strip(), origin)
    return _with_host(address, hosts[0], origin)


def _with_option(address: RedisAddress, name: str, value: str, origin: str) -> RedisAddress:
    known = name.lower()
    if known in _NOT_SUPPORTED:
        raise ConfigError(f"{origin} has {name}=: {_NOT_SUPPORTED[known]}")
    if known in _NOT_NEEDED:
        return address
    reader = _OPTIONS.get(known)
    if reader is None:
        raise ConfigError(
            f"{origin} has the option {name!r}, which StackExchange.Redis does not know; "
            "read are password, user, defaultDatabase, ssl and name"
        )
    return reader(address, value, f"{origin}, option {name},")


def _with_host(address: RedisAddress, text: str, origin: str) -> RedisAddress:
    host, port = _split_port(text)
    if port is None:
        return replace(address, host=host, port=DEFAULT_TLS_PORT if address.use_tls else DEFAULT_PORT)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or not host:
        raise ConfigError(f"{origin} names the server {text!r}; it should be host:port, as localhost:6379")
    return replace(address, host=host, port=int(port))


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":") if rest else None
    if text.count(":") > 1:  # an IPv6 address alone
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _read_database(address: RedisAddress, value: str, origin: str) -> RedisAddress:
    if value == "-1":  # StackExchange.Redis's word for "not said"
        return address
    if not (value.isascii() and value.isdecimal()):
        raise ConfigError(f"{origin} is {value!r}; it should be the number of a database, as 0")
    return replace(address, database=int(value))


def _read_tls(address: RedisAddress, value: str, origin: str) -> RedisAddress:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{origin} is {value!r}; it should be true or false")
    return replace(address, use_tls=value.lower() == "true")


_OPTIONS: Final[Mapping[str, Callable[[RedisAddress, str, str], RedisAddress]]] = {
    "password": lambda address, value, _: replace(address, password=value),
    "user": lambda address, value, _: replace(address, user=value),
    "name": lambda address, value, _: replace(address, client_name=value),
    "defaultdatabase": _read_database,
    "ssl": _read_tls,
}


def _parse_url(text: str, origin: str) -> RedisAddress:
    """redis://[user:password@]host[:port][/database], or rediss:// for TLS, as IANA has them."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{origin} is no URL; it should be as redis://localhost:6379/0") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ConfigError(f"{origin} is a {parts.scheme}:// URL; it should be as redis://localhost:6379/0 or rediss://")
    if "," in parts.netloc.rpartition("@")[2]:
        raise ConfigError(f"{origin} names several servers; it should name one: the address of the primary")
    query = parse_qsl(parts.query)
    if any(name != "db" for name, _ in query) or parts.fragment:
        raise ConfigError(f"{origin} has parameters that are not read; only `db` is")
    database = parts.path.strip("/") or dict(query).get("db", "-1")
    address = RedisAddress(
        host=parts.hostname,
        port=port or DEFAULT_PORT,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        use_tls=parts.scheme == "rediss",
    )
    return _read_database(address, database, f"{origin}, the database,")
