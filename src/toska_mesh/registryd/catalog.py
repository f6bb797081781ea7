"""Services and checks of the one node, with Consul's indexes. Pure: no clock, no I/O.

The rules of who carries which index are those of Consul 1.8's state store: a service's own index moves with the
service, with its checks and with the node's checks; `checks` and `services` are the tables' indexes; a name without
instances answers the index at which a service last lost its last instance. Owned by `State`, on one event loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from toska_mesh.registryd.changes import Changes
from toska_mesh.registryd.ordered import SortedMap
from toska_mesh.registryd.values import Check, Service, Status, to_row

NODE_HEALTH_CHECK = "serfHealth"
"""The check that says the node lives; sessions hang on it by default. In Consul the gossip layer maintains it."""


class Catalog:
    """`base_index` is the index of everything that did not change since the start."""

    def __init__(self, base_index: int) -> None:
        self._base = base_index
        self.services_index = base_index
        self.checks_index = base_index
        self._extinction_index = base_index
        self._services: SortedMap[Service] = SortedMap()
        self._checks: SortedMap[Check] = SortedMap()
        self._ids_by_name: dict[str, SortedMap[str]] = {}
        self._checks_by_service: dict[str, SortedMap[str]] = {}  # the node's own under ""
        self._name_index: dict[str, int] = {}
        node_health = Check(
            NODE_HEALTH_CHECK,
            "Serf Health Status",
            Status.PASSING,
            output="Agent alive and reachable",
            kind="",
            create_index=base_index,
            modify_index=base_index,
        )
        self._add_check(node_health)

    def load(self, services: Iterable[Service], checks: Iterable[Check]) -> None:
        """Fill from the store. A check whose service is gone is left out."""
        for service in services:
            self._add_service(service)
            self._name_index[service.name.lower()] = self._base
        for check in checks:
            if not check.service_id or check.service_id in self._services:
                self._add_check(check)

    # Questions

    def service(self, service_id: str) -> Service | None:
        return self._services.get(service_id)

    def check(self, check_id: str) -> Check | None:
        return self._checks.get(check_id)

    def services(self) -> Iterator[Service]:
        return self._services.values()

    def checks(self) -> Iterator[Check]:
        return self._checks.values()

    def instances(self, name: str) -> list[Service]:
        """All instances of a name, sorted by id. Case does not matter, as in Consul."""
        ids = self._ids_by_name.get(name.lower())
        return [service for id_ in ids.values() if (service := self._services.get(id_))] if ids else []

    def checks_of(self, service_id: str) -> list[Check]:
        """The checks of one instance, sorted by id; with "" those of the node."""
        ids = self._checks_by_service.get(service_id)
        return [check for id_ in ids.values() if (check := self._checks.get(id_))] if ids else []

    def name_index(self, name: str) -> int:
        """Of one service: the instances, their checks and the node's."""
        return self._name_index.get(name.lower(), self._extinction_index)

    @property
    def service_count(self) -> int:
        return len(self._services)

    @property
    def check_count(self) -> int:
        return len(self._checks)

    # Commands

    def put_service(self, service: Service, changes: Changes) -> None:
        """Create or replace. An identical service changes nothing; a new name moves the instance and its checks."""
        old = self._services.get(service.id)
        if old is not None:
            service = replace(service, create_index=old.create_index, modify_index=old.modify_index)
            if service == old:
                return
        index = changes.index
        service = replace(service, create_index=old.create_index if old else index, modify_index=index)
        if old is not None and old.name.lower() != service.name.lower():
            self._forget_name(old, changes)
        self._add_service(service)
        changes.rows["service", service.id] = to_row(service)
        self._touch_service(service.name, changes)
        if old is not None and (old.name, old.tags) != (service.name, service.tags):
            for check in self.checks_of(service.id):
                self.put_check(replace(check, service_name=service.name, service_tags=service.tags), changes)

    def put_check(self, check: Check, changes: Changes) -> None:
        """Create or replace. The caller has seen to it that the service exists."""
        old = self._checks.get(check.id)
        if old is not None:
            check = replace(check, create_index=old.create_index, modify_index=old.modify_index)
            if check == old:
                return
            if _as_seen(check) == _as_seen(old):  # only our own bookkeeping (TTL, grace) differs: nobody can see it
                self._add_check(check)
                changes.rows["check", check.id] = to_row(check)
                return
        index = changes.index
        check = replace(check, create_index=old.create_index if old else index, modify_index=index)
        if old is not None and old.service_id != check.service_id:
            self._unlink_check(old, changes)
        self._add_check(check)
        changes.rows["check", check.id] = to_row(check)
        self._touch_check(check, {old.status, check.status} if old else {check.status}, changes)

    def remove_service(self, service_id: str, changes: Changes) -> None:
        """Remove the instance with all its checks."""
        service = self._services.pop(service_id)
        if service is None:
            return
        for check in self.checks_of(service_id):
            self.remove_check(check.id, changes)
        changes.rows["service", service_id] = None
        self._forget_name(service, changes)
        self.services_index = changes.index
        changes.topics.add(("services", ""))

    def remove_check(self, check_id: str, changes: Changes) -> None:
        check = self._checks.get(check_id)
        if check is None:
            return
        self._unlink_check(check, changes)
        self._checks.pop(check_id)
        changes.rows["check", check_id] = None

    # Keeping the indexes

    def _add_service(self, service: Service) -> None:
        self._services.set(service.id, service)
        self._ids_by_name.setdefault(service.name.lower(), SortedMap()).set(service.id, service.id)

    def _add_check(self, check: Check) -> None:
        self._checks.set(check.id, check)
        self._checks_by_service.setdefault(check.service_id, SortedMap()).set(check.id, check.id)

    def _unlink_check(self, check: Check, changes: Changes) -> None:
        siblings = self._checks_by_service[check.service_id]
        siblings.pop(check.id)
        if not len(siblings):
            del self._checks_by_service[check.service_id]
        self._touch_check(check, {check.status}, changes)

    def _forget_name(self, service: Service, changes: Changes) -> None:
        name = service.name.lower()
        ids = self._ids_by_name[name]
        ids.pop(service.id)
        if len(ids):
            self._name_index[name] = changes.index
        else:
            del self._ids_by_name[name]
            self._name_index.pop(name, None)
            self._extinction_index = changes.index
        changes.topics.add(("service", name))

    def _touch_service(self, name: str, changes: Changes) -> None:
        self.services_index = self._name_index[name.lower()] = changes.index
        changes.topics |= {("services", ""), ("service", name.lower())}

    def _touch_check(self, check: Check, states: set[str], changes: Changes) -> None:
        self.checks_index = changes.index
        changes.topics |= {("checks", ""), *(("state", state) for state in states)}
        names = [check.service_name.lower()] if check.service_id else list(self._ids_by_name)
        for name in names:
            if name in self._name_index:
                self._name_index[name] = changes.index
            changes.topics.add(("checks of", name))


def _as_seen(check: Check) -> Check:
    return replace(check, ttl_seconds=0.0, deregister_after_seconds=0.0)
