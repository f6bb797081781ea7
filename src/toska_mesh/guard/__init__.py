"""What keeps requests away from instances that fail or fall silent; the gateway and the SDK's client share it."""

from toska_mesh.guard.contained import ContainedTasks
from toska_mesh.guard.guard import (
    REPLAY_MAX_BYTES,
    Guard,
    Guarded,
    Prober,
    Waiting,
    has_alternative,
    plan_retry,
)
from toska_mesh.guard.probing import PROBE_SECONDS, DialError, Dials, HttpProber

__all__ = [
    "PROBE_SECONDS",
    "REPLAY_MAX_BYTES",
    "ContainedTasks",
    "DialError",
    "Dials",
    "Guard",
    "Guarded",
    "HttpProber",
    "Prober",
    "Waiting",
    "has_alternative",
    "plan_retry",
]
