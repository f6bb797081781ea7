"""What a service calls another one with: `await orders.get("/items/1")`.

A client is light: it holds the name of a service and defaults for its calls, everything else belongs to the mesh.
Answers are aiohttp's own (`transport.Answer`), so nothing has to be learnt to read them.

What a call may be told is written down once, for the type checker and for the run: an option of aiohttp's that would
undo what the mesh decides (`timeout`, `ssl`, `proxy` …) is none of ours.
"""

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from toska_mesh.guard.patience import Patience, tightened
from toska_mesh.model import ServiceName
from toska_mesh.resilience import BreakerPolicy, RetryPolicy, is_idempotent
from toska_mesh.router import Service
from toska_mesh.sdk.bodies import NOTHING, Body, make_body
from toska_mesh.sdk.calls import Call, Sender
from toska_mesh.sdk.transport import Answer, Request

if TYPE_CHECKING:
    from aiohttp import BasicAuth
    from aiohttp.typedefs import LooseCookies, Query

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_MAX_REMEMBERED: Final = 64


class _Default:
    """Nothing was said: what the client has holds."""

    def __repr__(self) -> str:
        return "default"


DEFAULT: Final[Any] = _Default()


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What holds for calls unless a client or a call says otherwise. The values are the gateway's own defaults.

    Raises ValueError for values without a meaning.
    """

    timeout_seconds: float | None = 90.0
    """From the call to the head of its answer, all tries together; reading the answer whole is bound to it too. None:
    as long as whoever waits for us waits."""
    try_timeout_seconds: float = 30.0
    """The same for one try."""
    retries: int = 3
    """Tries after the first one."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """How long to wait before the same instance is tried again; its `count` is `retries`."""
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    slow_start_seconds: float = 10.0
    """How long an instance that joins a running service gets less than its share."""

    def __post_init__(self) -> None:
        _check_seconds("timeout_seconds", self.timeout_seconds)
        _check_seconds("try_timeout_seconds", self.try_timeout_seconds)
        if self.retries < 0:
            raise ValueError(f"retries {self.retries} is negative")

    @property
    def patience(self) -> Patience:
        """In the words of the guard."""
        total = float("inf") if self.timeout_seconds is None else self.timeout_seconds
        return Patience(min(self.try_timeout_seconds, total), total, replace(self.retry, count=self.retries))


def _check_seconds(name: str, seconds: float | None) -> None:
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{name} {seconds} is not above 0")


def changed(options: CallOptions, **said: Any) -> CallOptions:
    """The options with what was said; DEFAULT says nothing."""
    changes = {option: value for option, value in said.items() if value is not DEFAULT}
    return replace(options, **changes) if changes else options


class Limits:
    """How long and how often one client's calls are tried: its own limits, tightened by the service's metadata.

    What holds for a service stays the same as long as the service object does, so it is worked out once.
    """

    __slots__ = ("_known", "_of_known", "_options", "_own", "_service")

    def __init__(self, options: CallOptions) -> None:
        self._options = options
        self._own = options.patience
        self._service: Service | None = None
        self._known = self._own
        self._of_known: dict[tuple[Any, Any, Any], Patience] = {}

    @property
    def own_seconds(self) -> float:
        """The client's limit for a whole call."""
        return self._own.total_timeout

    def of(self, service: Service) -> Patience:
        """What holds for calls to it."""
        if service is not self._service:
            self._service = service
            self._known = tightened(self._own, _members(service))
            self._of_known = {}
        return self._known

    def overridden(
        self, timeout_seconds: float | None, try_timeout_seconds: float, retries: int
    ) -> tuple[Callable[[Service], Patience], float]:
        """The same for one call that says otherwise: what holds for a service, and the limit for the whole call."""
        if timeout_seconds is DEFAULT and retries is DEFAULT and try_timeout_seconds is DEFAULT:
            return self.of, self._own.total_timeout
        said = (timeout_seconds, try_timeout_seconds, retries)
        own = changed(
            self._options, timeout_seconds=timeout_seconds, try_timeout_seconds=try_timeout_seconds, retries=retries
        ).patience

        def of(service: Service) -> Patience:
            self.of(service)
            found = self._of_known.get(said)
            if found is None:
                if len(self._of_known) >= _MAX_REMEMBERED:
                    self._of_known = {}
                found = self._of_known[said] = tightened(own, _members(service))
            return found

        return of, own.total_timeout


class WireOptions(TypedDict, total=False):
    """What a call passes on to aiohttp as it is; the words are aiohttp's."""

    params: "Query"
    cookies: "LooseCookies | None"
    auth: "BasicAuth | None"
    allow_redirects: bool
    """Off unless it is said: a redirect leads out of the mesh."""
    max_redirects: int
    compress: str | bool | None
    chunked: bool | None
    expect100: bool
    skip_auto_headers: Iterable[str] | None
    auto_decompress: bool | None
    read_until_eof: bool
    read_bufsize: int | None
    max_line_size: int | None
    max_field_size: int | None


class CallArguments(WireOptions, total=False):
    """What `Client.get`, `Client.post` … take beside the path; `Client.request` says what each of them means."""

    data: object
    json: object
    headers: Mapping[str, str] | None
    key: str | None
    timeout_seconds: float | None
    try_timeout_seconds: float
    retries: int
    idempotent: bool | None
    raise_for_status: bool | None


_WIRE_OPTIONS: Final = frozenset(WireOptions.__annotations__)
_CALL_ARGUMENTS: Final = frozenset(CallArguments.__annotations__) | _WIRE_OPTIONS
_DECIDED: Final[Mapping[str, str]] = {
    "ssl": "`Mesh(tls=...)` says whom to believe",
    "server_hostname": "it is the instance's own",
    "proxy": "instances are asked directly",
    "proxy_auth": "instances are asked directly",
    "proxy_headers": "instances are asked directly",
    "middlewares": "tries are the mesh's, and counted",
}
"""Options of aiohttp's that are not a call's to say, and why."""


def _check_names(options: Iterable[str]) -> None:
    """Raises TypeError for what is no option of a call."""
    for name in options:
        if name not in _WIRE_OPTIONS:
            near = get_close_matches(name, _CALL_ARGUMENTS, 1)
            why = _DECIDED.get(name) or (f"did you mean {near[0]}?" if near else "Client.request says which there are")
            raise TypeError(f"{name} is no option of a call; {why}")


class Asked:
    """A call that was made: await it, or enter it with `async with`, which gives the answer back at the end."""

    __slots__ = ("_answer", "_call")

    def __init__(self, call: Coroutine[Any, Any, Answer]) -> None:
        self._call = call
        self._answer: Answer | None = None

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self._call.__await__()

    async def __aenter__(self) -> Answer:
        self._answer = await self._call
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.release()
            await self._answer.wait_for_close()


class Client:
    """Calls one service over HTTP: `await client.get("/items/1")`, or `async with client.get("/feed") as answer:`.

    Made by `Mesh.client`; may be kept and used by any number of tasks of the mesh's loop. `request` says what a call
    may be told. Each call goes to an instance that the service's strategy chooses; a try that failed is repeated at
    another one where that is safe.

    Calls give an `Answer`, also for 4xx and 5xx. Without an answer they raise an UpstreamError (`toska_mesh.errors`):
    NoInstanceError, CircuitOpenError, UpstreamConnectError or UpstreamTimeoutError.
    """

    def __init__(
        self,
        sender: Sender[Answer],
        service: ServiceName,
        options: CallOptions,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        raise_for_status: bool = False,
    ) -> None:
        self.service = service
        self._sender = sender
        self._limits = Limits(options)
        self._key = key
        self._headers = dict(headers)
        self._raise_for_status = raise_for_status

    def request(
        self,
        method: str,
        path: str,
        *,
        data: object = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        timeout_seconds: float | None = DEFAULT,
        try_timeout_seconds: float = DEFAULT,
        retries: int = DEFAULT,
        idempotent: bool | None = None,
        raise_for_status: bool | None = None,
        **options: Unpack[WireOptions],
    ) -> Asked:
        """Call `path` (relative to the service, with or without a leading slash).

        `timeout_seconds` bounds all tries together, `try_timeout_seconds` (30 without another word) a single one: an
        endpoint that takes longer needs both. `key` chooses the instance where the service balances by IPHash.
        `idempotent` says that the request may be carried out twice (or, False, that it may not) whatever its method is.
        `options` go to aiohttp: `params`, `compress`, `allow_redirects` (off: a redirect leads out of the mesh) and
        whatever else `WireOptions` lists; another one is a TypeError at once.
        Raises UpstreamError (`toska_mesh.errors`) in one of its kinds when there is no answer. An answer of 4xx or 5xx
        is one: where `raise_for_status` asks for it, it is raised as aiohttp's ClientResponseError, which is no
        UpstreamError.
        """
        method = method.upper()
        if options:
            _check_names(options)
        options.setdefault("allow_redirects", False)
        is_safe = is_idempotent(method) if idempotent is None else idempotent
        found = self._headers if headers is None else {**self._headers, **headers}
        chosen = self._key if key is None else key
        limits = self._limits.overridden(timeout_seconds, try_timeout_seconds, retries)
        if data is None and json is None:
            request = Request(method, _path(path), found, NOTHING, is_safe, options)
            call = Call(self._sender, self.service, request, chosen).run(*limits)
        else:
            call = self._call_with_body(method, _path(path), found, data, json, is_safe, options, chosen, limits)
        checks = self._raise_for_status if raise_for_status is None else raise_for_status
        return Asked(_checked(call) if checks else call)

    def get(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """GET; see `request`."""
        return self.request("GET", path, **options)

    def head(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """HEAD; see `request`."""
        return self.request("HEAD", path, **options)

    def options(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """OPTIONS; see `request`."""
        return self.request("OPTIONS", path, **options)

    def post(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """POST; see `request`."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """PUT; see `request`."""
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """PATCH; see `request`."""
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Unpack[CallArguments]) -> Asked:
        """DELETE; see `request`."""
        return self.request("DELETE", path, **options)

    async def _call_with_body(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: object,
        json: object,
        is_safe: bool,
        options: Mapping[str, Any],
        key: str | None,
        limits: tuple[Callable[[Service], Patience], float],
    ) -> Answer:
        body = await make_body(data, json)
        request = Request(method, path, _with_body(headers, body), body, is_safe, options)
        return await Call(self._sender, self.service, request, key).run(*limits)

    def __repr__(self) -> str:
        return f"<Client of {self.service}>"


async def _checked(call: Coroutine[Any, Any, Answer]) -> Answer:
    answer = await call
    answer.raise_for_status()
    return answer


def _with_body(headers: Mapping[str, str], body: Body) -> Mapping[str, str]:
    """What the body's own kind and length add, where the caller has not said it."""
    names = {name.lower() for name in headers}
    added = {}
    if body.content_type and "content-type" not in names:
        added["Content-Type"] = body.content_type
    if body.content_type and body.length is not None and not names & {"content-length", "transfer-encoding"}:
        added["Content-Length"] = str(body.length)
    return {**headers, **added}


def _members(service: Service) -> Iterable[Any]:
    instances = (standing.target.instance for standing in service.everything)
    return (instance for instance in instances if instance.is_mesh_member)


def _path(path: str) -> str:
    if path.startswith("/"):
        return path
    if "://" in path:
        raise ValueError(f"{path!r} is a URL; a call names a path of the service, such as /items/1")
    return f"/{path}"
