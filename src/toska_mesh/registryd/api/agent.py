"""`/v1/agent`: registering, renewing, maintenance, and what the agent knows."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from toska_mesh import __version__
from toska_mesh.registryd import filters, render
from toska_mesh.registryd.api import bodies
from toska_mesh.registryd.api.endpoint import Backend, Endpoint
from toska_mesh.registryd.api.http import DONE, ApiError, Call, Reply, json_reply
from toska_mesh.registryd.node import SPOKEN_VERSION
from toska_mesh.registryd.values import Status

_NO_REASON = "Maintenance mode is enabled for this {}, but no reason was provided. This is a default message."
_AGENT_SERVICE = {name: kind for name, kind in filters.SERVICE.items() if name not in ("Proxy", "Connect")}


class AgentApi:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state = backend.state

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/agent/self", {"GET": self._self}),
            Endpoint("/v1/agent/members", {"GET": self._members}),
            Endpoint("/v1/agent/maintenance", {"PUT": self._node_maintenance}),
            Endpoint("/v1/agent/services", {"GET": self._services}),
            Endpoint("/v1/agent/service/", {"GET": self._service}),
            Endpoint("/v1/agent/checks", {"GET": self._checks}),
            Endpoint("/v1/agent/service/register", {"PUT": self._register_service}),
            Endpoint("/v1/agent/service/deregister/", {"PUT": self._deregister_service}),
            Endpoint("/v1/agent/service/maintenance/", {"PUT": self._service_maintenance}),
            Endpoint("/v1/agent/check/register", {"PUT": self._register_check}),
            Endpoint("/v1/agent/check/deregister/", {"PUT": self._deregister_check}),
            Endpoint("/v1/agent/check/pass/", {"PUT": self._beat(Status.PASSING)}),
            Endpoint("/v1/agent/check/warn/", {"PUT": self._beat(Status.WARNING)}),
            Endpoint("/v1/agent/check/fail/", {"PUT": self._beat(Status.CRITICAL)}),
            Endpoint("/v1/agent/check/update/", {"PUT": self._update_check}),
        ]

    # What the agent knows

    async def _self(self, call: Call) -> Reply:
        node, catalog = self._backend.node, self._state.catalog
        return json_reply(
            {
                "Config": {
                    "Datacenter": node.datacenter,
                    "NodeName": node.name,
                    "NodeID": node.id,
                    "Revision": f"toska-registry {__version__}",
                    "Server": True,
                    "Version": SPOKEN_VERSION,
                },
                "DebugConfig": {"Datacenter": node.datacenter, "NodeName": node.name, "HTTPPort": node.port},
                "Coord": {"Vec": [0] * 8, "Error": 1.5, "Adjustment": 0, "Height": 0.00001},
                "Member": node.as_member(),
                "Stats": {
                    "agent": {
                        "check_monitors": "0",
                        "check_ttls": str(sum(1 for check in catalog.checks() if check.ttl_seconds)),
                        "checks": str(catalog.check_count - 1),  # not the node's own health
                        "services": str(catalog.service_count),
                    },
                    "consul": {"leader": "true", "leader_addr": node.leader, "server": "true"},
                },
                "Meta": {"consul-network-segment": ""},
            }
        )

    async def _members(self, call: Call) -> Reply:
        return json_reply([self._backend.node.as_member()])

    async def _services(self, call: Call) -> Reply:
        call.check_scope()
        shown = {service.id: render.agent_service(service) for service in self._state.catalog.services()}
        return json_reply(_filtered(shown, call, _AGENT_SERVICE))

    async def _checks(self, call: Call) -> Reply:
        call.check_scope()
        node = self._backend.node
        shown = {
            check.id: render.agent_check(check, node, self._state.output_of(check))
            for check in self._state.catalog.checks()
            if check.kind  # the node's own health is the catalog's, not the agent's
        }
        return json_reply(_filtered(shown, call, filters.CHECK))

    async def _service(self, call: Call) -> Reply:
        """One instance; `?hash=` waits until it differs from what the caller has (Consul: hash-based blocking)."""
        blocking = call.blocking()
        wanted = call.param("hash")
        deadline = self._backend.clock() + blocking.wait_seconds
        while True:
            service = self._state.catalog.service(call.name)
            if service is None:
                raise ApiError(404, f"unknown service ID: {call.name}")
            shown = render.agent_service(service)
            digest = hashlib.blake2b(orjson.dumps(shown), digest_size=8).hexdigest()
            topics = (("service", service.name.lower()),)
            if not wanted or digest != wanted or not await self._backend.watches.wait(topics, deadline):
                return json_reply(shown | {"ContentHash": digest}, {"X-Consul-ContentHash": digest})

    # Services

    async def _register_service(self, call: Call) -> Reply:
        call.check_scope()
        service, checks = bodies.service_registration(call.decoded())
        replaces = call.flag("replace-existing-checks")
        self._state.register_service(service, checks, self._backend.clock(), replaces)
        return await self._done()

    async def _deregister_service(self, call: Call) -> Reply:
        call.check_scope()
        if not call.name:
            raise ApiError(500, "ServiceID missing")
        self._state.deregister_service(call.name, self._backend.clock())
        return await self._done()

    async def _service_maintenance(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing service ID")
        is_on = _enable(call)
        call.check_scope()
        service = self._state.catalog.service(call.name)
        if service is None:
            raise ApiError(404, f'No service registered with ID "{call.name}"')
        reason = (call.param("reason") or _NO_REASON.format("service")) if is_on else None
        self._state.set_service_maintenance(service, reason, self._backend.clock())
        return await self._done()

    async def _node_maintenance(self, call: Call) -> Reply:
        is_on = _enable(call)
        reason = (call.param("reason") or _NO_REASON.format("node")) if is_on else None
        self._state.set_node_maintenance(reason, self._backend.clock())
        return await self._done()

    # Checks

    async def _register_check(self, call: Call) -> Reply:
        call.check_scope()
        check = bodies.check_registration(call.decoded())
        if check.service_id and self._state.catalog.service(check.service_id) is None:
            raise ApiError(500, f'ServiceID "{check.service_id}" does not exist')
        self._state.register_check(check, self._backend.clock())
        return await self._done()

    async def _deregister_check(self, call: Call) -> Reply:
        call.check_scope()
        if not call.name:
            raise ApiError(500, "CheckID missing")
        check = self._state.catalog.check(call.name)
        if check is not None and check.kind:  # the node's own health stays
            self._state.deregister_check(call.name, self._backend.clock())
        return await self._done()

    def _beat(self, status: Status) -> Callable[[Call], Awaitable[Reply]]:
        async def beat(call: Call) -> Reply:
            if call.query:
                call.check_scope()
            return await self._renew(call.name, status, call.param("note"))

        return beat

    async def _update_check(self, call: Call) -> Reply:
        call.check_scope()
        status, output = bodies.check_update(call.decoded())
        return await self._renew(call.name, status, output)

    async def _renew(self, check_id: str, status: Status, output: str) -> Reply:
        check = self._state.catalog.check(check_id)
        if check is None or not check.ttl_seconds:
            raise ApiError(500, f'CheckID "{check_id}" does not have associated TTL')
        if self._state.renew_check(check, status, output, self._backend.clock()):
            await self._backend.durable()
        return DONE

    async def _done(self) -> Reply:
        await self._backend.durable()
        return DONE


def _enable(call: Call) -> bool:
    value = call.param("enable")
    if not value:
        raise ApiError(400, "Missing value for enable")
    try:
        return call.flag("enable")
    except ApiError as exc:
        raise ApiError(400, f'Invalid value for enable: "{value}"') from exc


def _filtered(shown: dict[str, dict[str, Any]], call: Call, shape: filters.Shape) -> dict[str, dict[str, Any]]:
    if not (expression := call.param("filter")):
        return shown
    try:
        test = filters.parse(expression, shape)
    except filters.FilterError as exc:
        raise ApiError(500, str(exc)) from exc
    return {name: item for name, item in shown.items() if test(item)}
