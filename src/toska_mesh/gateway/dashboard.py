"""`/api/dashboard/*`: what the mesh's dashboard reads, behind the same policies as everything else.

Two answers are made here (`services`, `health`); the rest are GET requests to Prometheus and the tracing service, on a
fixed list of paths. The service token goes to the mesh's own services, never to Prometheus.
"""

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import aiohttp
import jwt
import orjson
from yarl import URL

from toska_mesh.gateway.exchange import Exchange
from toska_mesh.gateway.local import LocalAnswer, problem_answer
from toska_mesh.gateway.problems import NOT_READY
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.model import HealthStatus
from toska_mesh.model.metadata import own_metadata
from toska_mesh.router import RouteTable, Service
from toska_mesh.telemetry import event_log

PREFIX = "/api/dashboard/"
TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
MAX_ANSWER_BYTES = 32 * 1024 * 1024
HEALTH_MAX_AGE_SECONDS = 2.0
TOKEN_LIFETIME_SECONDS = 600
TOKEN_RENEW_BEFORE_SECONDS = 30

_PROMETHEUS = {
    "query": "/api/v1/query",
    "query-range": "/api/v1/query_range",
    "query_range": "/api/v1/query_range",
    "labels": "/api/v1/labels",
    "series": "/api/v1/series",
}
_SEGMENT = r"[A-Za-z0-9._~:@-]{1,200}"
_TRACES = re.compile(
    rf"traces(/performance|/services|/services/{_SEGMENT}/operations|/correlation/{_SEGMENT}|/{_SEGMENT})?"
)
_NAME_ID = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier"
_NAME = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/name"
_ROLE = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role"

log = event_log("gateway.dashboard")


class Dashboard:
    """Answers for the dashboard. `session` is the daemon's outgoing HTTP client; `table` gives the present routes."""

    def __init__(
        self,
        settings: GatewaySettings,
        session: aiohttp.ClientSession,
        table: Callable[[], RouteTable | None],
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._prometheus = settings.dashboard_prometheus_url
        self._tracing = settings.dashboard_tracing_url
        self._monitor = settings.dashboard_healthmonitor_url
        self._session = session
        self._table = table
        self._utcnow = utcnow
        self._token = ServiceToken(settings.service_auth_secret.get_secret_value(), utcnow)
        self._statuses: dict[str, list[dict[str, Any]]] = {}
        self._statuses_at = float("-inf")
        self._statuses_lock = asyncio.Lock()

    async def handle(self, exchange: Exchange) -> LocalAnswer:
        """The one entry: any request below the prefix."""
        head = exchange.head
        if head.method not in (b"GET", b"HEAD"):
            return problem_answer(405, "method-not-allowed", "the dashboard only reads: use GET", head.request_id)
        # Decoded once and then matched against fixed shapes: an encoded `?` or `/` cannot change the target.
        path = unquote(head.path.decode("latin-1")).removeprefix(PREFIX)
        if path == "services":
            return await self._services(head.request_id)
        if path == "health":
            return await self._relay(self._monitor, "/api/status", "", head.request_id, with_token=True)
        query = head.query.decode("latin-1").removeprefix("?")
        section, _, rest = path.partition("/")
        if section == "prometheus" and rest in _PROMETHEUS:
            return await self._relay(self._prometheus, _PROMETHEUS[rest], query, head.request_id, with_token=False)
        if section == "traces" and _TRACES.fullmatch(path) and ".." not in path:
            return await self._relay(self._tracing, f"/api/{path}", query, head.request_id, with_token=True)
        return problem_answer(404, "no-such-route", f"there is no {PREFIX}{path}", head.request_id)

    async def _relay(self, base: str, path: str, query: str, request_id: str, with_token: bool) -> LocalAnswer:
        headers = {"Accept": "application/json", "X-Request-ID": request_id}
        token = self._token.current() if with_token else ""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # Already percent-encoded by the client: passed byte for byte.
        url = URL(f"{base}{path}{'?' + query if query else ''}", encoded=True)
        try:
            async with self._session.get(url, headers=headers, timeout=TIMEOUT, allow_redirects=False) as answer:
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while len(body) <= MAX_ANSWER_BYTES and (more := await answer.content.read(MAX_ANSWER_BYTES)):
                    body += more
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            log.warning("dashboard_upstream_failed", url=f"{base}{path}", error=f"{type(exc).__name__}: {exc}")
            return problem_answer(502, "upstream-failed", f"{base} does not answer", request_id)
        if len(body) > MAX_ANSWER_BYTES:
            return problem_answer(502, "upstream-failed", f"the answer of {base} is too large", request_id)
        return LocalAnswer(answer.status, body, answer.content_type)

    async def _services(self, request_id: str) -> LocalAnswer:
        table = self._table()
        if table is None:  # an outage is not the answer "no services"
            return problem_answer(NOT_READY.status, NOT_READY.code, NOT_READY.detail, request_id)
        statuses = await self._probe_results()
        now = self._utcnow()
        services = sorted(table.services.values(), key=lambda service: service.name)
        body = [_describe(service, statuses.get(service.name, []), now) for service in services]
        return LocalAnswer(200, orjson.dumps(body))

    async def _probe_results(self) -> Mapping[str, list[dict[str, Any]]]:
        """What the health monitor found, by service, at most some seconds old; empty when it does not answer."""
        async with self._statuses_lock:
            loop = asyncio.get_running_loop()
            if loop.time() - self._statuses_at < HEALTH_MAX_AGE_SECONDS:
                return self._statuses
            answer = await self._relay(self._monitor, "/api/status", "", "", with_token=True)
            self._statuses = {}
            self._statuses_at = loop.time()
            if answer.status == 200:
                try:
                    for item in orjson.loads(answer.body):
                        self._statuses.setdefault(str(item["serviceName"]), []).append(_health_item(item))
                except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as exc:
                    log.warning("health_monitor_answer_unusable", error=f"{type(exc).__name__}: {exc}")
            return self._statuses


def _health_item(item: Mapping[str, Any]) -> dict[str, Any]:
    probe = item.get("lastProbeType", item.get("probeType"))
    return {
        "serviceId": item["serviceId"],
        "serviceName": item["serviceName"],
        "address": item.get("address", ""),
        "port": item.get("port", 0),
        "status": HealthStatus(item.get("status", 0)).label,
        "lastProbe": item.get("lastProbe") or "",
        "lastProbeType": probe,
        "message": item.get("message"),
        "metadata": own_metadata(item.get("metadata") or {}),
    }


def _describe(service: Service, health: list[dict[str, Any]], now: datetime) -> dict[str, Any]:
    instances = [standing.target.instance for standing in service.everything]
    probed_at = {item["serviceId"]: item["lastProbe"] for item in health}
    owned = [own_metadata(instance.metadata) for instance in instances]
    keys = sorted({key for metadata in owned for key in metadata})
    return {
        "serviceName": service.name,
        "instances": [
            {
                "serviceName": instance.service,
                "serviceId": instance.id,
                "address": instance.endpoint.host,
                "port": instance.endpoint.port,
                "status": instance.status.label,
                "metadata": metadata,
                "registeredAt": _timestamp(instance.registered_at),
                "lastHealthCheck": probed_at.get(instance.id, ""),
            }
            for instance, metadata in zip(instances, owned, strict=True)
        ],
        "health": health,
        "metadata": {
            "serviceName": service.name,
            "instanceCount": len(instances),
            "generatedAt": _timestamp(now),
            "keys": [_describe_key(key, owned) for key in keys],
        }
        if instances
        else None,
    }


def _describe_key(key: str, owned: list[dict[str, str]]) -> dict[str, Any]:
    values = [metadata[key] for metadata in owned if key in metadata]
    return {"key": key, "instanceCount": len(values), "values": sorted(set(values))}


def _timestamp(moment: datetime | None) -> str:
    return moment.isoformat().replace("+00:00", "Z") if moment is not None else ""


class ServiceToken:
    """The gateway's own service-to-service token (HS256), made anew shortly before it expires."""

    def __init__(self, secret: str, utcnow: Callable[[], datetime]) -> None:
        self._secret = secret
        self._utcnow = utcnow
        self._token = ""
        self._expires = 0

    def current(self) -> str:
        """Empty when no secret is set."""
        if not self._secret:
            return ""
        now = int(self._utcnow().timestamp())
        if now >= self._expires - TOKEN_RENEW_BEFORE_SECONDS:
            self._expires = now + TOKEN_LIFETIME_SECONDS
            self._token = jwt.encode(
                {
                    _NAME_ID: "gateway",
                    _NAME: "gateway",
                    "service_id": "gateway",
                    _ROLE: "Service",
                    "sub": "gateway",
                    "jti": str(uuid.uuid4()),
                    "iat": now,
                    "exp": self._expires,
                    "iss": "ToskaMesh.Services",
                    "aud": "ToskaMesh.Services",
                },
                self._secret,
                algorithm="HS256",
            )
        return self._token
