"""The JSON body of health answers as the C# generation of the mesh writes it, for daemons and services alike. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CheckEntry:
    """One check's line. `status`: `Healthy`, `Degraded` or `Unhealthy`."""

    name: str
    status: str
    description: str = ""
    exception: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0


def health_body(status: str, seconds: float, checks: Iterable[CheckEntry]) -> dict[str, object]:
    """`duration` is a number of milliseconds, of the whole and of each check."""
    return {"status": status, "duration": _milliseconds(seconds), "checks": [_entry(check) for check in checks]}


def _entry(check: CheckEntry) -> dict[str, object]:
    return {
        "name": check.name,
        "status": check.status,
        "description": check.description or None,
        "exception": check.exception or None,
        "data": check.data,
        "duration": _milliseconds(check.seconds),
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
