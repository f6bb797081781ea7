"""Health of an instance, with the numbers of the gRPC contract and the words of the events and dashboard."""

from enum import IntEnum


class HealthStatus(IntEnum):
    """Values equal `HealthStatus` of `proto/discovery.proto` and the integers of the REST and status APIs."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2
    DEGRADED = 3

    @property
    def label(self) -> str:
        """The word used in events and by the dashboard: `Unknown`, `Healthy`, `Unhealthy`, `Degraded`."""
        return self.name.capitalize()

    @classmethod
    def from_label(cls, label: str) -> "HealthStatus":
        """Parse a label in any case. Raises ValueError naming the accepted words."""
        try:
            return cls[label.upper()]
        except KeyError:
            words = ", ".join(status.label for status in cls)
            raise ValueError(f"{label!r} is no health status; use one of {words}") from None
