"""One try of a call over HTTP: send it to this instance, give the answer or say how it failed.

`Transport` is the seam between the decisions (`calls`) and the wire; `AiohttpTransport` is the one implementation, on a
session per kind of request. What a transport has to know is whether a byte of the request may have reached the
instance: it tells the call when a connection is there (`Progress.connected`), and until then nothing was sent.

aiohttp repeats an idempotent request by itself when a kept connection turns out dead. That would be a try that nobody
counts, so it is switched off, and where that does not work, seen: each connection that is taken is told.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import aiohttp
from yarl import URL

from toska_mesh.errors import UpstreamError, UpstreamTimeoutError
from toska_mesh.guard import Guarded
from toska_mesh.model import Endpoint, Instance
from toska_mesh.resilience import BreakerPolicy, Failure, Outcome, RecentLatency
from toska_mesh.sdk.bodies import Body

KEEP_ALIVE_SECONDS: Final = 30.0
"""Less than most servers' own: who closes first does not have to guess."""

FRESH_SECONDS: Final = 1.0
"""For what cannot be sent twice: a connection idle for longer may be closing at the other side just now."""

IDLE_SECONDS: Final = 60.0
"""Longest pause of an answer that has begun, as the gateway's."""

CONNECT_SECONDS: Final = 5.0
DNS_SECONDS: Final = 5


class TryFailedError(Exception):
    """No answer came. The text says why, without naming the instance."""

    def __init__(self, failure: Failure, why: str) -> None:
        super().__init__(why)
        self.failure = failure
        self.why = why


class Request(NamedTuple):
    """What a call sends, whichever instance gets it. A tuple, because one is made for every call."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    is_idempotent: bool
    options: Mapping[str, Any]
    """Passed on to the transport as they are: `params`, `allow_redirects`, …"""
    is_open_ended: bool = False
    """A stream that counts as answered once it is open: how long that took says nothing about the service."""


class Progress(Protocol):
    """Whom a transport tells how far a try has come."""

    def connected(self) -> None:
        """A connection is there: from now on bytes may reach the instance."""


class Reply(Protocol):
    """An answer whose head has come. The caller gets this very object: what is not for him has a name that says so."""

    @property
    def status(self) -> int: ...

    def _mesh_on_over(self, report: Callable[[Outcome], None]) -> None:
        """Call `report` once when the body has ended: whole, broken off (failure), or left (cancelled)."""

    def _mesh_drop(self) -> None:
        """Nobody wants it."""

    def _mesh_belongs_to(self, instance: Instance, attempts: int, deadline: float) -> None:
        """Tell the caller who answered, in which try; `deadline` holds for reading it whole."""


R_co = TypeVar("R_co", bound=Reply, covariant=True)


class Remote(Guarded):
    """One instance as a caller sees it: the router's target, its guard, and where requests go."""

    __slots__ = ("base",)

    def __init__(
        self, instance: Instance, policy: BreakerPolicy, latency: RecentLatency, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(instance, policy, latency, tls)
        self.base = f"{'https' if tls is not None else 'http'}://{instance.endpoint.authority}"


class Transport(Protocol[R_co]):
    """See the module."""

    async def send(self, request: Request, target: Any, headers: Mapping[str, str], progress: Progress) -> R_co:
        """Raises TryFailedError when there is no answer. The deadline is the caller's."""


class Answer(aiohttp.ClientResponse):
    """aiohttp's `ClientResponse` (`status`, `headers`, `await json()`, `content` …), with who gave it.

    `mesh_instance`: who answered (`.id`, `.endpoint`, `.metadata` …). `attempts`: in which try, counted from 1.

    Reading it whole (`read`, `text`, `json`) is bound to the call's deadline and raises UpstreamTimeoutError or
    UpstreamError (`toska_mesh.errors`); a stream (`content`) lives as long as it moves. `raise_for_status()` raises
    aiohttp's ClientResponseError, which is no UpstreamError: there is an answer.
    """

    mesh_instance: Instance
    """Who answered."""
    attempts = 0
    """In which try, counted from 1."""
    _mesh_deadline = float("inf")
    _mesh_report: Callable[[Outcome], None] | None = None

    def _mesh_on_over(self, report: Callable[[Outcome], None]) -> None:
        connection = self.connection
        if connection is None:
            report(Outcome.SUCCESS)  # a short answer: all of it came with its head
            return
        self._mesh_report = report
        connection.add_callback(self._mesh_over)
        protocol = connection.protocol
        if protocol is not None:
            # Only here: a timer for every read of every short answer would cost more than all that is ours.
            protocol.read_timeout = IDLE_SECONDS
            protocol.start_timeout()

    def _mesh_over(self) -> None:
        report, self._mesh_report = self._mesh_report, None
        if report is None:
            return
        if self.content.exception() is not None:
            report(Outcome.FAILURE)
        else:
            report(Outcome.SUCCESS if self.content.is_eof() else Outcome.CANCELLED)

    def release(self) -> Any:
        """Give the connection back, or close it when there is more to come that nobody wants."""
        self._mesh_over()  # before aiohttp puts an exception of its own on what is left: leaving is nobody's failure
        return super().release()

    def close(self) -> None:
        """Close the connection."""
        self._mesh_over()
        super().close()

    def _mesh_drop(self) -> None:
        self.release()

    def _mesh_belongs_to(self, instance: Instance, attempts: int, deadline: float) -> None:
        self.mesh_instance = instance
        self.attempts = attempts
        self._mesh_deadline = deadline

    def read(self) -> Coroutine[Any, Any, bytes]:
        """The whole body. Raises UpstreamTimeoutError after the call's deadline, UpstreamError when it breaks off."""
        return super().read() if self.closed or not self.attempts else self._read_in_time()

    async def _read_in_time(self) -> bytes:
        try:
            async with asyncio.timeout_at(self._mesh_deadline):
                return await super().read()
        except TimeoutError:
            self.close()
            raise self._mesh_error(UpstreamTimeoutError, "the answer had begun and was not complete in time") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
            raise self._mesh_error(UpstreamError, f"the answer broke off: {_words(error)}") from error

    def _mesh_error(self, kind: type[UpstreamError], why: str) -> UpstreamError:
        instance = self.mesh_instance
        return kind(
            f"{instance.service}: {self.method} {self.url.path} at {instance.id}: {why}",
            service=instance.service,
            instance=instance.id,
            attempts=self.attempts,
        )


_progress: ContextVar[Progress] = ContextVar("toska_call")


class TellingConnector(aiohttp.BaseConnector):
    """Tells the call that a connection is there. It runs in the caller's own task, so the call is found by context."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        _progress.get().connected()
        return connection


class _TcpConnector(TellingConnector, aiohttp.TCPConnector):
    pass


class AiohttpTransport:
    """`Transport` over aiohttp. Use it with `async with`; one event loop.

    There are two sessions: what may be sent twice goes over connections that are kept for long, everything else only
    over those that were in use within the last second.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession]

    @property
    def tls(self) -> ssl.SSLContext:
        """For instances with `scheme=https`: the system's authorities, unless others were given."""
        if self._tls is None:
            self._tls = ssl.create_default_context()  # takes long, and often nobody needs it
        return self._tls

    async def __aenter__(self) -> Self:
        self._sessions = (
            _session(self.make_connector(FRESH_SECONDS)),
            _session(self.make_connector(KEEP_ALIVE_SECONDS)),
        )
        return self

    def make_connector(self, keep_seconds: float) -> TellingConnector:
        """How connections are made; another wire has another."""
        return _TcpConnector(limit=0, keepalive_timeout=keep_seconds, ttl_dns_cache=DNS_SECONDS)

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions:
            await session.close()

    async def send(self, request: Request, target: Remote, headers: Mapping[str, str], progress: Progress) -> Answer:
        """See `Transport`."""
        token = _progress.set(progress)
        session = self._sessions[request.is_idempotent]
        try:
            return await session.request(  # type: ignore[return-value]  # the session makes nothing else
                request.method,
                target.base + request.path,
                data=request.body.payload(),
                headers=headers,
                ssl=target.tls or True,
                **request.options,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise TryFailedError(Failure.CONNECT, _words(error)) from error
        except aiohttp.ServerTimeoutError as error:
            raise TryFailedError(Failure.TIMEOUT, "nothing came for too long") from error
        except aiohttp.ClientResponseError as error:
            if error.history or isinstance(error, aiohttp.TooManyRedirects):
                raise
            raise TryFailedError(
                Failure.RESET, f"what came is no HTTP answer: {error.message or type(error).__name__}"
            ) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            if not _is_url(target.base):
                raise TryFailedError(Failure.CONNECT, "the registered address is no host name") from error
            raise ValueError(f"{request.path!r} is no path of a request") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise TryFailedError(Failure.RESET, _words(error)) from error
        finally:
            _progress.reset(token)  # the caller's context must not keep the request alive


def _session(connector: TellingConnector) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=connector,
        response_class=Answer,
        cookie_jar=aiohttp.DummyCookieJar(),  # one service's answer says nothing about the next call
        # Deadlines are the call's; these bound what it cannot see.
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
    )
    if hasattr(session, "_retry_connection"):
        session._retry_connection = False
    return session


def _is_url(base: str) -> bool:
    try:
        host = URL(base).raw_host
        return host is not None and bool(host.encode("idna"))
    except ValueError:  # UnicodeError is one
        return False


def _words(error: BaseException) -> str:
    """Why, for people, without addresses."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"certificate verification failed: {_verify_message(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the registered name has no address: {error.os_error.strerror or _said(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error
        if isinstance(reason, ssl.SSLError):
            return f"the TLS handshake failed: {(reason.reason or 'no reason').replace('_', ' ').lower()}"
        return f"cannot connect: {os.strerror(reason.errno) if reason.errno else _said(reason)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the instance closed the connection"
    if isinstance(error, OSError) and error.errno:
        return f"the connection broke: {os.strerror(error.errno)}"
    return f"the connection broke: {_said(error)}"


def _said(error: BaseException) -> str:
    """What it says of itself; some say nothing."""
    return str(error) or type(error).__name__


def _verify_message(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else str(error)


class StreamDialler:
    """`Dials` for the guard's probes: a new connection each, lookup and TLS included."""

    async def dial(
        self, endpoint: Endpoint, tls: ssl.SSLContext | None, make: Callable[[], Any]
    ) -> tuple[asyncio.Transport, Any]:
        host = endpoint.host
        name = host.rstrip(".").partition("%")[0] if tls is not None else None
        loop = asyncio.get_running_loop()
        return await loop.create_connection(
            make, host, endpoint.port, ssl=tls, server_hostname=name, family=socket.AF_UNSPEC
        )
