"""The shrink guard: what a registry that has just been away says about absence is not believed at once.

A registry that was restarted empty knows nobody until everybody has registered again; one that was merely down let
the TTLs of living instances run out, because nobody could deliver a beat. Both look like mass death and are none. So
for a grace period after an outage:

- *wiped* (its index went backwards): no instance known from before is dropped for being absent;
- *unreachable*: losses pass one by one, but not once they reach half of a service (so never the only instance);
- after a *brief* outage (below 2 s, index intact) absence is believed: nobody was reaped and no agent restarted in that
  time; a lost beat is possible all the same, so silence is not;
- who said that it was leaving, and is gone now, has left;
- an instance that turned Unhealthy out of mere silence (TTL ran out, its agent is away) counts as lost; one that was
  reported Unhealthy, or put into maintenance, does not: that is news, and news passes, as additions do.

An instance that was held stays held until it is back or the grace period ends. Pure: the owner brings the time.
"""

from collections.abc import Iterable, Mapping

from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.consul.codec import ServiceReading

_BRIEF_SECONDS = 2.0
_USABLE = frozenset({HealthStatus.HEALTHY, HealthStatus.DEGRADED})


class ShrinkGuard:
    """Owned by the follower. Open-ended while the registry is away, then open for `grace_seconds` more."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._is_wiped = False
        self._is_brief = True
        self._began_at: float | None = None
        self._ends_at: float | None = None
        self._suspects: dict[ServiceName, dict[InstanceId, int]] = {}
        self._sizes: dict[ServiceName, int] = {}
        self._accepted: dict[ServiceName, set[InstanceId]] = {}
        self._held: dict[ServiceName, frozenset[InstanceId]] = {}

    @property
    def held(self) -> Mapping[ServiceName, frozenset[InstanceId]]:
        """Instances that are shown although the registry does not list them as usable."""
        return self._held

    @property
    def ends_at(self) -> float | None:
        """When the grace period ends; None while the guard is idle or the registry still away."""
        return self._ends_at

    def outage_began(self, shown: Mapping[ServiceName, tuple[Instance, ...]], now: float) -> None:
        """`now` may lie in the past: for a table that was read from disk nobody knows how long it has been."""
        self._suspect(shown.items())
        self._began_at = now
        self._ends_at = None

    def outage_ended(self, now: float) -> None:
        if self._began_at is not None and now - self._began_at >= _BRIEF_SECONDS:
            self._is_brief = False  # and stays so if a brief outage follows within the grace period
        self._began_at = None
        if self._suspects and self._ends_at is None:
            self._ends_at = now + self._grace_seconds

    def index_went_back(self, shown: Mapping[ServiceName, tuple[Instance, ...]], now: float) -> None:
        self._suspect(shown.items())
        self._is_wiped = True
        self._ends_at = now + self._grace_seconds

    def _suspect(self, shown: Iterable[tuple[ServiceName, tuple[Instance, ...]]]) -> None:
        self._suspects = {service: {one.id: one.create_index for one in instances} for service, instances in shown}
        self._sizes = {service: len(ids) for service, ids in self._suspects.items()}
        self._accepted = {}

    def is_over(self, now: float) -> bool:
        return self._ends_at is not None and now >= self._ends_at

    def close(self) -> frozenset[ServiceName]:
        """End the grace period; give the services of which something was held: they are to be merged again."""
        held = frozenset(self._held)
        self._is_wiped, self._is_brief = False, True
        self._ends_at = None
        self._suspects, self._sizes, self._accepted, self._held = {}, {}, {}, {}
        return held

    @property
    def _believes_absence(self) -> bool:
        return self._ends_at is not None and self._is_brief and not self._is_wiped

    def merge(self, service: ServiceName, shown: tuple[Instance, ...], reading: ServiceReading) -> tuple[Instance, ...]:
        """What to show of `service` from now on, sorted by instance id."""
        suspects = self._suspects.get(service)
        if not suspects:
            return reading.instances
        before = {instance.id: instance for instance in shown}
        lost = self._lost(suspects, before, reading)
        if not lost:
            self._held.pop(service, None)
            return reading.instances
        accepted = self._accepted.setdefault(service, set())
        held = lost
        if not self._is_wiped and 2 * len(lost | accepted) < self._sizes[service]:
            held = lost & self._held.get(service, frozenset())
        for gone in lost - held:
            accepted.add(gone)
            del suspects[gone]
        if held:
            self._held[service] = frozenset(held)
        else:
            self._held.pop(service, None)
        kept = {instance.id: instance for instance in reading.instances}
        kept |= {instance_id: before[instance_id] for instance_id in held}
        return tuple(kept[instance_id] for instance_id in sorted(kept))

    def _lost(
        self, suspects: dict[InstanceId, int], before: Mapping[InstanceId, Instance], reading: ServiceReading
    ) -> set[InstanceId]:
        """Suspects of which the registry knows nothing good; those that registered anew are suspects no more."""
        read = {entry.instance.id: entry for entry in reading.entries}
        lost = set()
        for instance_id, create_index in tuple(suspects.items()):
            entry, old = read.get(instance_id), before.get(instance_id)
            if old is None or (entry is None and (self._believes_absence or old.is_draining)):
                del suspects[instance_id]
            elif entry is None or (entry.is_silent and old.status in _USABLE):
                lost.add(instance_id)
            elif self._is_wiped or entry.instance.create_index != create_index:
                del suspects[instance_id]
        return lost
