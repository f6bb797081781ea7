"""Whether what an agent was told about a service has reached the registry's servers.

A Consul agent acknowledges registrations and check updates as soon as *it* knows them. It hands them on at once when it
can, but while its servers are away it says yes all the same and catches up later; and an update that changes nothing
but a check's words waits for minutes (`check_update_interval`). Whoever puts something behind such a change, in the
servers' order of writes, has to ask. The embedded registry is its own agent, and always agrees with itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.model.metadata import DRAIN_NOTE
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.telemetry import event_log

log = event_log("registry")


class AgentAgreement:
    """Compares one agent with the catalog. Remembers the agent's name."""

    def __init__(self, api: ConsulApi) -> None:
        self._api = api
        self._node = ""
        self._is_believed = False

    async def difference(self, service: ServiceName) -> str:
        """What the servers do not know yet of the agent's part of the service, in words; empty when they know all.

        An agent that does not let us ask is believed. Raises RegistryUnavailableError.
        """
        if self._is_believed:
            return ""
        try:
            self._node = self._node or await self._name()
            services = await self._get("/v1/agent/services", f"Service == {orjson.dumps(service).decode()}")
            checks = await self._get("/v1/agent/checks", f"ServiceName == {orjson.dumps(service).decode()}")
            catalog = await self._get(f"/v1/health/service/{segment(service)}")
            difference = _difference(self._node, services.values(), checks.values(), catalog)
            if difference and await self._name() != self._node:
                self._believe("several agents answer at this address")
                return ""
            return difference
        except RegistryUnavailableError:
            raise
        except (RegistryError, LookupError, TypeError, AttributeError) as error:
            self._believe(str(error))
            return ""

    def _believe(self, reason: str) -> None:
        self._is_believed = True
        log.info("agent_not_comparable", reason=reason, consequence="its acknowledgements are believed")

    async def _name(self) -> str:
        return str((await self._get("/v1/agent/self"))["Config"]["NodeName"])

    async def _get(self, path: str, expression: str = "") -> Any:
        answer = await self._api.call("GET", path, {"filter": expression} if expression else {})
        return parse_json(answer.body, path)


def _difference(
    node: str,
    services: Iterable[Mapping[str, Any]],
    checks: Iterable[Mapping[str, Any]],
    catalog: Iterable[Mapping[str, Any]],
) -> str:
    there = {entry["Service"]["ID"]: entry for entry in catalog if entry["Node"]["Node"] == node}
    here = {service["ID"]: service for service in services}
    for gone in there.keys() - here.keys():
        return f"the agent has not told its servers that {gone!r} is gone"
    for instance_id, service in here.items():
        entry = there.get(instance_id)
        if entry is None or _content(entry["Service"]) != _content(service):
            return f"the agent has not told its servers of the newest registration of {instance_id!r}"
    known = {check["CheckID"]: check for entry in there.values() for check in entry["Checks"]}
    for check in checks:
        other = known.get(check["CheckID"])
        if other is None or _word(other) != _word(check):
            return f"the agent has not told its servers the newest state of check {check['CheckID']!r}"
    return ""


def _content(service: Mapping[str, Any]) -> tuple[object, object, object]:
    return service.get("Address") or "", service.get("Port") or 0, service.get("Meta") or {}


def _word(check: Mapping[str, Any]) -> tuple[object, bool]:
    """What of a check matters to routes: other words may stay behind for as long as they like."""
    return check.get("Status"), str(check.get("Output") or "").startswith(DRAIN_NOTE)
