"""The HTTP edge: the REST API of the C# generation, beside gRPC, with the same rules and the same tokens.

Routes are matched without regard to case. A page in somebody's browser must not be able to register or remove services,
so there is no CORS, bodies have to be JSON, and requests that a browser marks as cross-site are refused.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import orjson
from aiohttp import web

from toska_mesh.admin import json_response, problem
from toska_mesh.discovery import rest_json as shapes
from toska_mesh.discovery.auth import Gatekeeper, NotOwnerError, PermissionDeniedError, UnauthenticatedError
from toska_mesh.discovery.call import Call, deadline_of
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.prober import Prober
from toska_mesh.discovery.registrar import Lookup, Registrar
from toska_mesh.discovery.validation import InvalidArgumentError
from toska_mesh.errors import MeshError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.rules import parse_ip
from toska_mesh.telemetry import event_log

STALE_HEADER = "X-Toska-Stale"
PROBE_HEADER = "X-Toska-Probe"
NOT_FOUND = "Service not found"
INSTANCE_NOT_FOUND = "Service instance not found"

_MAX_CORRELATION_CHARS = 256

log = event_log("discovery")

T = TypeVar("T")
_Answer = Callable[[web.Request, Call], Awaitable[web.Response]]


class _BadBodyError(InvalidArgumentError):
    """The body is no JSON of the expected shape: answered as a problem document, as the C# generation does."""


class RestApi:
    """Translates between HTTP and the registrar; holds no state of its own."""

    def __init__(
        self,
        registrar: Registrar,
        gatekeeper: Gatekeeper,
        metrics: DiscoveryMetrics,
        prober: Prober,
        utcnow: Callable[[], datetime],
    ) -> None:
        self._registrar = registrar
        self._gatekeeper = gatekeeper
        self._metrics = metrics
        self._prober = prober
        self._utcnow = utcnow

    def routes(self) -> list[web.RouteDef]:
        find, change = "api/ServiceDiscovery", "api/ServiceRegistration"
        return [
            self._route("GET", f"{find}/services", self._services),
            self._route("GET", f"{find}/services/{{name}}/instances", self._instances),
            self._route("GET", f"{find}/services/{{name}}/instances/healthy", self._healthy_instances),
            self._route("GET", f"{find}/services/{{name}}/instances/tracking", self._tracked_instances),
            self._route("GET", f"{find}/services/{{name}}/metadata", self._metadata_summary),
            self._route("GET", f"{find}/instances/{{id}}", self._instance),
            self._route("GET", f"{find}/instances/{{id}}/tracking", self._tracked_instance),
            self._route("POST", f"{change}/register", self._register),
            self._route("POST", f"{change}/deregister/{{id}}", self._deregister),
            self._route("POST", f"{change}/health/check/{{id}}", self._probe),
            self._route("POST", f"{change}/health/{{id}}", self._report_health),
            self._route("POST", f"{change}/metadata/{{id}}", self._replace_metadata),
        ]

    def _route(self, method: str, path: str, answer: _Answer) -> web.RouteDef:
        name = f"{method} /{path}"

        async def handle(request: web.Request) -> web.Response:
            return await self._handle(name, request, answer)

        return web.route(method, _any_case(path), handle)

    # --- looking up -----------------------------------------------------------------------------------------------

    async def _services(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.service_names(call)
        return self._ok(list(found.names), found=found)

    async def _instances(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.instances(call, _service(request))
        return self._ok([self._json(instance) for instance in found.instances], found=found)

    async def _healthy_instances(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.instances(call, _service(request))
        healthy = [i for i in found.instances if i.status is HealthStatus.HEALTHY]
        return self._ok([self._json(instance) for instance in healthy], found=found)

    async def _tracked_instances(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.instances(call, _service(request))
        tracked = [shapes.tracking_json(i, self._registrar.last_beat(i.id)) for i in found.instances]
        return self._ok(tracked, found=found)

    async def _metadata_summary(self, request: web.Request, call: Call) -> web.Response:
        service = _service(request)
        found = await self._registrar.instances(call, service)
        return self._ok(shapes.metadata_summary_json(service, found.instances, self._utcnow()), found=found)

    async def _instance(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.look_up(call, _id(request))
        if not found.instances:
            return self._fail(404, INSTANCE_NOT_FOUND, found)
        return self._ok(self._json(found.instances[0]), found=found)

    async def _tracked_instance(self, request: web.Request, call: Call) -> web.Response:
        found = await self._registrar.look_up(call, _id(request))
        if not found.instances:
            return self._fail(404, INSTANCE_NOT_FOUND, found)
        (instance,) = found.instances
        return self._ok(shapes.tracking_json(instance, self._registrar.last_beat(instance.id)), found=found)

    # --- changing -------------------------------------------------------------------------------------------------

    async def _register(self, request: web.Request, call: Call) -> web.Response:
        asked = _shaped(shapes.registration_from, await _json_body(request))
        instance_id = await self._registrar.register(call, asked)
        instance = await self._registrar.find(call, instance_id)
        return self._ok(instance and self._json(instance), "Service registered successfully")

    async def _deregister(self, request: web.Request, call: Call) -> web.Response:
        removed = await self._registrar.deregister(call, _id(request))
        return self._ok(None, "Service deregistered successfully") if removed else self._fail(404, NOT_FOUND)

    async def _report_health(self, request: web.Request, call: Call) -> web.Response:
        status, output = _shaped(shapes.report_from, await _json_body(request))
        known = await self._registrar.report_health(call, _id(request), status, output)
        return self._ok(None, "Health status updated") if known else self._fail(404, NOT_FOUND)

    async def _probe(self, request: web.Request, call: Call) -> web.Response:
        instance_id = _id(request)
        instance = await self._registrar.find(call, instance_id)
        if instance is None:
            return self._fail(404, NOT_FOUND)
        self._registrar.check_owner(call, instance_id)
        status, words = await self._prober.probe(instance)
        log.info("probed_on_demand", service=instance.service, instance=instance.id, status=status.label, output=words)
        response = self._ok(None, "Health check triggered")
        response.headers[PROBE_HEADER] = _header_text(f"{status.label}: {words}")
        return response

    async def _replace_metadata(self, request: web.Request, call: Call) -> web.Response:
        metadata = _shaped(shapes.metadata_from, await _json_body(request))
        if metadata is None:
            return self._fail(400, "Metadata payload is required")
        known = await self._registrar.replace_metadata(call, _id(request), metadata)
        return self._ok(None, "Metadata updated") if known else self._fail(404, NOT_FOUND)

    # --- around every call ----------------------------------------------------------------------------------------

    async def _handle(self, name: str, request: web.Request, answer: _Answer) -> web.Response:
        started = asyncio.get_running_loop().time()
        outcome = "error"
        try:
            response = await self._answer(request, started, answer)
            outcome = _outcome_of(response.status)
            return response
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.count_call("rest", name, outcome, asyncio.get_running_loop().time() - started)

    async def _answer(self, request: web.Request, now: float, answer: _Answer) -> web.Response:
        if request.method != "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
            return self._fail(403, "requests from other sites' pages are refused")
        try:
            return await answer(request, self._call(request, now))
        except UnauthenticatedError as exc:
            response = self._fail(401, str(exc))
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        except (PermissionDeniedError, NotOwnerError) as exc:
            return self._fail(403, str(exc))
        except _BadBodyError as exc:
            return problem(400, "bad-request", "Bad Request", str(exc))
        except InvalidArgumentError as exc:
            return self._fail(400, str(exc))
        except RegistryUnavailableError as exc:
            return self._fail(503, str(exc))
        except MeshError as exc:
            return self._fail(400, str(exc))

    def _call(self, request: web.Request, now: float) -> Call:
        correlation_id = request.headers.get("X-Correlation-ID") or request.headers.get("X-Request-ID") or ""
        return Call(
            deadline=deadline_of(now, None),
            peer=request.remote or "",
            ip=parse_ip(request.remote or ""),
            identity=self._gatekeeper.admit(request.headers.get("Authorization")),
            correlation_id=correlation_id[:_MAX_CORRELATION_CHARS] or None,
        )

    def _json(self, instance: Instance) -> dict[str, object]:
        return shapes.instance_json(instance, self._registrar.last_beat(instance.id))

    def _ok(self, data: object, message: str | None = None, found: Lookup | None = None) -> web.Response:
        return _marked(json_response(shapes.api_response(data, self._utcnow(), message)), found)

    def _fail(self, status: int, message: str, found: Lookup | None = None) -> web.Response:
        return _marked(json_response(shapes.api_response(None, self._utcnow(), message, success=False), status), found)


def _any_case(path: str) -> str:
    """aiohttp's route pattern for `path` whose fixed parts match in any case."""
    parts = []
    for number, part in enumerate(path.split("/")):
        parts.append(part if part.startswith("{") else f"{{_{number}:(?i:{part})}}")
    return "/" + "/".join(parts)


def _service(request: web.Request) -> ServiceName:
    return ServiceName(request.match_info["name"])


def _id(request: web.Request) -> InstanceId:
    return InstanceId(request.match_info["id"])


async def _json_body(request: web.Request) -> object:
    if request.content_type != "application/json":
        raise _BadBodyError("the body should be JSON, with Content-Type: application/json")
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as exc:
        raise _BadBodyError(f"the body is no JSON: {exc}") from exc


def _shaped(read: Callable[[object], T], body: object) -> T:
    try:
        return read(body)
    except InvalidArgumentError as exc:
        raise _BadBodyError(str(exc)) from exc


def _outcome_of(status: int) -> str:
    if status < 400:
        return "ok"
    return {401: "denied", 403: "denied", 503: "unavailable"}.get(status, "refused")


def _marked(response: web.Response, found: Lookup | None) -> web.Response:
    """The answer, which says so when it is only the last known state."""
    if found is not None and found.stale_reason:
        response.headers[STALE_HEADER] = _header_text(found.stale_reason)
    return response


def _header_text(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text.encode("ascii", "replace").decode())[:500]
