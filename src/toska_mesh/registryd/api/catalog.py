"""`/v1/catalog` and `/v1/health`: who is there and how they are. All blocking."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from toska_mesh.registryd import filters, render
from toska_mesh.registryd.api.endpoint import Backend, Endpoint
from toska_mesh.registryd.api.http import ApiError, Call, Reply, json_reply
from toska_mesh.registryd.api.reads import Resource
from toska_mesh.registryd.changes import Topic
from toska_mesh.registryd.values import Check, Service, Status

_ANY = "any"


class CatalogApi:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._catalog = backend.state.catalog
        self._node = backend.node
        self._listed_node = backend.node.as_listed(backend.node_index)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/catalog/datacenters", {"GET": self._datacenters}),
            Endpoint("/v1/catalog/nodes", {"GET": self._nodes}),
            Endpoint("/v1/catalog/node/", {"GET": self._node_with_services}),
            Endpoint("/v1/catalog/node-services/", {"GET": self._node_services}),
            Endpoint("/v1/catalog/services", {"GET": self._services}),
            Endpoint("/v1/catalog/service/", {"GET": self._service}),
            Endpoint("/v1/health/service/", {"GET": self._health_service}),
            Endpoint("/v1/health/node/", {"GET": self._health_node}),
            Endpoint("/v1/health/checks/", {"GET": self._health_checks}),
            Endpoint("/v1/health/state/", {"GET": self._health_state}),
        ]

    async def _datacenters(self, call: Call) -> Reply:
        return json_reply([self._node.datacenter])

    async def _nodes(self, call: Call) -> Reply:
        test = self._test(call, filters.NODE)

        def body() -> bytes:
            nodes = [self._listed_node] if self._has_node_meta(call) and test(self._listed_node) else []
            return orjson.dumps(nodes)

        return await self._read(call, (("nodes", ""),), lambda: self._backend.node_index, body)

    async def _services(self, call: Call) -> Reply:
        def body() -> bytes:
            services = self._catalog.services() if self._has_node_meta(call) else ()
            return orjson.dumps(render.services_by_name(services))

        return await self._read(call, (("services", ""),), lambda: self._catalog.services_index, body)

    async def _node_with_services(self, call: Call) -> Reply:
        test = self._test(call, filters.SERVICE)

        def body() -> bytes:
            shown = self._services_of_node(test)
            return orjson.dumps({"Node": self._listed_node, "Services": {item["ID"]: item for item in shown}})

        return await self._read_node(call, body, b"null")

    async def _node_services(self, call: Call) -> Reply:
        test = self._test(call, filters.SERVICE)

        def body() -> bytes:
            return orjson.dumps({"Node": self._listed_node, "Services": self._services_of_node(test)})

        return await self._read_node(call, body, b'{"Node":null,"Services":null}')

    async def _read_node(self, call: Call, body: Callable[[], bytes], nothing: bytes) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing node name")
        if not self._is_our_node(call.name):
            return await self._read(call, (("nodes", ""),), lambda: 1, lambda: nothing)
        return await self._read(call, (("services", ""),), lambda: self._catalog.services_index, body)

    def _services_of_node(self, test: filters.Predicate) -> list[dict[str, Any]]:
        return [item for item in map(render.health_service, self._catalog.services()) if test(item)]

    async def _service(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing service name")
        test = self._test(call, filters.CATALOG_SERVICE)

        def body() -> bytes:
            shown = [render.catalog_service(service, self._node) for service in self._tagged_instances(call)]
            return orjson.dumps([item for item in shown if test(item)])

        topics = (("service", call.name.lower()),)
        return await self._read(call, topics, lambda: self._catalog.name_index(call.name), body)

    async def _health_service(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing service name")
        only_passing = call.flag("passing")
        test = self._test(call, filters.INSTANCE) if call.param("filter") else None

        def body() -> bytes:
            node_checks = self._catalog.checks_of("")
            pieces = []
            for service in self._tagged_instances(call):
                checks = _sorted([*node_checks, *self._catalog.checks_of(service.id)])
                if only_passing and any(check.status is not Status.PASSING for check in checks):
                    continue
                if test is None or test(self._instance(service, checks)):
                    pieces.append(self._backend.pieces.instance(service, checks))
            return b"[%b]" % b",".join(pieces)

        name = call.name.lower()
        topics = (("service", name), ("checks of", name))
        return await self._read(call, topics, lambda: self._catalog.name_index(name), body)

    def _instance(self, service: Service, checks: Iterable[Check]) -> dict[str, Any]:
        return {
            "Node": self._listed_node,
            "Service": render.health_service(service),
            "Checks": [render.check(check, self._node) for check in checks],
        }

    async def _health_node(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing node name")
        is_ours = self._is_our_node(call.name)
        return await self._read_checks(call, (("checks", ""),), lambda: self._catalog.checks() if is_ours else ())

    async def _health_checks(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing service name")
        name = call.name.lower()

        def checks() -> list[Check]:
            return [check for service in self._catalog.instances(name) for check in self._catalog.checks_of(service.id)]

        return await self._read_checks(call, (("checks of", name),), lambda: _sorted(checks()))

    async def _health_state(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing check state")
        if call.name == _ANY:
            return await self._read_checks(call, (("checks", ""),), self._catalog.checks)

        def checks() -> Iterable[Check]:
            return (check for check in self._catalog.checks() if check.status == call.name)

        return await self._read_checks(call, (("state", call.name),), checks)

    async def _read_checks(self, call: Call, topics: tuple[Topic, ...], checks: Callable[[], Iterable[Check]]) -> Reply:
        test = self._test(call, filters.CHECK) if call.param("filter") else None

        def body() -> bytes:
            found = checks() if self._has_node_meta(call) else ()
            if test is not None:
                found = [check for check in found if test(render.check(check, self._node))]
            return self._backend.pieces.checks(found)

        return await self._read(call, topics, lambda: self._catalog.checks_index, body)

    # What the reads share

    async def _read(
        self, call: Call, topics: tuple[Topic, ...], index: Callable[[], int], body: Callable[[], bytes]
    ) -> Reply:
        blocking = call.blocking()
        key = (call.path, *((name, call.param(name)) for name in ("passing", "filter") if call.has(name)))
        key += tuple((name, *call.params[name]) for name in ("tag", "node-meta") if call.has(name))
        return await self._backend.reads.answer(Resource(key, topics, index, body), blocking)

    def _test(self, call: Call, shape: filters.Shape) -> filters.Predicate:
        """The call's filter, or what lets everything through."""
        if not (expression := call.param("filter")):
            return lambda item: True
        try:
            return filters.parse(expression, shape)
        except filters.FilterError as exc:
            raise ApiError(500, str(exc), {"X-Consul-Index": "1"}) from exc

    def _tagged_instances(self, call: Call) -> list[Service]:
        """The instances of the named service that carry every `?tag=`; case does not matter, as in Consul."""
        wanted = {tag.lower() for tag in call.params.get("tag", ()) if tag}
        if not self._has_node_meta(call):
            return []
        instances = self._catalog.instances(call.name)
        return [item for item in instances if wanted <= {tag.lower() for tag in item.tags}] if wanted else instances

    def _has_node_meta(self, call: Call) -> bool:
        """Whether our node has every `?node-meta=key:value` asked for."""
        have: Mapping[str, str] = {"consul-network-segment": ""}
        pairs = (pair.partition(":") for pair in call.params.get("node-meta", ()))
        return all(have.get(key) == value for key, _, value in pairs)

    def _is_our_node(self, name: str) -> bool:
        return name.lower() == self._node.name.lower()


def _sorted(checks: list[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: check.id)
