"""What one route does with its requests: the operator's settings and what the instances' metadata says. Pure.

Registration may be open to everybody in the network, so metadata may only tighten: lower a limit, demand a token, be
there for fewer hosts. What would loosen counts only where the operator says so (`GATEWAY_METADATA_MAY_RELAX`). Of
several instances the newest registration with a value that counts decides. Whatever does not count is kept with the
reason, for the admin API: a value that cannot be read, one that loosens, one that a newer registration overrules.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol

from toska_mesh.guard.patience import Ignored, MetadataReading, shown, whole_number
from toska_mesh.model import Instance
from toska_mesh.model import metadata as keys
from toska_mesh.resilience import Decision, RetryPolicy
from toska_mesh.router.eligibility import registration_order

REQUIRED = "required"
OFF = "off"
STRIP = "strip"
KEEP = "keep"

MAX_WINDOW_SECONDS: Final = 3600.0
WELL_KNOWN: Final = "/.well-known/"
"""Who answers here speaks for the whole site (RFC 8615), up to getting certificates in its name."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]")
_SEGMENT = r"[A-Za-z0-9_~!$&'()*+;=:@-][A-Za-z0-9._~!$&'()*+;=:@-]*"
# RFC 3986 section 3.3 without percent-encoding, which is compared byte for byte, and without dot segments.
_PATH = re.compile(rf"(?:/\.well-known)?(?:/{_SEGMENT})*/?")
_RATE = re.compile(r"([0-9]{1,9})/([0-9]{0,7})(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Limiter(Protocol):
    """A rate limit: of this process alone, or shared between workers."""

    def admit(self, client: str, now: float) -> Decision: ...


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests per window and client."""

    permits: int
    window_seconds: float

    def __str__(self) -> str:
        seconds = self.window_seconds
        return f"{self.permits}/{seconds:g}s" if seconds.is_integer() else f"{self.permits}/{seconds * 1000:g}ms"


@dataclass(frozen=True, slots=True)
class Hosts:
    """Names that a service answers to: exactly, or anything below a name (`*.example.com`)."""

    patterns: tuple[str, ...]
    _exact: frozenset[bytes] = field(init=False)
    _suffixes: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        exact = (pattern.encode() for pattern in self.patterns if not pattern.startswith("*"))
        object.__setattr__(self, "_exact", frozenset(exact))
        suffixes = (pattern[1:].encode() for pattern in self.patterns if pattern.startswith("*"))
        object.__setattr__(self, "_suffixes", tuple(suffixes))

    def match(self, name: bytes) -> bool:
        """`name` as `host_name` gives it."""
        return name in self._exact or name.endswith(self._suffixes)


def host_name(host: bytes) -> bytes:
    """The name in a Host field (RFC 9110 section 7.2): without port and final dot, in lower case."""
    name = host.partition(b"]")[0] + b"]" if host.startswith(b"[") else host.partition(b":")[0]
    return name.lower().removesuffix(b".")


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """What holds for the requests to one service. Those without metadata of their own share one object."""

    response_timeout: float
    """Longest wait for an answer's head in one try, in seconds."""
    total_timeout: float
    """The same for all tries together."""
    retry: RetryPolicy
    max_request_bytes: int
    """0: no limit."""
    needs_token: bool
    is_public: bool = False
    """No token is asked for although the operator has keys."""
    is_closed: bool = False
    """A token is demanded and there is no key to check it with: nobody may pass."""
    rate_limit: RateLimit | None = None
    limiter: Limiter | None = None
    keeps_prefix: bool = False
    hosts: Hosts | None = None
    paths: tuple[str, ...] = ()
    """Where else the service is, beside its own route; without a final slash, so the root is empty."""
    paths_since: tuple[Any, ...] = ()
    """Sorts services by the registration that said where else they are."""
    origins: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """By metadata key: the instance whose value holds. The rest is the operator's."""
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()
    is_special: bool = False
    """Whether there is more to look at than timeouts, retries and the operator's limit of a body."""

    @property
    def largest_request_bytes(self) -> float:
        return self.max_request_bytes or inf


@dataclass(frozen=True, slots=True)
class Operator:
    """What the operator set, and whether metadata may go beyond it."""

    default: RoutePolicy
    """For services whose metadata says nothing."""
    may_relax: bool = False
    reserved: tuple[str, ...] = ()
    """Paths, each ended by a slash, that nobody can get by `toska-path`, with all that is below them."""

    @property
    def has_keys(self) -> bool:
        return self.default.needs_token

    @property
    def closed_paths(self) -> tuple[str, ...]:
        """Every path that metadata cannot give to a service."""
        return self.reserved if self.may_relax else (*self.reserved, WELL_KNOWN)


def combine(instances: Iterable[Instance], operator: Operator) -> RoutePolicy:
    """The policy of a service with these instances, in any order.

    Never raises, whatever the metadata holds. Gives `operator.default` itself when it holds nothing.
    """
    combination = _Combination(instances, operator)
    return combination.result() if combination.carriers else operator.default


class _Combination(MetadataReading):
    """One run of `combine`."""

    def __init__(self, instances: Iterable[Instance], operator: Operator) -> None:
        super().__init__(instances, operator.may_relax)
        self._operator = operator

    def result(self) -> RoutePolicy:
        default, may_relax = self._operator.default, self._operator.may_relax
        self.name_unknown_keys()
        response, total = self.timeouts(default.response_timeout, default.total_timeout)
        retries = self.retries(default.retry.count)
        body = self.number(keys.MAX_REQUEST_BYTES, _parse_bytes, default.max_request_bytes, inf_at_zero=True)
        limit = self.choose(keys.RATE_LIMIT, _parse_rate, self.always)
        auth = self._auth()
        prefix = self.choose(keys.PREFIX, _parse_prefix, self.always)
        hosts = self.choose(keys.HOST, self._parse_hosts, self.always)
        paths = self.choose(keys.PATH, self._parse_paths, self.always)
        needs_token = auth == REQUIRED or (default.needs_token and not (may_relax and auth == OFF))
        is_closed = needs_token and not self._operator.has_keys
        if is_closed:
            self.warn(f"{keys.AUTH}={REQUIRED} and the gateway has no key (JWT_*): every request is refused with 503")
        policy = replace(
            default,
            response_timeout=response,
            total_timeout=total,
            retry=replace(default.retry, count=retries),
            max_request_bytes=body,
            needs_token=needs_token,
            is_public=default.needs_token and not needs_token,
            is_closed=is_closed,
            rate_limit=limit.value if limit else None,
            keeps_prefix=prefix is not None and prefix.value == KEEP,
            hosts=Hosts(hosts.value) if hosts else None,
            paths=paths.value if paths else (),
            paths_since=registration_order(paths.instance) if paths else (),
        )
        lowers_body = body != default.max_request_bytes
        is_special = bool(is_closed or policy.rate_limit or policy.keeps_prefix or policy.hosts or lowers_body)
        return replace(
            policy,
            is_special=is_special,
            origins=MappingProxyType(self.origins),
            ignored=tuple(self.ignored.values()),
            warnings=tuple(self.warnings),
        )

    # -- one key after the other

    def _auth(self) -> str:
        """What the metadata says about tokens; empty when it says nothing that counts."""

        def why_not(value: str) -> tuple[str, str]:
            if value == REQUIRED or self._operator.may_relax:
                return "", ""
            demanded = REQUIRED if self._operator.has_keys else f"{REQUIRED} by another instance"
            return demanded, "metadata can demand a token, it cannot do away with one"

        if not self._operator.has_keys and not self._operator.may_relax:
            said = {text.strip().lower() for instance in self.carriers if (text := instance.metadata.get(keys.AUTH))}
            if said <= {OFF}:
                return ""  # as it is anyway; only against a rival's demand it would loosen something
        chosen = self.choose(keys.AUTH, _parse_auth, why_not)
        return chosen.value if chosen else ""

    def _parse_hosts(self, text: str) -> tuple[str, ...]:
        patterns = []
        for item in _items(text):
            name = item.lower().removesuffix(".")
            if len(name) > 255 or not _HOST.fullmatch(name):
                self.warn(
                    f"{keys.HOST} of {shown(self.reading.id)} names {shown(item)},"
                    " which is no host name and no *.name; it is left out"
                )
            else:
                patterns.append(name)
        if not patterns:
            raise ValueError("names no host")
        return tuple(dict.fromkeys(patterns))

    def _parse_paths(self, text: str) -> tuple[str, ...]:
        paths = []
        for item in _items(text):
            if not item.startswith("/") or not _PATH.fullmatch(item):
                self.warn(
                    f"{keys.PATH} of {shown(self.reading.id)} names {shown(item)},"
                    " which is no plain path such as /shop (nothing percent-encoded, no empty segment, none that"
                    " begins with a dot); it is left out"
                )
                continue
            path = item.removesuffix("/")
            closed = next((one for one in self._operator.closed_paths if f"{path}/".startswith(one)), None)
            if closed is None:
                paths.append(path)
                continue
            whose = "speaks for the whole site" if closed == WELL_KNOWN else "is the gateway's own"
            self.ignore(keys.PATH, self.reading, "", f"{closed} and what is below {whose}")
        if not paths:
            raise ValueError("names no path that a service can have")
        return tuple(dict.fromkeys(paths))


def _items(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]


def _parse_bytes(text: str) -> int:
    return whole_number(text)


def _parse_rate(text: str) -> RateLimit:
    match = _RATE.fullmatch(text.lower())
    if match is None:
        raise ValueError("is no rate such as 50/10s (requests, slash, window in ms, s, m or h)")
    permits = int(match[1])
    window = int(match[2] or 1) * _UNIT_SECONDS[match[3]]
    if not permits or not 0 < window <= MAX_WINDOW_SECONDS:
        raise ValueError("is no rate of 1 request or more in a window of up to an hour")
    return RateLimit(permits, window)


def _parse_auth(text: str) -> str:
    if text.lower() not in (REQUIRED, OFF):
        raise ValueError(f"is neither `{REQUIRED}` nor `{OFF}`")
    return text.lower()


def _parse_prefix(text: str) -> str:
    if text.lower() not in (STRIP, KEEP):
        raise ValueError(f"is neither `{STRIP}` nor `{KEEP}`")
    return text.lower()


def describe(policy: RoutePolicy) -> dict[str, Any]:
    """What holds, each value with its origin, as plain data for an admin API."""
    origins = policy.origins
    timeout = origins.get(keys.TIMEOUT_MS)
    values: dict[str, tuple[object, str | None]] = {
        "timeoutMs": (_ms(policy.total_timeout), timeout),
        "tryTimeoutMs": (_ms(policy.response_timeout), origins.get(keys.TRY_TIMEOUT_MS)),
        "retries": (policy.retry.count, origins.get(keys.RETRIES)),
        "maxRequestBytes": (policy.max_request_bytes, origins.get(keys.MAX_REQUEST_BYTES)),
        "rateLimit": (str(policy.rate_limit) if policy.rate_limit else None, origins.get(keys.RATE_LIMIT)),
        "auth": (REQUIRED if policy.needs_token else OFF, origins.get(keys.AUTH)),
        "prefix": (KEEP if policy.keeps_prefix else STRIP, origins.get(keys.PREFIX)),
        "hosts": (list(policy.hosts.patterns) if policy.hosts else [], origins.get(keys.HOST)),
        "paths": ([path or "/" for path in policy.paths], origins.get(keys.PATH)),
    }
    return {
        name: {"value": value, "origin": "operator" if instance is None else "metadata", "instance": instance}
        for name, (value, instance) in values.items()
    }


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
