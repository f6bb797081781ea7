"""The gateway's admin API: what it routes, what it thinks of every instance, and with which settings it runs."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from aiohttp import web

from toska_mesh.admin import json_response, problem
from toska_mesh.gateway.dashboard import PREFIX as DASHBOARD
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.routepolicy import describe
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.upstream import Upstream
from toska_mesh.model.metadata import own_metadata
from toska_mesh.router import RouteTable, Service
from toska_mesh.settings import load, show, variables_of


def admin_routes(proxy: Proxy, settings: GatewaySettings, applied_index: Callable[[], int] = int) -> list[web.RouteDef]:
    """`/routes` and `/instances` (both `?service=`), `/config`, `/tasks`. `applied_index`: see `visible`."""

    async def routes(request: web.Request) -> web.Response:
        table = proxy.table
        if table is None:
            return no_table()
        shared = proxy.path_routes.conflicts if proxy.path_routes is not None else {}
        described = describe_routes(table, proxy.prefix, shared)
        wanted = request.query.get("service")
        if wanted is not None:
            described = only_service(described, wanted)
            if not described["routes"] and not described["unrouted"]:
                return no_service(table, wanted)
        return json_response({"appliedIndex": applied_index(), **described})

    async def instances(request: web.Request) -> web.Response:
        table = proxy.table
        if table is None:
            return no_table()
        wanted = request.query.get("service")
        if wanted is None:
            services = [service for _, service in sorted(table.services.items())]
        else:
            found = table.service(wanted)
            if found is None:
                return no_service(table, wanted)
            services = [found]
        now = proxy.clock()
        return json_response([item for service in services for item in describe_instances(service, now)])

    async def tasks(request: web.Request) -> web.Response:
        return json_response(sorted(task.get_name() for task in asyncio.all_tasks()))

    return [
        web.get("/routes", routes),
        web.get("/instances", instances),
        web.get("/config", config_handler(settings)),
        web.get("/tasks", tasks),
    ]


def config_handler(settings: GatewaySettings) -> Callable[[web.Request], Awaitable[web.Response]]:
    """`/config`: every setting with its value (secrets hidden) and where it came from."""

    async def config(request: web.Request) -> web.Response:
        origins = load(GatewaySettings, os.environ).origins
        return json_response(
            {
                variable.name: {
                    "value": show(getattr(settings, variable.field), variable),
                    "origin": origins.get(variable.name, "default"),
                }
                for variable in variables_of(type(settings))
            }
        )

    return config


def describe_routes(
    table: RouteTable, prefix: str, conflicts: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> dict[str, Any]:
    """`conflicts`: by service, what it asked for in common with another."""
    return {
        "version": table.version,
        "catalogVersion": table.catalog_version,
        "routes": [
            {
                "service": service.name,
                "path": f"{prefix}{service.name}/",
                "strategy": service.strategy,
                "instances": len(service.everything),
                "eligible": len(service.targets),
                "inPanic": service.in_panic,
                "policy": describe(service.policy),
                "ignored": [asdict(ignored) for ignored in service.policy.ignored],
                "warnings": [
                    *service.warnings,
                    *service.policy.warnings,
                    *conflicts.get(service.name, ()),
                    *_shadows(f"{prefix}{service.name.lower()}/"),
                ],
            }
            for _, service in sorted(table.services.items())
        ],
        "unrouted": dict(sorted(table.unrouted.items())),
    }


def only_service(described: Mapping[str, Any], service: str) -> dict[str, Any]:
    """What `describe_routes` says of one service, named in any case."""
    return {
        **described,
        "routes": [route for route in described["routes"] if route["service"].lower() == service.lower()],
        "unrouted": {name: why for name, why in described["unrouted"].items() if name.lower() == service.lower()},
    }


def _shadows(route: str) -> list[str]:
    """Paths of a route that the gateway answers itself, in words."""
    own = [path for path in (DASHBOARD, "/health/live", "/health/ready") if path.startswith(route)]
    return [f"requests to {', '.join(own)} are answered by the gateway itself, not by this service"] if own else []


def describe_instances(service: Service, now: float) -> list[dict[str, Any]]:
    """Everything that decides whether an instance gets requests, and why it does not."""
    return [
        {
            "service": service.name,
            "id": standing.target.instance.id,
            "address": standing.target.instance.endpoint.authority,
            "status": standing.target.instance.status.label,
            "output": standing.target.instance.output,
            "verdict": standing.verdict.label if standing.verdict is not None else None,
            "isEligible": standing.is_eligible,
            "why": standing.reason or _why_blocked(standing.target, now),
            "weight": standing.target.weight,
            "share": round(standing.target.share(now), 3),
            "inFlight": standing.target.in_flight,
            **_upstream_state(standing.target, now),
            "metadata": own_metadata(standing.target.instance.metadata),
        }
        for standing in service.everything
    ]


def _upstream_state(target: object, now: float) -> dict[str, Any]:
    if not isinstance(target, Upstream):
        return {}
    circuit = target.circuit
    p99 = target.latency.p99()
    return {
        "breaker": circuit.state.value,
        "breakerFailures": circuit.breaker.failures,
        "breakerRetryInSeconds": round(max(0.0, circuit.retry_at - now), 3) if circuit.retry_at else None,
        "isSuspect": target.is_suspect,
        "waiting": len(target.waiting),
        "idleConnections": len(target.idle),
        "serviceP99Seconds": p99,
    }


def _why_blocked(target: object, now: float) -> str:
    if not isinstance(target, Upstream) or not target.is_blocked:
        return ""
    if target.is_suspect:
        return "suspect: it owes answers for much longer than its service usually takes"
    return f"breaker {target.circuit.state.value}: it failed several times in a row"


def no_service(table: RouteTable, service: str) -> web.Response:
    why = next((f": {why}" for name, why in table.unrouted.items() if name.lower() == service.lower()), "")
    said = f"the service {service!r} is not routed{why}" if why else f"there is no service {service!r}"
    return problem(404, "no-such-service", "Not Found", said)


def no_table() -> web.Response:
    return problem(503, "no-table-yet", "Service Unavailable", "the gateway has not heard from the registry yet")
