"""The status API: what the monitor thinks of every instance, in the fields that both older generations wrote.

`GET /api/status`, `/api/status/{service}` and `/api/status/{service}/history` (also as `/api/Status`); service names
in any case; an unknown service is an empty list, but a catalog that was never read is 503, because an outage is not an
empty answer. While the registry does not answer the last known instances are shown, with
`X-Toska-Catalog-Stale-Seconds` above 0.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import orjson
from aiohttp import web

from toska_mesh.admin import problem
from toska_mesh.aio import Latest
from toska_mesh.healthmonitor.history import Transition
from toska_mesh.healthmonitor.ledger import Ledger, Record
from toska_mesh.model import CatalogSnapshot
from toska_mesh.model.metadata import own_metadata

STALE_HEADER = "X-Toska-Catalog-Stale-Seconds"
NEVER = "0001-01-01T00:00:00Z"
"""What both older generations write for a probe that has not been: their types cannot be null."""

ITEMS_AT_ONCE = 500
"""Items encoded before the loop gets a breath: 20,000 of them take longer than a probe may be late."""

ItemWriter = Callable[[Record], Iterable[object]]


class StatusApi:
    """Reads the ledger; changes nothing."""

    def __init__(self, ledger: Ledger, catalog: Latest[CatalogSnapshot]) -> None:
        self._ledger = ledger
        self._catalog = catalog

    def routes(self) -> list[web.RouteDef]:
        return [
            route
            for root in ("/api/status", "/api/Status")
            for route in (
                web.get(root, self._serve_all),
                web.get(root + "/{service}", self._serve_service),
                web.get(root + "/{service}/history", self._serve_history),
            )
        ]

    async def _serve_all(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self._records(None), _status_items)

    async def _serve_service(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self._records(request.match_info["service"]), _status_items)

    async def _serve_history(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self._records(request.match_info["service"]), _history_items)

    def _records(self, service: str | None) -> Iterator[Record]:
        wanted = None if service is None else service.casefold()
        for name in sorted(self._ledger.service_names):
            if wanted is None or name.casefold() == wanted:
                yield from self._ledger.records(name)

    async def _answer(self, records: Iterable[Record], items_of: ItemWriter) -> web.StreamResponse:
        snapshot = self._catalog.peek()
        if snapshot is None:
            answer = problem(
                503, "catalog-unknown", "The catalog is not known yet", "the registry has not answered since the start"
            )
            answer.headers["Retry-After"] = "2"
            return answer
        parts: list[bytes] = []
        for index, record in enumerate(records, start=1):
            parts += [orjson.dumps(item) for item in items_of(record)]
            if index % ITEMS_AT_ONCE == 0:
                await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        age = 0 if snapshot.stale_since is None else max(1, round(now - snapshot.stale_since))
        return web.Response(
            body=b"[" + b",".join(parts) + b"]",
            content_type="application/json",
            headers={STALE_HEADER: str(age), "Cache-Control": "no-store"},
        )


def _status_items(record: Record) -> Iterable[object]:
    yield {
        "serviceId": record.key[1],
        "serviceName": record.key[0],
        "address": record.instance.endpoint.host,
        "port": record.instance.endpoint.port,
        "status": int(record.status),
        "statusText": record.status.label,
        "lastProbe": NEVER if record.last_probe is None else rfc3339(record.last_probe),
        "probeType": record.probe_type.value,
        "lastProbeType": record.probe_type.value,
        "message": record.message or None,
        "metadata": own_metadata(record.instance.metadata),
    }


def _history_items(record: Record) -> Iterable[object]:
    return [_transition(transition) for transition in record.history]


def _transition(transition: Transition) -> object:
    return {
        "serviceId": transition.instance_id,
        "serviceName": transition.service,
        "at": rfc3339(transition.at),
        "previousStatus": transition.previous.label,
        "currentStatus": transition.current.label,
        "probeType": transition.probe_type,
        "message": transition.message or None,
    }


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
