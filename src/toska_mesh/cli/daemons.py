"""The daemons there are: the one list that `toska`, the configuration reference and the compose test share."""

from dataclasses import dataclass

from toska_mesh.cli.sample import SampleSettings
from toska_mesh.discovery.settings import DiscoverySettings
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.healthmonitor.settings import HealthMonitorSettings
from toska_mesh.model import Endpoint
from toska_mesh.registryd.settings import RegistrySettings
from toska_mesh.settings import DaemonSettings, variables_of

LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class Daemon:
    name: str
    command: str
    """The console script."""
    module: str
    """Holds `main()`."""
    settings: type[DaemonSettings]
    description: str


GATEWAY = Daemon(
    "gateway", "toska-gateway", "toska_mesh.gateway.app", GatewaySettings, "Routes requests to healthy instances."
)
DISCOVERY = Daemon(
    "discovery",
    "toska-discovery",
    "toska_mesh.discovery.app",
    DiscoverySettings,
    "Takes registrations over gRPC and REST.",
)
HEALTHMONITOR = Daemon(
    "healthmonitor",
    "toska-healthmonitor",
    "toska_mesh.healthmonitor.app",
    HealthMonitorSettings,
    "Probes every instance and tells the gateways what it found.",
)
REGISTRY = Daemon(
    "registry",
    "toska-registry",
    "toska_mesh.registryd.app",
    RegistrySettings,
    "The embedded registry for one machine; speaks Consul's HTTP API.",
)
SAMPLE = Daemon(
    "sample",
    "python -m toska_mesh.cli.sample",
    "toska_mesh.cli.sample",
    SampleSettings,
    "The small service `hello` that `toska up` and the compose file run twice.",
)

DAEMONS = (GATEWAY, DISCOVERY, HEALTHMONITOR, REGISTRY)
"""What a mesh consists of."""


def value_of(settings: DaemonSettings, variable: str) -> object:
    """The value a variable gave. Raises KeyError when the model has no such variable."""
    for known in variables_of(type(settings)):
        if known.name == variable:
            return getattr(settings, known.field)
    raise KeyError(variable)


def endpoint_of(settings: DaemonSettings, host: str, port: str) -> Endpoint:
    """Where a client on this machine reaches what listens at these variables; port 0 says nowhere and becomes 1."""
    bound = str(value_of(settings, host))
    number = int(str(value_of(settings, port)))
    return Endpoint(LOOPBACK if bound in _EVERYWHERE else bound, number or 1)


def url_of(settings: DaemonSettings, host: str, port: str, scheme: str = "http") -> str:
    return f"{scheme}://{endpoint_of(settings, host, port).authority}"
