"""What a service says about itself and about the mesh it joins: two values, valid once they exist.

Where the values come from is none of this module's business: code writes them down, `environment` reads them. Every
refusal is a ConfigError that names the option, its value and what would be right, in the words that discovery would
use too (`model.rules`), but before anything is started.
"""

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from toska_mesh.errors import ConfigError
from toska_mesh.model import InstanceId, ServiceName, rules
from toska_mesh.model import metadata as keys
from toska_mesh.router import MAX_WEIGHT
from toska_mesh.router.strategies import STRATEGIES, parse_strategy
from toska_mesh.sdk.enrolment import Member

Provider = Literal["discovery", "consul"]

MAX_WAIT_SECONDS: Final = 86_400.0
SERVICE_ROLE: Final = "Service"
TOKEN_PARTY: Final = "ToskaMesh.Services"  # noqa: S105  # a name, no secret
"""Issuer and audience of service tokens across the mesh family."""

_MOST_SHOWN_CHARS: Final = 100

_OWN_OPTION: Final = {
    keys.SCHEME: "scheme",
    keys.HEALTH_CHECK_ENDPOINT: "health_endpoint",
    keys.LB_STRATEGY: "strategy",
    keys.WEIGHT: "weight",
}
"""Metadata that the options write: said twice, one of the two would be lost."""

_KINDS: Final[Mapping[Any, tuple[tuple[type, ...], str]]] = MappingProxyType(
    {
        str: ((str,), "a text"),
        Provider: ((str,), "a text"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        bool: ((bool,), "True or False"),
    }
)
"""What an option of each type takes, and the words for it; the others are looked at one by one."""

_EMPTY: Mapping[str, str] = MappingProxyType({})


class InvalidOptionError(ConfigError):
    """One option is wrong. Whoever read it from somewhere can say so with `option` and `problem`."""

    def __init__(self, owner: str, option: str, problem: str) -> None:
        super().__init__(f"{owner}.{option} {problem}")
        self.option = option
        self.problem = problem


class UnknownOptionError(ConfigError, TypeError):
    """There is no such option, or it was said twice: a mistake in the code, which `serve` tells like any other."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How to reach the mesh: through discovery's gRPC, or straight through Consul. Empty texts mean "not used"."""

    provider: Provider = "discovery"
    discovery_address: str = "localhost:8080"
    """`host:port`, or `http://host:port`, or `https://host:port`, which turns TLS on."""
    use_tls: bool = False
    ca_file: str = ""
    """PEM file with the CAs that discovery's certificate is checked against; empty = the system's."""
    client_cert: str = ""
    """PEM file with the certificate that discovery may ask for (mTLS)."""
    client_key: str = ""
    """PEM file with its key; empty = in the same file."""
    consul_address: str = field(default="http://localhost:8500", repr=False)
    """URL of a Consul agent; may hold `user:password@`."""
    consul_token: str = field(default="", repr=False)
    consul_token_file: str = ""
    consul_ca_file: str = ""
    consul_client_cert: str = ""
    consul_client_key: str = ""
    auth_secret: str = field(default="", repr=False)
    """HS256 secret of the service token; empty = none is sent."""
    auth_issuer: str = TOKEN_PARTY
    auth_audience: str = TOKEN_PARTY
    token_minutes: int = 10
    identity: str = ""
    """Whom the token speaks for; empty = the service's name."""
    roles: tuple[str, ...] = (SERVICE_ROLE,)

    def __post_init__(self) -> None:
        if wrong := _problem_with_types(self):
            raise self._invalid(*wrong)
        roles: object = self.roles
        if not isinstance(roles, (list, tuple, frozenset, set)) or not all(isinstance(role, str) for role in roles):
            raise self._invalid("roles", f"{_shown(roles)} should be a tuple of texts, such as ('Service',)")
        # Values that came as lists or in .NET's spelling are kept in one form.
        object.__setattr__(self, "roles", tuple(self.roles))
        if self.provider not in ("discovery", "consul"):
            raise self._invalid("provider", f"{rules.shown(str(self.provider))} is not `discovery` or `consul`")
        if problem := _problem_with_target(self.discovery_address):
            raise self._invalid("discovery_address", problem)
        if self.discovery_address.lower().startswith("https://"):
            object.__setattr__(self, "use_tls", True)
        elif self.use_tls and self.discovery_address.lower().startswith("http://"):
            raise self._invalid(
                "discovery_address", "begins with http:// but use_tls is set; write https:// or no scheme"
            )
        if self.client_key and not self.client_cert:
            raise self._invalid("client_key", "is set without client_cert; set both")
        if (self.ca_file or self.client_cert) and not self.use_tls and self.provider == "discovery":
            option = "ca_file" if self.ca_file else "client_cert"
            raise self._invalid(option, "is set but the connection is plaintext; set use_tls or write https://")
        if problem := _problem_with_url(self.consul_address):
            raise self._invalid("consul_address", problem)
        if bool(self.consul_client_cert) != bool(self.consul_client_key):
            raise self._invalid("consul_client_cert", "and consul_client_key belong together: set both or none")
        if self.auth_secret and (problem := rules.problem_with_secret(self.auth_secret)):
            raise self._invalid(
                "auth_secret",
                f"{problem}; it needs at least {rules.MIN_SECRET_BYTES} bytes, for example from"
                " `openssl rand -base64 48`",
            )
        if self.token_minutes < 1:
            raise self._invalid("token_minutes", f"{self.token_minutes} is below 1")

    @property
    def target(self) -> str:
        """What gRPC dials: `host:port` without a scheme."""
        return self.discovery_address.rpartition("://")[2].rstrip("/")

    def _invalid(self, option: str, problem: str) -> InvalidOptionError:
        return InvalidOptionError("ConnectOptions", option, problem)


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """One instance of a service, as it is served and registered."""

    name: str = "mesh-service"
    id: str = ""
    """Unique among all instances; empty = made from the name by `resolved`."""
    host: str = "0.0.0.0"
    """Address that the port is bound to."""
    port: int = 8080
    """0 = any free one; the one that was bound is registered."""
    advertised_address: str = ""
    """Address to register; empty = `host`, and where that says "all of them", the one that discovery sees."""
    health_endpoint: str = "/health"
    health_interval_seconds: float = 30.0
    """Registered in whole seconds; a beat keeps the instance for 5 s longer, and one comes in a third of that."""
    health_timeout_seconds: float = 5.0
    unhealthy_threshold: int = 3
    register: bool = True
    heartbeat: bool = True
    wait_for_registration: bool = False
    """Whether starting waits until the mesh knows the instance."""
    scheme: str = "http"
    strategy: str = "RoundRobin"
    weight: int = 1
    version: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    drain_seconds: float = 30.0
    """Longest time for all of leaving, from the signal to the closed port."""
    notice_seconds: float = 31.0
    """Where a control plane cannot say that its gateways have heard of the leaving: how long to wait instead.

    The gateways of the family ask every 30 s; `drain_seconds` is the upper bound of it all."""
    connect: ConnectOptions = field(default_factory=ConnectOptions)

    def __post_init__(self) -> None:
        if wrong := _problem_with_types(self):
            raise self._invalid(*wrong)
        if not isinstance(self.connect, ConnectOptions):
            given = type(self.connect).__name__
            raise self._invalid("connect", f"is of type {given}; write ConnectOptions(discovery_address=…)")
        if problem := rules.problem_with_service_name(self.name):
            raise self._invalid("name", problem)
        if self.id and (problem := rules.problem_with_instance_id(self.id)):
            raise self._invalid("id", problem)
        if not 0 <= self.port < 65536:
            raise self._invalid("port", f"{self.port} is not between 0 and 65535")
        if problem := rules.problem_with_address(self.advertised_address):
            raise self._invalid("advertised_address", f"{rules.shown(self.advertised_address)} {problem}")
        if not self.health_endpoint:
            raise self._invalid("health_endpoint", "is empty; write a path that begins with `/`, such as /health")
        if problem := rules.problem_with_path(self.health_endpoint):
            raise self._invalid("health_endpoint", problem)
        for option in ("health_interval_seconds", "health_timeout_seconds"):
            seconds = getattr(self, option)
            # Less than a second would be registered as 0, which means "not said" to every control plane.
            if not 1 <= seconds <= rules.MAX_INTERVAL_SECONDS:
                raise self._invalid(option, f"{seconds} is not between 1 and {rules.MAX_INTERVAL_SECONDS} (a day)")
        if self.unhealthy_threshold < 1:
            raise self._invalid("unhealthy_threshold", f"{self.unhealthy_threshold} is below 1")
        if problem := rules.problem_with_scheme(self.scheme):
            raise self._invalid("scheme", problem)
        if parse_strategy(self.strategy) is None:
            names = ", ".join(strategy.name for strategy in STRATEGIES.values())
            raise self._invalid("strategy", f"{rules.shown(self.strategy)} is not one of {names}")
        if not 1 <= self.weight <= MAX_WEIGHT:
            raise self._invalid("weight", f"{self.weight} is not between 1 and {MAX_WEIGHT}")
        for option in ("drain_seconds", "notice_seconds"):
            seconds = getattr(self, option)
            if not 0 <= seconds <= MAX_WAIT_SECONDS:
                raise self._invalid(option, f"{seconds} is not between 0 and {MAX_WAIT_SECONDS:.0f} (a day)")
        self._check_metadata()
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    def resolved(self, new_id: Callable[[], uuid.UUID] = uuid.uuid4) -> "ServiceOptions":
        """The same with the id made that was left open: `<name>-<32 hex>`. Asked again it changes nothing."""
        return self if self.id else replace(self, id=f"{self.name}-{new_id().hex}")

    def member(self, port: int) -> Member:
        """What is registered, once the real port is known. The id has been made (`resolved`)."""
        if not self.id:
            raise ValueError("an instance without an id cannot be registered; use resolved() first")
        return Member(
            service=ServiceName(self.name),
            id=InstanceId(self.id),
            address=self.advertised_address or self.host,
            port=port,
            metadata=MappingProxyType(self._all_metadata()),
            health_endpoint=self.health_endpoint,
            interval_seconds=math.ceil(self.health_interval_seconds),
            timeout_seconds=math.ceil(self.health_timeout_seconds),
            unhealthy_threshold=self.unhealthy_threshold,
        )

    def _all_metadata(self) -> dict[str, str]:
        strategy = parse_strategy(self.strategy)
        written = {
            keys.SCHEME: self.scheme.lower(),
            keys.HEALTH_CHECK_ENDPOINT: self.health_endpoint,
            # The other control planes know one spelling only.
            keys.LB_STRATEGY: strategy.name if strategy else self.strategy,
            keys.WEIGHT: str(self.weight),
        }
        if self.version:
            written[keys.VERSION] = self.version
        return {**self.metadata, **written}

    def _check_metadata(self) -> None:
        right = "keys and values are texts, as in {'zone': 'a'}"
        if not isinstance(self.metadata, Mapping):
            raise self._invalid("metadata", f"{_shown(self.metadata)} is no mapping; {right}")
        for key, value in self.metadata.items():
            if not isinstance(key, str):
                raise self._invalid("metadata", f"has the key {_shown(key)}; {right}")
            if not isinstance(value, str):
                raise self._invalid("metadata", f"has {_shown(value)} for {key!r}; {right}")
            if key in _OWN_OPTION:
                raise self._invalid("metadata", f"holds {key!r}, which is written from the option {_OWN_OPTION[key]}")
            if key in keys.BOOKKEEPING:
                raise self._invalid("metadata", f"holds {key!r}, which is discovery's own")
        if self.version and keys.VERSION in self.metadata:
            raise self._invalid("metadata", f"holds {keys.VERSION!r} and the option version is set too; keep one")
        if problem := rules.problem_with_metadata(self._all_metadata()):
            raise self._invalid("metadata", f"is not possible: {problem}")

    def _invalid(self, option: str, problem: str) -> InvalidOptionError:
        return InvalidOptionError("ServiceOptions", option, problem)


def _problem_with_types(options: "ConnectOptions | ServiceOptions") -> tuple[str, str] | None:
    """Values in code may be of any type whatever the annotations say: the first option that is wrong, and how."""
    for option in fields(options):
        kinds, expected = _KINDS.get(option.type, ((object,), ""))
        value = getattr(options, option.name)
        # True is an int to Python, but nobody's port.
        if not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & set(kinds)):
            shown = f"{_shown(value)} is wrong" if option.repr else f"is of type {type(value).__name__}"
            return option.name, f"{shown}; it should be {expected}"
    return None


def _shown(value: object) -> str:
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= _MOST_SHOWN_CHARS else f"{text[:_MOST_SHOWN_CHARS]}…"


def _problem_with_target(address: str) -> str | None:
    right = "write host:port, http://host:port or https://host:port"
    scheme, separator, _ = address.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        return f"{rules.shown(address)} begins with {scheme}://; {right}"
    try:
        parts = urlsplit(address if separator else f"//{address}")
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if not parts.hostname or not port or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        return f"{rules.shown(address)} is no address of a gRPC server; {right}"
    return None


def _problem_with_url(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    # Never shown: it may hold a password.
    return None if is_url else "should be an http:// or https:// URL, such as http://localhost:8500"
