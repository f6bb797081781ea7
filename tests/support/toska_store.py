"""A stand-in for ToskaStore: `python -m tests.support.toska_store --port N --log FILE`.

The real one is an Elixir program that is not to be had on every machine. This one is written from the description of
its HTTP API (version 0.9.1), the part below `/kv` but transactions and watches, with the quirks that a client has to
live with: a malformed body is refused before the token is looked at; a time to live that is no whole number is dropped
in silence, one below 1 deletes; DELETE answers 200 for what was never there; `/kv/keys` and `/kv/watch` hide keys of
those names; a key is one encoded segment; a cursor is good for its own prefix; records outside ASCII are gone after a
restart.
"""

import argparse
import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

LARGEST_BODY = 10_485_760
LARGEST_LIMIT = 1000
DEFAULT_LIMIT = 100


class Refused(Exception):
    def __init__(self, status: int, **body: object) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Entries:
    """The table and its append-only log."""

    def __init__(self, log: Path) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        if log.exists():
            for line in log.read_text().splitlines():
                self._replay(json.loads(line))
        self._log = log.open("a")

    def _replay(self, record: dict[str, Any]) -> None:
        if not (record["key"] + (record.get("value") or "")).isascii():
            return  # its checksum does not match what was written
        if record["op"] == "put":
            self._entries[record["key"]] = record
        else:
            self._entries.pop(record["key"], None)

    def _append(self, record: dict[str, Any]) -> None:
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()

    def get(self, key: str) -> dict[str, Any] | None:
        entry = self._entries.get(key)
        if entry is not None and entry["expires_at"] is not None and entry["expires_at"] <= now_ms():
            del self._entries[key]
            return None
        return entry

    def put(self, key: str, value: str, expires_at: int | None) -> dict[str, Any]:
        old = self.get(key)
        now = now_ms()
        entry = {
            "op": "put",
            "key": key,
            "value": value,
            "version": old["version"] + 1 if old else 1,
            "created_at": old["created_at"] if old else now,
            "updated_at": now,
            "expires_at": expires_at,
        }
        self._entries[key] = entry
        self._append(entry)
        return entry

    def delete(self, key: str) -> None:
        self._entries.pop(key, None)
        self._append({"op": "delete", "key": key})

    def keys(self, prefix: str, after: str | None) -> list[str]:
        found = [key for key in sorted(self._entries) if key.startswith(prefix) and self.get(key)]
        return [key for key in found if after is None or key > after]


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def shown(entry: dict[str, Any]) -> dict[str, Any]:
    metadata = {name: entry[name] for name in ("version", "created_at", "updated_at", "expires_at")}
    return {"key": entry["key"], "value": entry["value"], "metadata": {**metadata, "lease_id": None}}


class Server:
    def __init__(self, entries: Entries, token: str, lists_keys: bool, read_only: bool) -> None:
        self._entries, self._token = entries, token
        self._lists_keys, self._read_only = lists_keys, read_only

    async def answer(self, request: web.Request) -> web.Response:
        try:
            body = await self._body(request)  # step 2 comes before step 3
            self._authorise(request)
            return await self._route(request, body)
        except Refused as refused:
            return web.json_response(refused.body, status=refused.status)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        if (request.content_length or 0) > LARGEST_BODY:
            raise Refused(413, error="Request body too large", max_bytes=LARGEST_BODY)
        raw = await request.read()
        if not raw:
            return {}
        if request.content_type != "application/json":
            raise Refused(415, error="Unsupported Media Type")
        try:
            value = json.loads(raw)
        except ValueError:
            raise Refused(400, error="Malformed JSON") from None
        return value if isinstance(value, dict) else {"_json": value}

    def _authorise(self, request: web.Request) -> None:
        if not self._token or request.raw_path in ("/", "/status", "/health"):
            return
        given = request.headers.get("Authorization", "")
        if self._token not in (given.removeprefix("Bearer "), request.headers.get("X-Toska-Token")):
            raise Refused(401, error="Unauthorized")

    async def _route(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        if self._read_only and request.method in ("PUT", "DELETE"):
            raise Refused(403, error="Read-only follower")
        segments = request.raw_path.partition("?")[0].strip("/").split("/")
        match request.method, segments:
            case "GET", ["health"]:
                return web.json_response({"status": "healthy"})
            case "GET", ["kv", "keys"] if self._lists_keys:
                return self._list(request)
            case "POST", ["kv", "mget"]:
                return self._mget(body)
            case "GET", ["kv", key]:
                return self._get(unquote(key))
            case "PUT", ["kv", key]:
                return self._put(request, unquote(key), body)
            case "DELETE", ["kv", key]:
                return self._delete(request, unquote(key), body)
        raise Refused(404, error="Not Found", path=request.path)

    def _get(self, key: str) -> web.Response:
        entry = self._entries.get(key)
        if entry is None:
            raise Refused(404, error="Not Found", key=key)
        return web.json_response(shown(entry), headers={"ETag": f'"{entry["version"]}"'})

    def _put(self, request: web.Request, key: str, body: dict[str, Any]) -> web.Response:
        given = {**request.query, **body}
        if not isinstance(given.get("value"), str):
            raise Refused(400, error="Value must be a string")
        self._check(request, key, given)
        ttl = whole(given.get("ttl_ms"))
        if ttl is not None and ttl <= 0:
            self._entries.delete(key)
            return web.json_response({"ok": True, "key": key})
        entry = self._entries.put(key, given["value"], None if ttl is None else now_ms() + ttl)
        return web.json_response({"ok": True, **shown(entry)}, headers={"ETag": f'"{entry["version"]}"'})

    def _delete(self, request: web.Request, key: str, body: dict[str, Any]) -> web.Response:
        self._check(request, key, {**request.query, **body})
        self._entries.delete(key)
        return web.json_response({"ok": True, "key": key})

    def _check(self, request: web.Request, key: str, given: dict[str, Any]) -> None:
        wants_absent = is_true(given.get("if_absent")) or request.headers.get("If-None-Match") == "*"
        wants_present = is_true(given.get("if_present"))
        match_header = request.headers.get("If-Match", "").strip('"')
        version = whole(given.get("if_version", match_header or None))
        if wants_absent and (wants_present or version is not None):
            raise Refused(400, error="Invalid conditions")
        entry = self._entries.get(key)
        fails = (
            (wants_absent and entry is not None)
            or (wants_present and entry is None)
            or (version is not None and (entry is None or entry["version"] != version))
        )
        if fails:
            raise Refused(412, error="Condition failed", key=key)

    def _mget(self, body: dict[str, Any]) -> web.Response:
        keys = body.get("keys")
        if not isinstance(keys, list):
            raise Refused(400, error="Keys must be a list")
        found = {key: self._entries.get(key) for key in keys}
        return web.json_response({"values": {key: entry and entry["value"] for key, entry in found.items()}})

    def _list(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        limit = whole(request.query.get("limit", DEFAULT_LIMIT))
        if limit is None or limit < 0:
            raise Refused(400, error="Invalid limit")
        if limit > LARGEST_LIMIT:
            raise Refused(400, error="Limit too large", max=LARGEST_LIMIT)
        keys = self._entries.keys(prefix, self._after(request.query.get("cursor"), prefix))
        page = keys[:limit]
        more = len(keys) > limit and bool(page)
        cursor = base64.urlsafe_b64encode(json.dumps({"k": page[-1], "p": prefix}).encode()) if more else None
        return web.json_response({"keys": page, "next_cursor": cursor and cursor.decode()})

    def _after(self, cursor: str | None, prefix: str) -> str | None:
        if cursor is None:
            return None
        try:
            read = json.loads(base64.urlsafe_b64decode(cursor))
            if read["p"] == prefix:
                return read["k"]
        except (ValueError, KeyError, TypeError):
            pass
        raise Refused(400, error="Invalid cursor")


def whole(value: object) -> int | None:
    """An integer or the text of one; anything else is passed over."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None


def is_true(value: object) -> bool:
    return value is True or value == "true"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--without-listing", action="store_true", help="as servers before they had /kv/keys")
    parser.add_argument("--read-only", action="store_true", help="a follower")
    given = parser.parse_args()
    server = Server(Entries(given.log), given.token, not given.without_listing, given.read_only)
    app = web.Application(client_max_size=LARGEST_BODY)
    app.router.add_route("*", r"/{path:[\s\S]*}", server.answer)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
