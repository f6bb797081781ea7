"""From the outcomes of probes to a verdict. Pure.

Rise and fall thresholds decide, so that one lost probe flips nothing (HAProxy's `rise` and `fall`). An instance that
was never judged is Unknown; Unknown is no verdict and never reaches the gateways.
"""

from dataclasses import dataclass
from enum import StrEnum

from toska_mesh.model import HealthStatus


class Outcome(StrEnum):
    """How one probe ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    INCONCLUSIVE = "inconclusive"
    """The monitor's own trouble (no descriptor left, no route, resolver down): says nothing about the instance."""

    @property
    def is_failure(self) -> bool:
        return self is Outcome.FAILURE or self is Outcome.TIMEOUT


@dataclass(frozen=True, slots=True)
class ProbeResult:
    outcome: Outcome
    message: str
    """For people; short, printable, one line."""
    is_connected: bool = False
    """Whether the address took the connection: if not, another address of the same name may."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Consecutive failures until Unhealthy (`fall`), consecutive successes until Healthy again (`rise`)."""

    fall: int = 3
    rise: int = 2

    def __post_init__(self) -> None:
        if self.fall < 1 or self.rise < 1:
            raise ValueError(f"thresholds must be at least 1, got fall {self.fall} and rise {self.rise}")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of one instance now. Immutable: every outcome gives the next one."""

    status: HealthStatus = HealthStatus.UNKNOWN
    failures: int = 0  # in a row
    successes: int = 0  # in a row

    def after(self, outcome: Outcome, thresholds: Thresholds) -> "Judgement":
        """The judgement once this outcome is known. The counts stop at their threshold: nobody needs more."""
        if outcome is Outcome.INCONCLUSIVE:
            return self
        if outcome is Outcome.SUCCESS:
            successes = min(self.successes + 1, thresholds.rise)
            # The first answer of all settles it: nothing speaks against this instance yet.
            is_up = self.status is not HealthStatus.UNHEALTHY or successes >= thresholds.rise
            return Judgement(HealthStatus.HEALTHY if is_up else self.status, 0, successes)
        failures = min(self.failures + 1, thresholds.fall)
        is_down = failures >= thresholds.fall
        return Judgement(HealthStatus.UNHEALTHY if is_down else self.status, failures, 0)


FRESH = Judgement()
