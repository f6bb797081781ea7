"""`RoutingPolicy`: what the router is told once, instead of arguments through every layer."""

from dataclasses import dataclass
from typing import Final

from toska_mesh.model.metadata import HTTP_SCHEMES

MAX_WEIGHT: Final = 1000
"""Heavier weights are cut to this. A ratio above 1:1000 is a mistake, and no registration may cost us memory."""


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Which services are routed and how cautiously. Raises ValueError for values without a meaning."""

    expose_all: bool = False
    """True routes every service of the registry; False only instances that carry a mesh metadata key."""
    excluded: frozenset[str] = frozenset({"consul"})
    """Services that are never routed, in lower case."""
    slow_start_seconds: float = 10.0
    """How long an instance that joins a running service ramps up; 0 turns slow start off."""
    panic_threshold: float = 0.5
    """Verdicts against more than this part of a service's healthy instances are not believed; 1 always believes."""
    panic_min_instances: int = 3
    """Below this number of probed instances verdicts are always believed: of one or two, all may well be dead."""
    schemes: tuple[str, ...] = HTTP_SCHEMES
    """What the requests of this table speak: instances with another `scheme` get none. Those without one speak http.
    Empty: whatever an instance speaks will do."""
    port_key: str = ""
    """Metadata key of a second port that speaks one of `schemes` whatever the instance's own scheme is (`grpc_port`).
    Whoever sends the requests has to go to that port."""

    def __post_init__(self) -> None:
        if self.slow_start_seconds < 0:
            raise ValueError(f"slow_start_seconds {self.slow_start_seconds} is negative")
        if not 0 < self.panic_threshold <= 1:
            raise ValueError(f"panic_threshold {self.panic_threshold} is not above 0 and up to 1")
        if any(name != name.lower() for name in self.excluded):
            raise ValueError("excluded service names are compared in lower case")
        if any(scheme != scheme.lower() for scheme in self.schemes):
            raise ValueError("schemes are compared in lower case")
