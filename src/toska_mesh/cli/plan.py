"""What `toska up` runs, decided before anything is started: processes, their environment, order, ports and links.

Pure: from options and an environment to one value. Settings of every daemon are read here exactly as the daemon will
read them, so a mistake shows before the first process exists.
"""

import ipaddress
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toska_mesh.cli.daemons import (
    DISCOVERY,
    GATEWAY,
    HEALTHMONITOR,
    LOOPBACK,
    REGISTRY,
    SAMPLE,
    Daemon,
    endpoint_of,
    url_of,
    value_of,
)
from toska_mesh.cli.registry_address import Said, point_at_embedded_registry, said_address
from toska_mesh.cli.supervisor import ProcessSpec
from toska_mesh.errors import ConfigError
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.settings import DaemonSettings, load, mask_credentials

SAMPLE_COUNT = 2
_RATE_LIMIT = ("GATEWAY_RATE_LIMIT_ENABLED", "GATEWAY_RATE_LIMIT_PERMITS", "GATEWAY_RATE_LIMIT_WINDOW_SECONDS")
_STOP_SECONDS = 10.0
_DEFAULTS = {
    "MESH_DISCOVERY_ADDRESS": "localhost:8080",
    "CONSUL_ADDRESS": "http://localhost:8500",
    "GATEWAY_ADMIN_HOST": "localhost",
    "GATEWAY_ADMIN_PORT": "9901",
}
"""Where services and our own commands look when nobody tells them."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; empty = not said."""

    data_dir: Path
    consul: str = ""
    rabbitmq: str = ""
    with_samples: bool = True


@dataclass(frozen=True, slots=True)
class PortUse:
    """A port that some process is going to listen on, and the variable that moves it."""

    host: str
    port: int
    variable: str


@dataclass(frozen=True, slots=True)
class Plan:
    stages: tuple[tuple[ProcessSpec, ...], ...]
    """In order of starting: each waits until the one before is ready."""
    stop_order: tuple[tuple[str, ...], ...]
    ports: tuple[PortUse, ...]
    folders: tuple[Path, ...]
    ready_urls: Mapping[str, str]
    """By process; samples have none, they say `registered`."""
    samples: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    try_url: str
    """Answers once the mesh works from end to end; empty when nobody could tell from here."""
    try_line: str
    """The command to try; empty without samples."""
    exports: tuple[str, ...]
    """What services and commands have to be told, because it is not where they look by themselves."""
    consul: Said | None
    """The registry to use; None for the embedded one."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for stage in self.stages for spec in stage)


def make_plan(options: Options, environ: Mapping[str, str]) -> Plan:
    """Raises ConfigError that lists every wrong setting of every daemon, one per line."""
    said = said_address(environ, options.consul)
    consul = said.url if said is not None else ""
    base = dict(environ)
    base["TOSKA_LOG_FORMAT"] = "json"  # the view reads it
    if options.rabbitmq:
        base["RABBITMQ_URL"] = options.rabbitmq
    for variable in ("GATEWAY_HOST", "DISCOVERY_HOST", "HEALTHMONITOR_HOST"):
        # A developer's machine: nothing is open to the network unless somebody says so.
        _default(base, variable, LOOPBACK)
    if _is_loopback(base["GATEWAY_HOST"]) and not any(environ.get(variable) for variable in _RATE_LIMIT):
        # The only client is the one who tries things out: a loop of `curl` must not end in 429.
        base["GATEWAY_RATE_LIMIT_ENABLED"] = "false"
    for daemon in (DISCOVERY, HEALTHMONITOR, REGISTRY):
        _default(base, f"{daemon.name.upper()}_DATA_DIR", str(options.data_dir / daemon.name))
    loaded = _Loader(base)
    registry = None if consul else loaded(REGISTRY)
    if registry is None:
        base["CONSUL_ADDRESS"] = consul
    else:
        point_at_embedded_registry(base, registry)
    discovery, monitor = loaded(DISCOVERY), loaded(HEALTHMONITOR)
    _default(base, "DASHBOARD_DISCOVERY_URL", url_of(discovery, "DISCOVERY_HOST", "DISCOVERY_HTTP_PORT"))
    _default(base, "DASHBOARD_HEALTHMONITOR_URL", url_of(monitor, "HEALTHMONITOR_HOST", "HEALTHMONITOR_PORT"))
    gateway = loaded(GATEWAY)
    loaded.raise_problems()
    assert isinstance(gateway, GatewaySettings)  # noqa: S101  # for the type checker
    _default(base, "GATEWAY_SNAPSHOT_PATH", str(options.data_dir / GATEWAY.name / "routes.json"))

    samples = [f"hello-{number}" for number in range(1, SAMPLE_COUNT + 1)] if options.with_samples else []
    stages = (
        (_spec(REGISTRY, base),) if registry is not None else (),
        (_spec(DISCOVERY, base), _spec(HEALTHMONITOR, base), _spec(GATEWAY, base, gateway.drain_seconds + 5)),
        tuple(_sample(name, base, discovery) for name in samples),
    )
    ports = [
        _port(gateway, "GATEWAY_HOST", "GATEWAY_PORT"),
        _port(gateway, "GATEWAY_ADMIN_HOST", "GATEWAY_ADMIN_PORT"),
        _port(discovery, "DISCOVERY_HOST", "DISCOVERY_PORT"),
        _port(discovery, "DISCOVERY_HOST", "DISCOVERY_HTTP_PORT"),
        _port(monitor, "HEALTHMONITOR_HOST", "HEALTHMONITOR_PORT"),
    ]
    ready_urls = {
        DISCOVERY.name: url_of(discovery, "DISCOVERY_HOST", "DISCOVERY_HTTP_PORT") + "/health/ready",
        HEALTHMONITOR.name: url_of(monitor, "HEALTHMONITOR_HOST", "HEALTHMONITOR_PORT") + "/health/ready",
        GATEWAY.name: url_of(gateway, "GATEWAY_ADMIN_HOST", "GATEWAY_ADMIN_PORT") + "/health/ready",
    }
    if registry is not None:
        ports.append(_port(registry, "REGISTRY_HOST", "REGISTRY_PORT"))
        ready_urls[REGISTRY.name] = url_of(registry, "REGISTRY_HOST", "REGISTRY_PORT") + "/health/ready"
    _check_distinct(ports)
    public = url_of(gateway, "GATEWAY_HOST", "GATEWAY_PORT", "https" if gateway.tls_cert else "http")
    hello_path = f"{gateway.route_prefix}hello/hello"
    return Plan(
        stages=tuple(stage for stage in stages if stage),
        stop_order=(tuple(samples), (GATEWAY.name,), (DISCOVERY.name,), (HEALTHMONITOR.name,), (REGISTRY.name,)),
        ports=tuple(ports),
        folders=tuple(
            Path(folder)
            for folder in (
                options.data_dir / GATEWAY.name,
                base["DISCOVERY_DATA_DIR"],
                base["HEALTHMONITOR_DATA_DIR"],
                *(() if consul else (base["REGISTRY_DATA_DIR"],)),
            )
        ),
        ready_urls=ready_urls,
        samples=tuple(samples),
        links=_links(base, public, gateway, discovery, monitor, consul),
        try_url=public + hello_path if samples and not gateway.tls_client_ca else "",
        try_line=_curl(gateway, _for_people(public) + hello_path) if samples else "",
        exports=_exports(base, gateway, discovery, is_embedded=registry is not None),
        consul=said,
    )


class _Loader:
    """Loads one model after the other from a growing environment, and keeps the problems for the end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def __call__(self, daemon: Daemon) -> DaemonSettings:
        try:
            return load(daemon.settings, self._environ).settings
        except ConfigError as exc:
            self._problems += str(exc).splitlines()
            return load(daemon.settings, {}).settings

    def raise_problems(self) -> None:
        if self._problems:
            raise ConfigError("\n".join(dict.fromkeys(self._problems)))


def _default(environ: dict[str, str], variable: str, value: str) -> None:
    if not environ.get(variable):
        environ[variable] = value


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _spec(
    daemon: Daemon,
    environ: Mapping[str, str],
    stop_seconds: float = _STOP_SECONDS,
    name: str = "",
    more: Mapping[str, str] | None = None,
) -> ProcessSpec:
    # -P: a `grpc.py` in the folder where somebody types `toska up` must not be imported.
    command: Sequence[str] = ("-P", "-m", "toska_mesh.cli.child", daemon.module)
    return ProcessSpec(name or daemon.name, command, {**environ, **(more or {})}, stop_seconds)


def _sample(name: str, environ: Mapping[str, str], discovery: DaemonSettings) -> ProcessSpec:
    target = endpoint_of(discovery, "DISCOVERY_HOST", "DISCOVERY_PORT").authority
    more = {"HELLO_INSTANCE_ID": name, "HELLO_PORT": "0", "HELLO_DISCOVERY": target}
    return _spec(SAMPLE, environ, name=name, more=more)


def _port(settings: DaemonSettings, host: str, port: str) -> PortUse:
    number = int(str(value_of(settings, port)))
    if number == 0:
        raise ConfigError(f"{port}=0: the parts of the mesh must find each other, set {port} to a fixed port")
    return PortUse(str(value_of(settings, host)), number, port)


def _check_distinct(ports: Sequence[PortUse]) -> None:
    seen: dict[int, PortUse] = {}
    for use in ports:
        other = seen.setdefault(use.port, use)
        if other is not use:
            raise ConfigError(f"{other.variable} and {use.variable} are both {use.port}; set one to another port")


def _for_people(url: str) -> str:
    return url.replace(f"://{LOOPBACK}:", "://localhost:", 1)


def _curl(gateway: GatewaySettings, url: str) -> str:
    token = " -H 'Authorization: Bearer <token>'" if gateway.is_auth_on else ""
    insecure = " --insecure" if gateway.tls_cert else ""
    return f"curl{insecure}{token} {url}"


def _links(
    environ: Mapping[str, str],
    public: str,
    gateway: DaemonSettings,
    discovery: DaemonSettings,
    monitor: DaemonSettings,
    consul: str,
) -> tuple[tuple[str, str], ...]:
    admin = url_of(gateway, "GATEWAY_ADMIN_HOST", "GATEWAY_ADMIN_PORT")
    rest = url_of(discovery, "DISCOVERY_HOST", "DISCOVERY_HTTP_PORT")
    grpc = endpoint_of(discovery, "DISCOVERY_HOST", "DISCOVERY_PORT").authority
    status = url_of(monitor, "HEALTHMONITOR_HOST", "HEALTHMONITOR_PORT")
    broker = environ.get("RABBITMQ_URL", "")
    links = [
        ("gateway", public),
        ("routes", f"{admin}/routes"),
        ("instances", f"{admin}/instances"),
        ("metrics", f"{admin}/metrics"),
        ("discovery, gRPC", grpc.replace(LOOPBACK, "localhost")),
        ("discovery, REST", f"{rest}/api/ServiceDiscovery/services"),
        ("health monitor", f"{status}/api/status"),
        ("registry" if not consul else "Consul", mask_credentials(environ["CONSUL_ADDRESS"])),
        ("events", mask_credentials(broker) if broker else "logged only; --rabbitmq URL sends them"),
    ]
    return tuple((name, _for_people(url)) for name, url in links)


def _exports(
    environ: Mapping[str, str], gateway: DaemonSettings, discovery: DaemonSettings, is_embedded: bool
) -> tuple[str, ...]:
    found = {
        # For services (the SDK), for `toska wait`, and for `toska routes` and `toska instances`.
        "MESH_DISCOVERY_ADDRESS": endpoint_of(discovery, "DISCOVERY_HOST", "DISCOVERY_PORT").authority,
        "CONSUL_ADDRESS": mask_credentials(environ["CONSUL_ADDRESS"]),
        "GATEWAY_ADMIN_HOST": endpoint_of(gateway, "GATEWAY_ADMIN_HOST", "GATEWAY_ADMIN_PORT").host,
        "GATEWAY_ADMIN_PORT": str(value_of(gateway, "GATEWAY_ADMIN_PORT")),
    }
    local = {name: _as_default(value) for name, value in found.items()}
    moved = [f"export {name}={shlex.quote(value)}" for name, value in local.items() if value != _DEFAULTS[name]]
    if is_embedded and environ.get("REGISTRY_TOKEN"):
        moved.append("export CONSUL_HTTP_TOKEN=<what REGISTRY_TOKEN says>")
    return tuple(moved)


def _as_default(value: str) -> str:
    return re.sub(rf"(^|//){re.escape(LOOPBACK)}(?=$|:)", r"\1localhost", value)
