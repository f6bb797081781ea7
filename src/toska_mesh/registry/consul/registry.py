"""`Registry` over Consul's HTTP API: commands and questions, each one call under its own deadline."""

import orjson

from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import DRAIN_NOTE
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import (
    check_id,
    parse_json,
    registration_body,
    service_names,
    service_reading,
)
from toska_mesh.telemetry import event_log

_VERBS = {HealthStatus.HEALTHY: "pass", HealthStatus.DEGRADED: "warn", HealthStatus.UNHEALTHY: "fail"}
_LONGEST_NOTE_BYTES = 2500
"""The note travels in the request line, three times as long once percent-encoded; servers take 8 KiB of it."""

log = event_log("registry")


class ConsulRegistry:
    """See `registry.api.Registry`. Holds no state; bound to one agent, as every registration in Consul is."""

    def __init__(self, api: ConsulApi) -> None:
        self._api = api

    async def register(self, registration: Registration, deadline: float | None = None) -> None:
        await self._api.call(
            "PUT", "/v1/agent/service/register", body=registration_body(registration), deadline=deadline
        )

    async def deregister(self, instance_id: InstanceId, deadline: float | None = None) -> None:
        # Up to Consul 1.9 deregistering an unknown id answers 200, so only a question tells whether it was there.
        known = await self._api.call(
            "GET", f"/v1/agent/service/{segment(instance_id)}", deadline=deadline, missing_ok=True
        )
        if known.status == 404:
            raise InstanceNotFoundError(f"no instance {instance_id!r} on this agent")
        answer = await self._api.call(
            "PUT", f"/v1/agent/service/deregister/{segment(instance_id)}", deadline=deadline, missing_ok=True
        )
        if answer.status == 404:
            raise InstanceNotFoundError(f"no instance {instance_id!r} on this agent")

    async def report_health(
        self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float | None = None
    ) -> None:
        verb = _VERBS.get(status)
        if verb is None:
            raise ValueError("Unknown is no health report: it says nothing, so it must not keep an instance alive")
        if status is HealthStatus.DEGRADED and output.startswith(DRAIN_NOTE):
            await self.make_way_for_drain_note(instance_id, deadline)
        note = output.encode("utf-8", "replace")[:_LONGEST_NOTE_BYTES].decode("utf-8", "ignore")
        answer = await self._api.call(
            "PUT",
            f"/v1/agent/check/{verb}/{segment(check_id(instance_id))}",
            params={"note": note} if note else {},
            deadline=deadline,
            missing_ok=True,
        )
        if answer.status == 404:
            raise InstanceNotFoundError(f"no check of instance {instance_id!r} on this agent")

    async def make_way_for_drain_note(self, instance_id: InstanceId, deadline: float | None = None) -> None:
        """Let an instance that was Degraded already be Healthy for a moment, so that the note is news.

        An agent hands a change of status on at once and a change of mere words minutes later (Consul's
        `check_update_interval`): without this, gateways would not hear in time that the instance drains.
        """
        check = check_id(instance_id)
        try:
            answer = await self._api.call(
                "GET", "/v1/agent/checks", {"filter": f"CheckID == {orjson.dumps(check).decode()}"}, deadline=deadline
            )
            known = parse_json(answer.body, "agent/checks")[check]
            is_news = known["Status"] != "warning" or str(known["Output"]).startswith(DRAIN_NOTE)
        except RegistryUnavailableError:
            raise
        except (RegistryError, LookupError, TypeError):
            return  # may not be asked, or does not exist: the report itself will tell
        if not is_news:
            path = f"/v1/agent/check/pass/{segment(check)}"
            await self._api.call("PUT", path, {"note": DRAIN_NOTE}, deadline=deadline, missing_ok=True)

    async def service_names(self, deadline: float | None = None) -> tuple[ServiceName, ...]:
        answer = await self._api.call("GET", "/v1/catalog/services", deadline=deadline)
        return tuple(sorted(service_names(answer.body)))

    async def instances(self, service: ServiceName, deadline: float | None = None) -> tuple[Instance, ...]:
        answer = await self._api.call("GET", f"/v1/health/service/{segment(service)}", deadline=deadline)
        reading = service_reading(service, answer.body)
        if reading.dropped:
            log.debug("instances_dropped", service=service, reasons=reading.dropped)
        return reading.instances

    async def leader(self, deadline: float | None = None) -> str:
        answer = await self._api.call("GET", "/v1/status/leader", deadline=deadline)
        address = parse_json(answer.body, "status/leader")
        if not isinstance(address, str) or not address:
            raise RegistryUnavailableError("the registry has no leader")
        return address
