"""Options from environment variables: this family's names, those of its .NET SDK, and what Kubernetes pods are told.

Code overrides the environment, the environment overrides defaults. One table says which variable fills which option
and is also the source of the reference in `docs/configuration.md`. A value that cannot be understood, or an unknown
name that begins with `MESH_`, is a ConfigError naming variable, value and what would be right; nothing is passed over
in silence but the key-value store's own names, the service links that Kubernetes injects
(`MESH_SERVICE_PORT=tcp://…` beside a Service called `mesh-service`) and .NET settings that have no meaning here.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar, Unpack
from urllib.parse import urlsplit

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.options import ConnectOptions, InvalidOptionError, ServiceOptions, UnknownOptionError
from toska_mesh.sdk.overrides import ConnectOverrides, ServiceOverrides

OWN_PREFIX: Final = "MESH_"
"""The name space in which an unknown variable is an error."""

KEY_VALUE_PREFIX: Final = "MESH_KV_"
"""Read, and judged, where a store is opened (`sdk.kv`)."""

METADATA_PREFIX: Final = "MESH_SERVICE_METADATA_"
_DOTNET_METADATA_PREFIX: Final = "mesh__service__metadata__"
_DOTNET_PREFIXES: Final = (
    "mesh__service__",
    "mesh__servicediscovery__grpc__",
    "mesh__serviceauth__",
    "mesh__identity__",
)
_DOTNET_SHOUTED: Final = "MESH__"
"""How .NET's names begin where they are written in capitals."""

_NO_MEANING_HERE: Final = frozenset(
    {
        "mesh__service__enabletelemetry",
        "mesh__service__enableauth",
        "mesh__service__allownoopserviceregistry",
        "mesh__servicediscovery__grpc__clientcertificatepassword",
    }
)
"""Settings of the .NET SDK that stand in shared manifests."""

_ALLOW_PLAINTEXT: Final = "mesh__servicediscovery__grpc__allowinsecuretransport"
_DOTNET_ROLES: Final = "mesh__identity__roles__"

_TIMESPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,7}))?)?\Z")
_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_LINK_SCHEMES = ("tcp", "udp", "sctp")

Options = TypeVar("Options", ServiceOptions, ConnectOptions)
Parse = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts become values: what is expected, in words, and the function that raises ValueError otherwise."""

    expected: str
    parse: Parse


@dataclass(frozen=True, slots=True)
class Variable:
    """One option with the variables that fill it, the first that is set counts. Also a row of the reference."""

    option: str
    name: str
    description: str
    reading: Reading
    also: tuple[str, ...] = ()
    """.NET names among them (with `__`) are compared without regard to case, as .NET does."""
    dotnet_reading: Reading | None = None
    """Where the .NET SDK writes the same thing differently."""
    is_secret: bool = False
    holds_credentials: bool = False
    default: str = ""
    """As it would be written; filled from the options' own default."""

    @property
    def expected(self) -> str:
        return self.reading.expected

    def parse(self, name: str, text: str) -> Any:
        """Raises ConfigError naming the variable that was set, its value and what would be right."""
        reading = self.dotnet_reading if "__" in name and self.dotnet_reading is not None else self.reading
        try:
            return reading.parse(text)
        except ValueError as exc:
            shown = "(hidden)" if self.is_secret or self.holds_credentials else repr(text)
            raise ConfigError(f"{name}={shown} is wrong: {exc}") from exc


def service_options(environ: Mapping[str, str] | None = None, **overrides: Unpack[ServiceOverrides]) -> ServiceOptions:
    """Everything about one instance. `overrides` are options of ServiceOptions, or of the ConnectOptions in it.

    Raises ConfigError listing all that is wrong, one per line.
    """
    environ = os.environ if environ is None else environ
    service, connect = _split(overrides)
    if connect and "connect" in service:
        raise UnknownOptionError(f"connect is given, so {', '.join(sorted(connect))} should be said in it")
    read = _read(SERVICE_VARIABLES, environ)
    read_connect = _Read() if "connect" in service else _read(CONNECT_VARIABLES, environ)
    _refuse([*_unknown(environ), *read.problems, *read_connect.problems])
    if "connect" not in service:
        service["connect"] = _made(ConnectOptions, read_connect, connect)
    metadata = _metadata(environ)
    if metadata and isinstance(service.get("metadata", {}), Mapping):
        # Single keys written in code stand beside those of the environment.
        service["metadata"] = {**metadata, **service.get("metadata", {})}
    return _made(ServiceOptions, read, service)


def connect_options(environ: Mapping[str, str] | None = None, **overrides: Unpack[ConnectOverrides]) -> ConnectOptions:
    """How to reach the mesh. Raises ConfigError listing all that is wrong, one per line."""
    environ = os.environ if environ is None else environ
    _refuse_unknown_options(overrides, {field.name for field in fields(ConnectOptions)})
    read = _read(CONNECT_VARIABLES, environ)
    _refuse([*_unknown(environ), *read.problems])
    return _made(ConnectOptions, read, overrides)


def variables() -> tuple[Variable, ...]:
    """Every variable, for the reference."""
    return (*SERVICE_VARIABLES, *CONNECT_VARIABLES)


def _split(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    service = {field.name for field in fields(ServiceOptions)}
    connect = {field.name for field in fields(ConnectOptions)}
    _refuse_unknown_options(overrides, service | connect)
    return (
        {name: value for name, value in overrides.items() if name in service},
        {name: value for name, value in overrides.items() if name not in service},
    )


def _refuse_unknown_options(overrides: Mapping[str, Any], known: set[str]) -> None:
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UnknownOptionError(f"{name} is no option" + (f"; did you mean {near[0]}?" if near else ""))


@dataclass(frozen=True, slots=True)
class _Read:
    """What the environment said: values by option, the variable each came from, and what could not be understood."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def _read(table: tuple[Variable, ...], environ: Mapping[str, str]) -> _Read:
    lowered = {name.lower(): name for name in environ if "__" in name}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for variable in table:
        for wanted in (variable.name, *variable.also):
            name = lowered.get(wanted.lower(), "") if "__" in wanted else wanted
            # Compose files write `${X:-}` for "not set": empty means the default.
            text = environ.get(name, "").strip()
            if not text or _is_service_link(name, text, environ):
                continue
            try:
                values[variable.option] = variable.parse(name, text)
            except ConfigError as exc:
                problems.append(str(exc))
            origins[variable.option] = name
            break
    if table is CONNECT_VARIABLES:
        roles = tuple(environ[name] for lower, name in sorted(lowered.items()) if lower.startswith(_DOTNET_ROLES))
        if roles and "roles" not in values:
            values["roles"] = roles
        if allowed := lowered.get(_ALLOW_PLAINTEXT):
            problems += _insecure(allowed, environ[allowed], values.get("discovery_address"))
    return _Read(values, origins, tuple(problems))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _made(kind: type[Options], read: _Read, overrides: Mapping[str, Any]) -> Options:
    try:
        return kind(**{**read.values, **overrides})
    except InvalidOptionError as exc:
        origin = read.origins.get(exc.option)
        if origin is None or exc.option in overrides:
            raise
        raise ConfigError(f"{origin}: {exc.problem}") from exc


def _insecure(name: str, text: str, address: str | None) -> Iterator[str]:
    """The .NET SDK refuses plaintext unless it is allowed; a manifest that says so means it."""
    try:
        is_allowed = _boolean(text)
    except ValueError as exc:
        yield f"{name}={text!r} is wrong: {exc}"
        return
    if not is_allowed and address and not address.lower().startswith("https://"):
        yield f"{name}={text!r}, but {address!r} is plaintext: write https:// or allow it"


def _metadata(environ: Mapping[str, str]) -> dict[str, str]:
    """`MESH_SERVICE_METADATA_ZONE=a` is `zone`; two underscores are a hyphen: `…_TOSKA__RETRIES` is `toska-retries`."""
    found: dict[str, str] = {}
    for name, value in environ.items():
        if name.lower().startswith(_DOTNET_METADATA_PREFIX) and value:
            found[name[len(_DOTNET_METADATA_PREFIX) :]] = value
    for name, value in environ.items():
        if name.startswith(METADATA_PREFIX) and value:
            found[name.removeprefix(METADATA_PREFIX).replace("__", "-").lower()] = value
    return found


def _is_service_link(name: str, value: str, environ: Mapping[str, str]) -> bool:
    """Shapes of Kubernetes' service environment variables (kubernetes.io: "Discovering services")."""
    if name.endswith("_PORT") and value.startswith(tuple(f"{scheme}://" for scheme in _LINK_SCHEMES)):
        return True
    # A Service called `mesh` is announced under the very names of our host and port; its own link gives it away.
    link = urlsplit(environ.get("MESH_PORT", ""))
    if link.scheme not in _LINK_SCHEMES or environ.get("MESH_SERVICE_HOST") != link.hostname:
        return False
    return name == "MESH_SERVICE_HOST" or (name == "MESH_SERVICE_PORT" and value == link.netloc.rpartition(":")[2])


def _unknown(environ: Mapping[str, str]) -> Iterator[str]:
    names = [name for variable in variables() for name in (variable.name, *variable.also)]
    ours = {name for name in names if "__" not in name}
    dotnet = {name.lower(): name for name in names if "__" in name}
    for name, value in sorted(environ.items()):
        if name.startswith(OWN_PREFIX) and not name.startswith((KEY_VALUE_PREFIX, _DOTNET_SHOUTED)):
            is_known = name in ours or (name.startswith(METADATA_PREFIX) and len(name) > len(METADATA_PREFIX))
            if is_known or _LINK_NAME.search(name) or _is_service_link(name, value, environ):
                continue
            yield _unknown_name(name, ours)
        elif name.lower().startswith(_DOTNET_PREFIXES):
            lowered = name.lower()
            if lowered in dotnet or lowered in _NO_MEANING_HERE or lowered == _ALLOW_PLAINTEXT:
                continue
            if lowered.startswith((_DOTNET_METADATA_PREFIX, _DOTNET_ROLES)):
                continue
            yield _unknown_name(name, set(dotnet.values()))


def _unknown_name(name: str, known: set[str]) -> str:
    if name.rstrip("_") == METADATA_PREFIX.rstrip("_"):
        return f"{name} is not a setting; write {METADATA_PREFIX}<KEY>=value, one variable for each key"
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    hint = f"did you mean {by_lower[near[0]]}?" if near else "docs/configuration.md lists the ones there are"
    return f"{name} is not a setting; {hint}"


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise ValueError("it should be `true` or `false`")


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ValueError("it should be a whole number")
    return int(text)


def _seconds(text: str) -> float:
    """A number of seconds, or .NET's TimeSpan text (`[days.]hours:minutes[:seconds[.fraction]]`)."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    if _TIMESPAN.match(text) is None:
        raise ValueError("it should be seconds, 0 or more, or a time such as 00:00:30 (hours, minutes, seconds)")
    return _timespan(text)


def _timespan(text: str) -> float:
    match = _TIMESPAN.match(text)
    if match is None:
        raise ValueError("it should be a time such as 00:00:30 (hours, minutes, seconds)")
    days, hours, minutes, seconds, fraction = match.groups()
    if int(hours) > 23 or int(minutes) > 59 or int(seconds or 0) > 59:
        raise ValueError("it should be a time with at most 23 hours, 59 minutes and 59 seconds, days before a dot")
    whole = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds or 0)
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


def _dotnet_timespan(text: str) -> float:
    if text.isdecimal():
        raise ValueError(f"to .NET that is {text} days; write 00:00:{text:0>2}")
    return _timespan(text)


def _provider(text: str) -> str:
    known = {"discovery": "discovery", "grpc": "discovery", "consul": "consul"}
    if text.lower() not in known:
        raise ValueError("it should be `discovery` (or .NET's `Grpc`) or `consul`")
    return known[text.lower()]


def _commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _consul_url(text: str) -> str:
    # CONSUL_HTTP_ADDR is often written without a scheme, as Consul's own tools accept it.
    return text if "://" in text else f"http://{text}"


_TEXT = Reading("text", str)
_FILE = Reading("a path", str)
_BOOL = Reading("`true` or `false`", _boolean)
_INT = Reading("a whole number", _whole)
_TIMESPAN_TEXT = Reading("a time such as `00:00:30`", _dotnet_timespan)
_SECONDS = Reading("seconds, or a time such as `00:00:30`", _seconds)
_COMMAS = Reading("a comma-separated list", _commas)


def _table(kind: type[Any], *rows: Variable) -> tuple[Variable, ...]:
    """The rows with the defaults of the options they fill."""
    defaults = kind()
    return tuple(replace(row, default=_written(getattr(defaults, row.option))) for row in rows)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


SERVICE_VARIABLES: Final = _table(
    ServiceOptions,
    Variable("name", "MESH_SERVICE_NAME", "Name to register under.", _TEXT, ("Mesh__Service__ServiceName",)),
    Variable(
        "id",
        "MESH_SERVICE_ID",
        "Id of this instance, unique among all; empty = the name and 32 random hex digits.",
        _TEXT,
        ("Mesh__Service__ServiceId", "POD_NAME"),
    ),
    Variable("host", "MESH_SERVICE_HOST", "Address the port is bound to.", _TEXT, ("Mesh__Service__Address",)),
    Variable(
        "port",
        "MESH_SERVICE_PORT",
        "Port to serve on; 0 = any free one, and that one is registered.",
        _INT,
        ("Mesh__Service__Port",),
    ),
    Variable(
        "advertised_address",
        "MESH_SERVICE_ADVERTISED_ADDRESS",
        "Address to register; empty = MESH_SERVICE_HOST, and for `0.0.0.0` the one that discovery sees.",
        _TEXT,
        ("Mesh__Service__AdvertisedAddress", "POD_IP"),
    ),
    Variable(
        "health_endpoint",
        "MESH_SERVICE_HEALTH_ENDPOINT",
        "Path that the health monitor probes.",
        _TEXT,
        ("Mesh__Service__Routing__HealthCheckEndpoint", "Mesh__Service__HealthEndpoint"),
    ),
    Variable(
        "health_interval_seconds",
        "MESH_SERVICE_HEALTH_INTERVAL_SECONDS",
        "Health check interval to register; a beat keeps the instance for 5 s longer and comes in a third of that.",
        _SECONDS,
        ("Mesh__Service__HealthInterval",),
        _TIMESPAN_TEXT,
    ),
    Variable(
        "health_timeout_seconds",
        "MESH_SERVICE_HEALTH_TIMEOUT_SECONDS",
        "Longest time for one probe, to register.",
        _SECONDS,
        ("Mesh__Service__HealthTimeout",),
        _TIMESPAN_TEXT,
    ),
    Variable(
        "unhealthy_threshold",
        "MESH_SERVICE_UNHEALTHY_THRESHOLD",
        "Failed probes in a row that make the instance unhealthy, to register.",
        _INT,
        ("Mesh__Service__UnhealthyThreshold",),
    ),
    Variable(
        "register",
        "MESH_SERVICE_REGISTER",
        "Whether to register at all.",
        _BOOL,
        ("Mesh__Service__RegisterAutomatically",),
    ),
    Variable(
        "heartbeat",
        "MESH_SERVICE_HEARTBEAT",
        "Whether to keep the registration alive.",
        _BOOL,
        ("Mesh__Service__HeartbeatEnabled",),
    ),
    Variable(
        "wait_for_registration",
        "MESH_SERVICE_WAIT_FOR_REGISTRATION",
        "Whether starting waits until the mesh knows the instance.",
        _BOOL,
    ),
    Variable(
        "scheme",
        "MESH_SERVICE_SCHEME",
        "What the instance speaks: `http`, `https`, `grpc`, `grpcs` or `tcp`.",
        _TEXT,
        ("Mesh__Service__Routing__Scheme",),
    ),
    Variable(
        "strategy",
        "MESH_SERVICE_STRATEGY",
        "How the gateway balances over the instances of the service.",
        _TEXT,
        ("Mesh__Service__Routing__Strategy",),
    ),
    Variable(
        "weight",
        "MESH_SERVICE_WEIGHT",
        "This instance's share with `WeightedRoundRobin`.",
        _INT,
        ("Mesh__Service__Routing__Weight",),
    ),
    Variable("version", "MESH_SERVICE_VERSION", "Version of the service, as metadata `version`.", _TEXT),
    Variable(
        "drain_seconds",
        "MESH_SERVICE_DRAIN_SECONDS",
        "Longest time for leaving: from the signal until the port is closed.",
        _SECONDS,
    ),
    Variable(
        "notice_seconds",
        "MESH_SERVICE_NOTICE_SECONDS",
        "How long to wait for the gateways where the control plane cannot say that they have heard, within the drain.",
        _SECONDS,
    ),
)

CONNECT_VARIABLES: Final = _table(
    ConnectOptions,
    Variable(
        "provider",
        "MESH_REGISTRY_PROVIDER",
        "Where to register: `discovery`, or `consul` for Consul without a discovery.",
        Reading("`discovery` or `consul`", _provider),
        ("Mesh__Service__ServiceRegistryProvider",),
    ),
    Variable(
        "discovery_address",
        "MESH_DISCOVERY_ADDRESS",
        "Discovery's gRPC server: `host:port`, `http://host:port`, or `https://host:port` for TLS.",
        _TEXT,
        ("Mesh__ServiceDiscovery__Grpc__Address",),
    ),
    Variable("use_tls", "MESH_DISCOVERY_TLS", "Speak TLS to discovery even without `https://`.", _BOOL),
    Variable("ca_file", "MESH_DISCOVERY_CA_FILE", "PEM file with CAs for discovery; empty = the system's.", _FILE),
    Variable(
        "client_cert",
        "MESH_DISCOVERY_CLIENT_CERT",
        "PEM file with the client certificate for discovery.",
        _FILE,
        ("Mesh__ServiceDiscovery__Grpc__ClientCertificatePath",),
    ),
    Variable(
        "client_key", "MESH_DISCOVERY_CLIENT_KEY", "PEM file with its key; empty = in the certificate's file.", _FILE
    ),
    Variable(
        "consul_address",
        "CONSUL_ADDRESS",
        "URL of a Consul agent, for the provider `consul`; `user:password@` before the host is sent as basic auth.",
        Reading("an http:// or https:// URL", _consul_url),
        ("CONSUL_HTTP_ADDR", "Consul__Address"),
        holds_credentials=True,
    ),
    Variable("consul_token", "CONSUL_HTTP_TOKEN", "ACL token sent to Consul.", _TEXT, is_secret=True),
    Variable("consul_token_file", "CONSUL_HTTP_TOKEN_FILE", "File that holds the ACL token.", _FILE),
    Variable("consul_ca_file", "CONSUL_CACERT", "File with CA certificates for Consul.", _FILE),
    Variable("consul_client_cert", "CONSUL_CLIENT_CERT", "Client certificate file for Consul.", _FILE),
    Variable("consul_client_key", "CONSUL_CLIENT_KEY", "Key file of the client certificate.", _FILE),
    Variable(
        "auth_secret",
        "MESH_SERVICE_AUTH_SECRET",
        "HS256 secret of the service token, at least 32 bytes; empty = no token is sent.",
        _TEXT,
        ("Mesh__ServiceAuth__Secret",),
        is_secret=True,
    ),
    Variable("auth_issuer", "MESH_SERVICE_AUTH_ISSUER", "Issuer of the token.", _TEXT, ("Mesh__ServiceAuth__Issuer",)),
    Variable(
        "auth_audience",
        "MESH_SERVICE_AUTH_AUDIENCE",
        "Audience of the token.",
        _TEXT,
        ("Mesh__ServiceAuth__Audience",),
    ),
    Variable(
        "token_minutes",
        "MESH_SERVICE_TOKEN_MINUTES",
        "Life of one token in minutes; it is renewed before its end.",
        _INT,
        ("Mesh__ServiceAuth__TokenLifetimeMinutes",),
    ),
    Variable(
        "identity",
        "MESH_SERVICE_IDENTITY",
        "Whom the token speaks for; empty = the service's name.",
        _TEXT,
        ("Mesh__Identity__ServiceName",),
    ),
    Variable("roles", "MESH_SERVICE_ROLES", "Roles in the token; `Service` is always among them.", _COMMAS),
)
