"""`Target`: what a pick hands out. One mutable object per instance, which outlives the tables that mention it.

The gateway's fast path touches per-instance state on every request (load, breaker, pool). It hangs on this one slotted
object, so that a pick is one attribute away from all of it: the gateway subclasses `Target` and adds its own slots.

Owners: the table's build writes `instance`, `weight` and the ramp; whoever sends the requests writes `in_flight` and
`is_blocked`. Everything lives on one event loop.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from toska_mesh.model import Instance

NEVER: Final = float("-inf")
SMALLEST_SHARE: Final = 0.1
"""A new instance begins with a tenth of a full turn: enough to warm caches, too little to hurt (as in Envoy)."""


@mypyc_attr(allow_interpreted_subclasses=True)  # in a compiled build too others add their own state
class Target:
    """One instance as the balancer sees it. Compared by identity; a new endpoint or id is a new target."""

    __slots__ = (
        "credit",
        "eligible_since",
        "in_flight",
        "instance",
        "is_blocked",
        "ramp_seconds",
        "ramp_until",
        "weight",
    )

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        """Replaced by the newest value at each build; id and endpoint never change."""
        self.weight = 1
        self.in_flight = 0
        """Requests sent and not yet finished. The sender counts up at the pick and down at the end."""
        self.is_blocked = False
        """Set by the sender (breaker open, trial under way, suspect): passed over as long as it is set."""
        self.eligible_since: float | None = None
        """Since when it may be picked; -inf for those of the first table."""
        self.ramp_until = NEVER
        """Slow start ends then; -inf when there is none."""
        self.ramp_seconds = 0.0
        self.credit = 0.0
        """Saved-up fractions of turns during slow start."""

    def share(self, now: float) -> float:
        """The part of a full turn that the instance gets now: 1 except during slow start, then 0.1 rising to 1."""
        left = self.ramp_until - now
        if left <= 0.0:
            return 1.0
        return max(SMALLEST_SHARE, 1.0 - left / self.ramp_seconds)

    def takes_turn(self, now: float) -> bool:
        """Offer one turn. During slow start only `share` of the offers are taken; the first one always is."""
        if now >= self.ramp_until:
            return True
        self.credit += self.share(now)
        if self.credit < 1.0:
            return False
        self.credit -= 1.0
        return True

    def load(self, now: float) -> float:
        """Requests in flight, as heavy as the share makes them: half a share feels each request twice."""
        return self.in_flight / self.share(now)

    def start_ramp(self, now: float, seconds: float) -> None:
        """Begin slow start. The credit of a full turn lets the first offer through at once."""
        self.ramp_until = now + seconds
        self.ramp_seconds = seconds
        self.credit = 1.0

    def __repr__(self) -> str:
        blocked = ", blocked" if self.is_blocked else ""
        where = f"{self.instance.id} at {self.instance.endpoint.authority}"
        return f"<{type(self).__name__} {where}, {self.in_flight} in flight{blocked}>"
