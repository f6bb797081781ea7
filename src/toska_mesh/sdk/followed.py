"""What a client knows of the services that it follows, and how sure it may be of it.

The same promises as those of the registry's own follower: an outage empties nothing, what is shown is marked stale, and
absence is not believed at once after it. A discovery that has itself just started over a registry that was wiped knows
nobody, and nobody is there to doubt it but us: so the shrink guard works here too, with a grace period that gives
services the time of a few beats to come back. Verdicts are dropped after a while without a word: fail open.

Pure: the owner brings the time, and publishes nothing by itself.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from toska_mesh.aio import Latest
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, HealthStatus, InstanceId, ServiceName, Verdicts
from toska_mesh.registry.consul.guard import ShrinkGuard
from toska_mesh.registry.consul.table import CatalogTable
from toska_mesh.sdk.follow_wire import ServiceNews
from toska_mesh.telemetry import event_log

log = event_log("sdk.follow")


class Followed:
    """Owned by the follower; writes both `Latest`s. Lives on one event loop; times are that loop's."""

    def __init__(
        self,
        catalog: Latest[CatalogSnapshot],
        verdicts: Latest[Verdicts] | None,
        *,
        grace_seconds: float,
        keep_verdicts_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._verdicts = verdicts
        self._grace_seconds = grace_seconds
        self._keep_verdicts_seconds = keep_verdicts_seconds
        self._guard = ShrinkGuard(grace_seconds)
        self._table = CatalogTable(self._guard)
        self._known: set[ServiceName] = set()
        self._unconfirmed: set[ServiceName] = set()
        """What was known when the connection was lost and has not been answered since."""
        self._found: dict[ServiceName, tuple[Mapping[InstanceId, HealthStatus], int | None]] = {}
        """Verdicts and how many are probed, where somebody says so."""
        self._empty_since: dict[ServiceName, float] = {}
        self._lost_at: float | None = None
        self._lost_reason = ""
        self._told_since: float | None = None
        self._told_reason = ""
        self._complaints: dict[ServiceName, tuple[str, ...]] = {}
        self._version = 0

    @property
    def known(self) -> frozenset[ServiceName]:
        """Services that have been answered at least once."""
        return frozenset(self._known)

    @property
    def trouble(self) -> str:
        """Why the newest state is not to be had, also before anything is known; empty while it is."""
        return self._staleness()[1]

    @property
    def due_at(self) -> float | None:
        """When `tick` has something to do."""
        moments = [moment for moment in (self._guard.ends_at, self._verdicts_end_at) if moment is not None]
        return min(moments, default=None)

    @property
    def _verdicts_end_at(self) -> float | None:
        if self._lost_at is None or not self._found:
            return None
        return self._lost_at + self._keep_verdicts_seconds

    def take(self, news: Iterable[ServiceNews], now: float, *, is_lookup: bool = False) -> None:
        """Discovery's word about some services; in what it says of absence there may be a doubt, see the module.

        `is_lookup`: the control plane may be of the generation that answers an outage of its registry with an empty
        list, so a service that turns empty has to stay so for the grace period before that is believed.
        """
        if self._lost_at is not None:
            self._guard.outage_ended(now)
        is_changed = False
        for one in news:
            self._complain(one)
            self._unconfirmed.discard(one.service)
            self._known.add(one.service)
            if not (is_lookup and self._is_doubtful(one, now)):
                is_changed |= self._table.apply(one.service, one.reading)
            self._take_verdicts(one)
        if not self._unconfirmed and self._lost_at is not None:
            log.info("discovery_fresh", seconds=round(now - self._lost_at, 3))
            self._lost_at, self._lost_reason = None, ""
        self._publish(is_changed)

    def told_stale(self, reason: str, seconds: float, now: float) -> None:
        """What discovery says of its own sight of the registry; no reason means that it is fresh."""
        if not reason:
            self._told_since = None
        elif self._told_since is None:
            self._told_since = now - seconds
        self._told_reason = reason
        if reason and self._lost_at is not None:
            self._lost_reason = reason  # it answers again, though not with what we want to hear
        self._publish(False)

    def lost(self, reason: str, now: float) -> None:
        """Discovery does not answer. What is known stays."""
        if self._lost_at is None:
            self._lost_at = now
            log.warning("discovery_lost", reason=reason, services=len(self._known))
        self._guard.outage_began(self._table.shown, self._lost_at)
        self._lost_reason = reason
        self._unconfirmed |= self._known
        self._publish(False)

    def tick(self, now: float) -> None:
        """Do what is due: believe in absence at last, let go of verdicts that nobody confirms."""
        is_changed = False
        if self._guard.is_over(now):
            held = sum(map(len, self._guard.held.values()))
            released = self._table.review(self._guard.close())
            is_changed = bool(released)
            if held:
                log.warning("held_instances_given_up", instances=held, services=len(released))
        end = self._verdicts_end_at
        if end is not None and now >= end:
            log.warning("verdicts_dropped", reason=self._lost_reason, after=self._keep_verdicts_seconds)
            self._found.clear()
            self._publish_verdicts()
        self._publish(is_changed)

    def _is_doubtful(self, news: ServiceNews, now: float) -> bool:
        if news.reading.entries or news.service not in self._table.shown:
            self._empty_since.pop(news.service, None)
            return False
        return now - self._empty_since.setdefault(news.service, now) < self._grace_seconds

    def _take_verdicts(self, news: ServiceNews) -> None:
        before = self._found.pop(news.service, None)
        after = (news.verdicts, news.probed) if news.verdicts or news.probed is not None else None
        if after is not None:
            self._found[news.service] = after
        if before != after or (self._verdicts is not None and self._verdicts.peek() is None):
            self._publish_verdicts()

    def _publish_verdicts(self) -> None:
        if self._verdicts is None:
            return
        found = {name: verdicts for name, (verdicts, _) in self._found.items()}
        probed = {name: count for name, (_, count) in self._found.items() if count is not None}
        self._verdicts.set(Verdicts(MappingProxyType(found), MappingProxyType(probed)) if found else NO_VERDICTS)

    def _publish(self, is_changed: bool) -> None:
        """Hand out a snapshot if it differs from the last one, staleness included. None before the first answer."""
        last = self._catalog.peek()
        since, reason = self._staleness()
        is_news = last is None or is_changed or (last.stale_since is None) != (since is None)
        if not self._known or not (is_news or (since is not None and last is not None and last.stale_reason != reason)):
            return
        self._version += 1
        self._catalog.set(CatalogSnapshot(self._table.frozen(), self._version, since, reason))

    def _staleness(self) -> tuple[float | None, str]:
        if self._lost_at is None:
            return self._told_since, self._told_reason
        since = self._lost_at if self._told_since is None else min(self._lost_at, self._told_since)
        return since, self._lost_reason

    def _complain(self, news: ServiceNews) -> None:
        dropped = news.reading.dropped
        if dropped and dropped != self._complaints.get(news.service):
            log.warning("instances_not_usable", service=news.service, reasons=dropped)
        if dropped:
            self._complaints[news.service] = dropped
        else:
            self._complaints.pop(news.service, None)
