"""The daemons there are: the one list that `toska`, the configuration reference and the compose test share."""

from dataclasses import dataclass

from toska_mesh.cli.sample import SampleSettings
from toska_mesh.discovery.settings import DiscoverySettings
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.healthmonitor.settings import HealthMonitorSettings
from toska_mesh.registryd.settings import RegistrySettings
from toska_mesh.settings import DaemonSettings, variables_of


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
