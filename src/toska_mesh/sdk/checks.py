"""The health of a service: checks that the app adds, run when somebody asks.

Who asks is a probe, the mesh's beat, or a person; a storm of probes must not become a storm on the database behind a
check. So results are kept for a moment, callers share a run, and each check has its own timeout. The worst check
decides; a service without checks is healthy as long as it can say so.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from toska_mesh.aio.threads import in_daemon_thread
from toska_mesh.errors import ConfigError
from toska_mesh.model import HealthStatus
from toska_mesh.telemetry.healthbody import CheckEntry, health_body

READY: Final = "ready"
"""Tag of checks that decide about `/health/ready`."""
LIVE: Final = "live"
"""Tag of checks that decide about `/health/live`: a failing one says "restart me"."""

TIMEOUT_SECONDS = 5.0
KEEP_SECONDS = 1.0
"""How long a result answers further questions."""
_SEVERITY = (HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY)
_MOST_OUTPUT_CHARS = 400


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check may return when a word is not enough."""

    status: HealthStatus
    description: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


Verdict = bool | str | HealthStatus | CheckResult | None
"""True and None: healthy. False: unhealthy. Text begins with the status: `Degraded: the replica lags 12 s`."""

HealthCheck = Callable[[], Verdict | Awaitable[Verdict]]
"""Raising means unhealthy. A plain function runs in a thread, a coroutine function on the loop."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The worst status of the checks that were asked, and what each said."""

    status: HealthStatus
    seconds: float
    checks: tuple[CheckEntry, ...] = ()

    def body(self) -> dict[str, object]:
        return health_body(self.status.label, self.seconds, self.checks)

    @property
    def output(self) -> str:
        """One line for the registry: which checks are not well, and why."""
        told = [
            f"{check.name}: {check.exception or check.description or check.status}"
            for check in self.checks
            if check.status != HealthStatus.HEALTHY.label
        ]
        return "; ".join(told)[:_MOST_OUTPUT_CHARS]


class Checks:
    """Owned by the service. One event loop."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._checks: dict[str, _Check] = {}

    def add(
        self,
        name: str,
        check: HealthCheck,
        *,
        tags: Iterable[str] = (READY,),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Raises ConfigError for a name that is taken, for what cannot be called and for a timeout that is none."""
        if not isinstance(cast(object, name), str) or not name or name in self._checks:
            raise ConfigError(f"health check {name!r}: give each check a name of its own")
        if not callable(check):
            raise ConfigError(f"health check {name!r}: {check!r} cannot be called")
        if timeout_seconds <= 0:
            raise ConfigError(f"health check {name!r}: timeout_seconds={timeout_seconds:g} must be above 0")
        self._checks[name] = _Check(name, check, frozenset(tags), timeout_seconds)

    def add_all(self, checks: Mapping[str, HealthCheck] | None) -> None:
        """Checks by name. Raises ConfigError as `add` does."""
        if checks is not None and not isinstance(cast(object, checks), Mapping):
            raise ConfigError(f"checks={checks!r} should be functions by name, as in checks={{'database': database}}")
        for name, check in (checks or {}).items():
            self.add(name, check)

    async def report(self, tag: str = "") -> HealthReport:
        """Ask the checks with that tag, or all of them, at the same time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = [check for check in self._checks.values() if not tag or tag in check.tags]
        stale = [check for check in asked if began >= check.fresh_until]
        if stale:
            async with asyncio.TaskGroup() as tasks:
                for check in stale:
                    tasks.create_task(check.refresh(self._keep_seconds), name=f"health check {check.name}")
        entries = tuple(check.entry for check in asked)
        return HealthReport(worst(entry.status for entry in entries), loop.time() - began, entries)

    async def reported(self) -> tuple[HealthStatus, str]:
        """What the mesh is told with each beat: the status over all checks, and the reasons if it is not the best."""
        report = await self.report()
        return report.status, report.output


def worst(labels: Iterable[str]) -> HealthStatus:
    return max((HealthStatus.from_label(label) for label in labels), key=_SEVERITY.index, default=HealthStatus.HEALTHY)


class _Check:
    """One check and what it said last."""

    def __init__(self, name: str, check: HealthCheck, tags: frozenset[str], timeout_seconds: float) -> None:
        self.name = name
        self.tags = tags
        self.entry = CheckEntry(name, HealthStatus.UNHEALTHY.label, "not asked yet")
        self.fresh_until = float("-inf")
        self._check = check
        self._is_coroutine = inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(
            getattr(check, "__call__", None)  # noqa: B004  # an object whose call is a coroutine function
        )
        self._timeout_seconds = timeout_seconds
        self._asking = asyncio.Lock()
        self._is_thread_busy = False

    async def refresh(self, keep_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        async with self._asking:
            began = loop.time()
            if began < self.fresh_until:
                return  # somebody else has asked while we waited for our turn
            self.entry = await self._ask(began)
            self.fresh_until = loop.time() + keep_seconds

    async def _ask(self, began: float) -> CheckEntry:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._timeout_seconds)
        exception = ""
        try:
            async with limit:
                result = _read(await self._call())
        except Exception as exc:
            if isinstance(exc, TimeoutError) and limit.expired():
                result = CheckResult(HealthStatus.UNHEALTHY, f"no answer within {self._timeout_seconds:g} s")
            else:
                exception = f"{type(exc).__name__}: {exc}"
                result = CheckResult(HealthStatus.UNHEALTHY)
        return CheckEntry(
            self.name, result.status.label, result.description, exception, result.data, loop.time() - began
        )

    async def _call(self) -> Verdict:
        if self._is_coroutine:
            given = self._check()
        else:
            if self._is_thread_busy:
                return CheckResult(HealthStatus.UNHEALTHY, "the run before has not ended yet")
            self._is_thread_busy = True
            given = await in_daemon_thread(self._check, f"health check {self.name}", self._thread_ended)
        return await given if inspect.isawaitable(given) else given

    def _thread_ended(self) -> None:
        self._is_thread_busy = False


def _read(verdict: object) -> CheckResult:
    """Raises TypeError or ValueError for what says nothing about health."""
    match verdict:
        case CheckResult():
            status, result = verdict.status, verdict
        case HealthStatus():
            status, result = verdict, CheckResult(verdict)
        case None | bool():
            status = HealthStatus.UNHEALTHY if verdict is False else HealthStatus.HEALTHY
            result = CheckResult(status)
        case str():
            word, _, description = verdict.partition(":")
            status = HealthStatus.from_label(word.strip())
            result = CheckResult(status, description.strip())
        case _:
            raise TypeError(
                f"a check returns a bool, None, a HealthStatus, a CheckResult or text, not {type(verdict).__name__}"
            )
    if status is HealthStatus.UNKNOWN:
        raise ValueError("Unknown says nothing about health; use Healthy, Degraded or Unhealthy")
    return result
