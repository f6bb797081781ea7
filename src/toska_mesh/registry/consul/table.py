"""What the follower knows: the newest reading of each service, and what is shown of it.

The two differ only while the shrink guard holds something. Unchanged services keep the identical tuple, unchanged
instances the identical object, so that whoever builds on a snapshot can compare with `is`.
"""

from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType

from toska_mesh.model import Instance, ServiceName
from toska_mesh.registry.consul.codec import ServiceReading
from toska_mesh.registry.consul.difference import ServiceMark
from toska_mesh.registry.consul.guard import ShrinkGuard

_NOTHING = ServiceReading()


class CatalogTable:
    """Owned by the follower; lives on one event loop."""

    def __init__(self, guard: ShrinkGuard) -> None:
        self._guard = guard
        self._readings: dict[ServiceName, ServiceReading] = {}
        self._marks: dict[ServiceName, frozenset[tuple[str, str, int]]] = {}
        self._shown: dict[ServiceName, tuple[Instance, ...]] = {}

    @property
    def shown(self) -> Mapping[ServiceName, tuple[Instance, ...]]:
        """A live view; `frozen` gives one to hand out."""
        return self._shown

    def frozen(self) -> Mapping[ServiceName, tuple[Instance, ...]]:
        return MappingProxyType(self._shown.copy())

    def preload(self, services: Mapping[ServiceName, tuple[Instance, ...]]) -> None:
        """Show the table of an earlier life until the registry answers."""
        self._shown = dict(services)

    def apply(self, service: ServiceName, reading: ServiceReading) -> bool:
        """Take a new reading; True when what is shown has changed."""
        if reading.marks:
            self._readings[service] = reading
            self._marks[service] = reading.marks
        else:
            self._readings.pop(service, None)
            self._marks.pop(service, None)
        return self._show(service, reading)

    def review(self, services: Iterable[ServiceName]) -> frozenset[ServiceName]:
        """Show these again after the guard has let go; give those that changed."""
        return frozenset(name for name in services if self._show(name, self._readings.get(name, _NOTHING)))

    def _show(self, service: ServiceName, reading: ServiceReading) -> bool:
        before = self._shown.get(service, ())
        after = _reuse(before, self._guard.merge(service, before, reading))
        if after is before:
            return False
        if after:
            self._shown[service] = after
        else:
            del self._shown[service]
        return True

    def knows(self, mark: ServiceMark) -> bool:
        """Whether the newest reading already holds this state of the instance."""
        marks = self._marks.get(ServiceName(mark.service), frozenset())
        return (mark.node, mark.instance_id, mark.modify_index) in marks

    def services_beyond(self, seen: Set[ServiceMark]) -> frozenset[ServiceName]:
        """Services with an instance that is in the table and not among `seen`."""
        return frozenset(
            name
            for name, marks in self._marks.items()
            if any(ServiceMark(node, name, instance_id, index) not in seen for node, instance_id, index in marks)
        )

    def has_reached(self, service: ServiceName, index: int) -> bool:
        """Whether the newest reading holds a registration made or altered at this index of the registry, or later."""
        return any(mark[2] >= index for mark in self._marks.get(service, ()))

    def services_on(self, node: str) -> frozenset[ServiceName]:
        """Services with an instance on the node: those that its node checks concern."""
        return frozenset(name for name, marks in self._marks.items() if any(mark[0] == node for mark in marks))


def _reuse(before: tuple[Instance, ...], after: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """`after` made of the objects of `before` where these say the same; `before` itself when nothing changed."""
    if before == after:
        return before
    known = {instance.id: instance for instance in before}
    return tuple(_older(known.get(instance.id), instance) for instance in after)


def _older(old: Instance | None, new: Instance) -> Instance:
    return old if old is not None and old == new and old.output == new.output else new
