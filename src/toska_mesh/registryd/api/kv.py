"""`/v1/kv`: keys with flags, check-and-set and locks."""

from collections.abc import Callable
from uuid import UUID

import orjson

from toska_mesh.registryd import render
from toska_mesh.registryd.api.endpoint import Backend, Endpoint
from toska_mesh.registryd.api.http import JSON, ApiError, Call, Reply, json_reply
from toska_mesh.registryd.api.reads import Resource
from toska_mesh.registryd.changes import Topic
from toska_mesh.registryd.values import Entry

MAX_VALUE_BYTES = 512 * 1024
"""Consul's `kv_max_value_size`."""

_RAW_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Content-Security-Policy", "sandbox"))


class KvApi:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state = backend.state

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint("/v1/kv/", {"GET": self._get, "PUT": self._put, "DELETE": self._delete})]

    async def _get(self, call: Call) -> Reply:
        kv = self._state.kv
        if call.has("keys"):
            separator = call.param("separator")
            return await self._read_prefix(call, ("keys", separator), lambda found: _keys(found, call.name, separator))
        if call.has("recurse"):
            return await self._read_prefix(call, ("recurse",), lambda found: [render.entry(item) for item in found])
        blocking = call.blocking()
        _need_key(call)
        is_raw = call.has("raw")

        def body() -> bytes | None:
            entry = kv.get(call.name)
            if entry is None:
                return None
            return entry.value if is_raw else orjson.dumps([render.entry(entry)])

        resource = Resource(
            key=("kv", call.name, is_raw),
            topics=(("kv", call.name),),
            index=lambda: kv.key_index(call.name),
            body=body,
            content_type="text/plain" if is_raw else JSON,
            headers=_RAW_HEADERS if is_raw else (),
            tells_consistency=False,
        )
        return await self._backend.reads.answer(resource, blocking)

    async def _read_prefix(self, call: Call, kind: tuple[str, ...], shown: Callable[[list[Entry]], object]) -> Reply:
        kv, prefix = self._state.kv, call.name
        topics: tuple[Topic, ...] = (("kv under", prefix),)

        def body() -> bytes | None:
            found = kv.under(prefix)
            return orjson.dumps(shown(found)) if found else None

        resource = Resource(
            ("kv", prefix, *kind), topics, lambda: kv.prefix_index(prefix), body, tells_consistency=False
        )
        return await self._backend.reads.answer(resource, call.blocking())

    async def _put(self, call: Call) -> Reply:
        call.check_scope()
        _need_key(call)
        _refuse_both(call, ("cas", "acquire"), ("cas", "release"), ("acquire", "release"))
        flags = call.unsigned("flags") if call.has("flags") else 0
        index = call.unsigned("cas") if call.has("cas") else 0
        if len(call.body) > MAX_VALUE_BYTES:
            raise too_large(len(call.body))
        done = True
        if call.has("cas"):
            done = self._state.put_key_if_unchanged(call.name, call.body, flags, index)
        elif call.has("acquire"):
            done = self._acquire(call, flags)
        elif call.has("release"):
            if not call.param("release"):
                raise ApiError(500, "missing session")
            done = self._state.release_key(call.name, call.body, flags, call.param("release"))
        else:
            self._state.put_key(call.name, call.body, flags)
        await self._backend.durable()
        return json_reply(done)

    def _acquire(self, call: Call, flags: int) -> bool:
        session, now = call.param("acquire"), self._backend.clock()
        if not session:
            raise ApiError(500, "missing session")
        check_session_id(session)
        if self._state.kv.is_delayed(call.name, now):
            return False  # Consul looks at the delay before the session
        if self._state.sessions.get(session) is None:
            raise ApiError(500, f'invalid session "{session}"')
        return self._state.acquire_key(call.name, call.body, flags, session, now)

    async def _delete(self, call: Call) -> Reply:
        call.check_scope()
        _refuse_both(call, ("recurse", "cas"))
        done = True
        if call.has("recurse"):
            self._state.delete_keys_under(call.name)
        else:
            _need_key(call)
            if call.has("cas"):
                done = self._state.delete_key_if_unchanged(call.name, call.unsigned("cas"))
            else:
                self._state.delete_key(call.name)
        await self._backend.durable()
        return json_reply(done)


def too_large(size: int) -> ApiError:
    return ApiError(
        413,
        f"Request body({size} bytes) too large, max size: {MAX_VALUE_BYTES} bytes. "
        "See https://www.consul.io/docs/agent/options.html#kv_max_value_size.",
        {"Connection": "close"},
    )


def _need_key(call: Call) -> None:
    if not call.name:
        raise ApiError(400, "Missing key name")


def check_session_id(text: str) -> None:
    """Raises ApiError, in Consul's words, for what cannot be a session."""
    if len(text) != 36:
        raise ApiError(500, "failed session lookup: index error: UUID must be 36 characters")
    try:
        UUID(text)
    except ValueError as exc:
        raise ApiError(500, f"failed session lookup: index error: invalid UUID: {text}") from exc


def _refuse_both(call: Call, *pairs: tuple[str, str]) -> None:
    for first, second in pairs:
        if call.has(first) and call.has(second):
            # Consul lists the flags by name, whatever their order in the query.
            shown = "&".join(f"{name}={call.param(name)}" for name in sorted((first, second)))
            raise ApiError(400, f"Conflicting flags: {shown}")


def _keys(found: list[Entry], prefix: str, separator: str) -> list[str]:
    """All keys or, with a separator, the keys and "folders" one step below the prefix."""
    if not separator:
        return [entry.key for entry in found]
    keys: dict[str, None] = {}
    for entry in found:
        end = entry.key.find(separator, len(prefix))
        keys[entry.key if end < 0 else entry.key[: end + len(separator)]] = None
    return list(keys)
