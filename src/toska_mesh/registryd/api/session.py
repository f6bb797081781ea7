"""`/v1/session`: who may hold locks, for how long, and hanging on what."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from toska_mesh.registryd import render
from toska_mesh.registryd.api.bodies import read
from toska_mesh.registryd.api.endpoint import Backend, Endpoint
from toska_mesh.registryd.api.http import ApiError, Call, Reply, json_reply
from toska_mesh.registryd.api.kv import check_session_id
from toska_mesh.registryd.api.reads import Resource
from toska_mesh.registryd.catalog import NODE_HEALTH_CHECK
from toska_mesh.registryd.changes import Topic
from toska_mesh.registryd.durations import NANOSECONDS, format_duration, parse_duration
from toska_mesh.registryd.gojson import Struct, anything, named, nanoseconds, text, texts
from toska_mesh.registryd.values import Behavior, Session, Status

MIN_TTL_NS = 10 * NANOSECONDS
MAX_TTL_NS = 86_400 * NANOSECONDS
_DEFAULT_LOCK_DELAY_NS = 15 * NANOSECONDS
_PLAIN_SECONDS_BELOW = 1000
"""A lock delay given as a smaller number is meant in seconds, not nanoseconds."""

_SERVICE_CHECK = Struct("structs.ServiceCheck", named(id=text, namespace=text), refuses_unknown=False)
_SESSION = Struct(
    "structs.Session",
    named(
        id=anything,
        name=text,
        node=text,
        lock_delay=anything,
        behavior=text,
        ttl=text,
        checks=texts,
        node_checks=texts,
        service_checks=_SERVICE_CHECK.read_list,
    ),
    refuses_unknown=False,
)


class SessionApi:
    """`new_id` makes a session's id."""

    def __init__(self, backend: Backend, new_id: Callable[[], uuid.UUID]) -> None:
        self._backend = backend
        self._state = backend.state
        self._new_id = new_id

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/session/create", {"PUT": self._create}),
            Endpoint("/v1/session/destroy/", {"PUT": self._destroy}),
            Endpoint("/v1/session/renew/", {"PUT": self._renew}),
            Endpoint("/v1/session/info/", {"GET": self._info}),
            Endpoint("/v1/session/node/", {"GET": self._of_node}),
            Endpoint("/v1/session/list", {"GET": self._list}),
        ]

    async def _create(self, call: Call) -> Reply:
        call.check_scope()
        found = read(_SESSION, call.decoded()) if call.body else {}
        node = found.get("node") or self._backend.node.name
        if node.lower() != self._backend.node.name.lower():
            raise ApiError(500, "Missing node registration")
        behavior = found.get("behavior") or Behavior.RELEASE
        if behavior not in tuple(Behavior):
            raise ApiError(500, f"Invalid Behavior setting '{behavior}'")
        ttl = found.get("ttl", "")
        session = Session(
            id=str(self._new_id()),
            name=found.get("name", ""),
            behavior=Behavior(behavior),
            lock_delay_ns=_lock_delay(found.get("lock_delay")),
            ttl=ttl,
            ttl_seconds=_ttl(ttl) / NANOSECONDS,
            node_checks=_node_checks(found),
            service_checks=_service_checks(found),
        )
        for check_id in (*session.node_checks, *(session.service_checks or ())):
            self._need_alive(check_id)
        self._state.create_session(session, self._backend.clock())
        await self._backend.durable()
        return json_reply({"ID": session.id})

    def _need_alive(self, check_id: str) -> None:
        check = self._state.catalog.check(check_id)
        if check is None:
            raise ApiError(500, f"Missing check '{check_id}' registration")
        if check.status is Status.CRITICAL:
            raise ApiError(500, f"Check '{check_id}' is in critical state")

    async def _destroy(self, call: Call) -> Reply:
        session = self._named(call)
        if session is not None:
            self._state.destroy_session(session, self._backend.clock())
        await self._backend.durable()
        return json_reply(True)

    async def _renew(self, call: Call) -> Reply:
        session = self._named(call)
        if session is None:
            raise ApiError(404, f"Session id '{call.name}' not found")
        self._state.renew_session(session, self._backend.clock())
        return json_reply([render.session(session, self._backend.node)])

    def _named(self, call: Call) -> Session | None:
        call.check_scope()
        if not call.name:
            raise ApiError(400, "Missing session")
        check_session_id(call.name)
        return self._state.sessions.get(call.name)

    async def _info(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing session")
        check_session_id(call.name)

        def found() -> Iterable[Session]:
            session = self._state.sessions.get(call.name)
            return (session,) if session else ()

        def index() -> int:
            session = self._state.sessions.get(call.name)
            return max(session.modify_index, self._backend.node_index) if session else self._state.sessions.index

        return await self._read(call, (("session", call.name),), index, found)

    async def _list(self, call: Call) -> Reply:
        sessions = self._state.sessions
        return await self._read(call, (("sessions", ""),), lambda: sessions.index, sessions.all)

    async def _of_node(self, call: Call) -> Reply:
        if not call.name:
            raise ApiError(400, "Missing node name")
        is_ours = call.name.lower() == self._backend.node.name.lower()
        sessions = self._state.sessions
        found = sessions.all if is_ours else tuple
        return await self._read(call, (("sessions", ""),), lambda: sessions.index, found)

    async def _read(
        self, call: Call, topics: tuple[Topic, ...], index: Callable[[], int], found: Callable[[], Iterable[Session]]
    ) -> Reply:
        def body() -> bytes:
            return orjson.dumps([render.session(session, self._backend.node) for session in found()])

        resource = Resource((call.path,), topics, index, body, tells_consistency=False)
        return await self._backend.reads.answer(resource, call.blocking())


def _ttl(text_: str) -> int:
    """Nanoseconds; 0 = for ever."""
    if not text_:
        return 0
    try:
        length = parse_duration(text_)
    except ValueError as exc:
        raise ApiError(500, f"Session TTL '{text_}' invalid: {exc}") from exc
    if length and not MIN_TTL_NS <= length <= MAX_TTL_NS:
        limits = f"[{format_duration(MIN_TTL_NS)}={format_duration(MAX_TTL_NS)}]"
        raise ApiError(500, f"Invalid Session TTL '{length}', must be between {limits}")
    return length


def _lock_delay(value: object) -> int:
    if isinstance(value, str):
        try:
            return max(parse_duration(value), 0)
        except ValueError as exc:
            raise ApiError(400, f"Request decode failed: {exc}") from exc
    number = nanoseconds(value)
    if number is not None:
        return max(number * NANOSECONDS if number < _PLAIN_SECONDS_BELOW else number, 0)
    return _DEFAULT_LOCK_DELAY_NS if value is None else 0


def _node_checks(found: Mapping[str, Any]) -> tuple[str, ...]:
    """`Checks` is the older name and wins when both are there; nothing said means the node's health."""
    for name in ("checks", "node_checks"):
        if name in found:
            return tuple(found[name])
    return (NODE_HEALTH_CHECK,)


def _service_checks(found: Mapping[str, Any]) -> tuple[str, ...] | None:
    checks = found.get("service_checks")
    return None if checks is None else tuple(check.get("id", "") for check in checks)
