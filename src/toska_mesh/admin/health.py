"""A daemon's own health: named checks that its parts set, and the answers made from them.

Live means "restart me if not"; ready means "send me traffic". Draining is live and not ready. The bodies carry both
the Go generation's `status` and the C# generation's `checks`, with `duration` in milliseconds: what the report took to
make, and each check of it. That is next to nothing, because a report asks nobody: it tells what the parts have said.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from toska_mesh.telemetry.healthbody import CheckEntry, health_body


class HealthState(StrEnum):
    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    UNHEALTHY = "Unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    state: HealthState
    description: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """HTTP status code and JSON body of one health path."""

    status: int
    body: Mapping[str, object]


class Health:
    """Owned by the daemon's `app.py`; parts set checks, the HTTP edges read reports. One event loop.

    A check named in `awaited` is unhealthy until somebody sets it: a daemon is not ready before its first table.
    `clock`: seconds, monotonic.
    """

    def __init__(self, awaited: Iterable[str] = (), clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._checks = {name: Check(HealthState.UNHEALTHY, "not known yet") for name in awaited}
        self._is_draining = False

    def set(
        self, check: str, state: HealthState, description: str = "", data: Mapping[str, object] | None = None
    ) -> None:
        self._checks[check] = Check(state, description, data or {})

    def start_draining(self) -> None:
        """Not ready from this moment on; there is no way back."""
        self._is_draining = True

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Draining, or any unhealthy check, means no new traffic; degraded ones are served."""
        return not self._is_draining and all(
            check.state is not HealthState.UNHEALTHY for check in self._checks.values()
        )

    def live(self) -> HealthReport:
        return HealthReport(200, self._body(HealthState.HEALTHY, {}, self._clock()))

    def ready(self) -> HealthReport:
        began = self._clock()
        checks = dict(self._checks)
        if self._is_draining:
            checks["drain"] = Check(HealthState.UNHEALTHY, "draining: finishing what is in flight, taking nothing new")
        return HealthReport(200 if self.is_ready else 503, self._body(_worst(checks.values()), checks, began))

    def overall(self) -> HealthReport:
        """The plain `/health` answer: the same checks as `ready`."""
        return self.ready()

    def _body(self, state: HealthState, checks: Mapping[str, Check], began: float) -> Mapping[str, object]:
        told = [self._tell(name, check) for name, check in checks.items()]
        return health_body(state.value, self._clock() - began, told)

    def _tell(self, name: str, check: Check) -> CheckEntry:
        began = self._clock()
        return CheckEntry(name, check.state.value, check.description, "", check.data, self._clock() - began)


def _worst(checks: Iterable[Check]) -> HealthState:
    states = {check.state for check in checks}
    for state in (HealthState.UNHEALTHY, HealthState.DEGRADED):
        if state in states:
            return state
    return HealthState.HEALTHY
