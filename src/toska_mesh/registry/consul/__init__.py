"""The registry seam over Consul's HTTP API, as a real Consul and `toska-registry` speak it."""

from toska_mesh.registry.consul.client import ConsulClient
from toska_mesh.registry.consul.fence import ConsulGatewayBarrier
from toska_mesh.registry.consul.follower import ConsulFollower, FollowerOptions
from toska_mesh.registry.consul.lock import ConsulLeaderLock
from toska_mesh.registry.consul.options import ConsulOptions
from toska_mesh.registry.consul.presence import ConsulGatewayPresence
from toska_mesh.registry.consul.registry import ConsulRegistry
from toska_mesh.registry.consul.snapshot_file import SnapshotFile
from toska_mesh.registry.consul.verdicts import ConsulVerdictBoard, ConsulVerdictFollower

__all__ = [
    "ConsulClient",
    "ConsulFollower",
    "ConsulGatewayBarrier",
    "ConsulGatewayPresence",
    "ConsulLeaderLock",
    "ConsulOptions",
    "ConsulRegistry",
    "ConsulVerdictBoard",
    "ConsulVerdictFollower",
    "FollowerOptions",
    "SnapshotFile",
]
