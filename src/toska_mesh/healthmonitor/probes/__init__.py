"""The monitor's shell towards the instances: HTTP, TCP and gRPC probes over real connections."""

from toska_mesh.healthmonitor.probes.prober import NetworkProber, ProbePolicy, Prober
from toska_mesh.healthmonitor.probes.resolve import Resolver

__all__ = ["NetworkProber", "ProbePolicy", "Prober", "Resolver"]
