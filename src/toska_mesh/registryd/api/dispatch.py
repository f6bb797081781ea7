"""From a request to its endpoint, and what is common to all: token, methods, unknown paths, pretty printing."""

import hmac
import posixpath
import uuid
from collections.abc import Callable
from html import escape
from urllib.parse import quote, unquote_to_bytes

import orjson

from toska_mesh.errors import MeshError
from toska_mesh.registryd.api.agent import AgentApi
from toska_mesh.registryd.api.catalog import CatalogApi
from toska_mesh.registryd.api.endpoint import Backend, Endpoint
from toska_mesh.registryd.api.http import JSON, TEXT, ApiError, Call, Reply, json_reply
from toska_mesh.registryd.api.kv import MAX_VALUE_BYTES, KvApi, too_large
from toska_mesh.registryd.api.session import SessionApi

MAX_BODY_BYTES = 1024 * 1024
"""For everything but keys' values, which have Consul's own limit."""

_OPEN_TO_ALL = ("/v1/status/leader", "/v1/status/peers")
"""Consul asks for no token here."""


class Api:
    """Answers requests. `token` empty = everybody may do everything."""

    def __init__(self, backend: Backend, token: str, new_id: Callable[[], uuid.UUID]) -> None:
        self._backend = backend
        self._token = token.encode()
        parts = (
            AgentApi(backend).endpoints(),
            CatalogApi(backend).endpoints(),
            KvApi(backend).endpoints(),
            SessionApi(backend, new_id).endpoints(),
            self._status_endpoints(),
        )
        self._endpoints = {endpoint.path: endpoint for part in parts for endpoint in part}

    def _status_endpoints(self) -> list[Endpoint]:
        async def leader(call: Call) -> Reply:
            return json_reply(self._backend.node.leader)

        async def peers(call: Call) -> Reply:
            return json_reply([self._backend.node.leader])

        return [Endpoint("/v1/status/leader", {"GET": leader}), Endpoint("/v1/status/peers", {"GET": peers})]

    def body_limit(self, method: str, target: str) -> int:
        """How many bytes of a request's body are worth reading."""
        return MAX_VALUE_BYTES if method == "PUT" and target.startswith("/v1/kv/") else MAX_BODY_BYTES

    def too_large(self, target: str, size: int) -> Reply:
        if target.startswith("/v1/kv/"):
            return too_large(size).reply
        text = f"Request body too large, max size: {MAX_BODY_BYTES} bytes."
        return ApiError(413, text, {"Connection": "close"}).reply

    async def answer(self, method: str, target: str, token: str | None, body: bytes) -> Reply:
        """`target` is the request's target as sent; `token` what the headers carry."""
        raw_path, _, query = target.partition("?")
        path = raw_path
        if "%" in path or not path.isascii():
            path = unquote_to_bytes(raw_path.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")
        if not query.isascii():  # bytes that should have been percent-encoded
            query = query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        call = Call(method, path, query, body, self._backend.node.datacenter)
        try:
            if redirect := self._redirect(call):
                return redirect
            endpoint, call.name = self._find(path)
            if method == "OPTIONS":
                return Reply(200, headers={"Allow": _allow(endpoint)})
            handler = endpoint.methods.get(method)
            if handler is None:
                raise ApiError(405, f"method {method} not allowed", {"Allow": _allow(endpoint)})
            if self._token and path not in _OPEN_TO_ALL:
                self._check_token(call.param("token") or token)
            reply = await handler(call)
        except ApiError as exc:
            return exc.reply
        except MeshError as exc:
            return Reply(500, str(exc).encode(), TEXT)
        if query and reply.content_type == JSON and "pretty" in call.params:
            # Two spaces instead of Consul's four: the same JSON.
            return Reply(reply.status, _pretty(reply.body), JSON, reply.headers)
        return reply

    def _find(self, path: str) -> tuple[Endpoint, str]:
        endpoint = self._endpoints.get(path)
        if endpoint is not None:
            return endpoint, ""
        parts = path.split("/", 5)
        for length in (5, 4, 3):
            if len(parts) > length:
                prefix = "/".join(parts[:length]) + "/"
                endpoint = self._endpoints.get(prefix)
                if endpoint is not None:
                    return endpoint, path[len(prefix) :]
        raise ApiError(
            404,
            f"the embedded registry does not serve {path}: it covers Consul's agent, catalog, health, kv, session and "
            "status endpoints for one machine; for events, transactions, ACLs, prepared queries, Connect and "
            "clusters point CONSUL_ADDRESS at a Consul agent",
        )

    def _redirect(self, call: Call) -> Reply | None:
        """Go's ServeMux sends `//` and dot segments to the clean path, and a folder without its slash to the folder."""
        path = call.path
        clean = path
        if "//" in path or "/." in path:
            clean = posixpath.normpath("/" + path.lstrip("/")) + ("/" if path.endswith(("/", "/.", "/..")) else "")
        if clean not in self._endpoints and clean + "/" in self._endpoints:
            clean += "/"
        if clean == path:
            return None
        location = quote(clean, safe="/:@!$&'()*+,;=~") + (f"?{call.query}" if call.query else "")
        if call.method not in ("GET", "HEAD"):
            return Reply(301, headers={"Location": location})
        body = f'<a href="{escape(location)}">Moved Permanently</a>.\n\n'.encode()
        return Reply(301, body, "text/html; charset=utf-8", {"Location": location})

    def _check_token(self, given: str | None) -> None:
        if not given:
            raise ApiError(403, "Permission denied")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            raise ApiError(403, "ACL not found")


def _allow(endpoint: Endpoint) -> str:
    return ",".join(("OPTIONS", *endpoint.methods))


def _pretty(body: bytes) -> bytes:
    return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
