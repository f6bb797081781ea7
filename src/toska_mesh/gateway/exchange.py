"""One request and its answer, through as many tries as it takes.

The exchange is the state machine between a client connection and the upstream connections that it tries. The common
path (route, pick, write to a pooled connection, relay, done) runs in callbacks, without a task or a timer. All of it
lives on one event loop.
"""

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from toska_mesh.gateway import problems
from toska_mesh.gateway.problems import Problem, problem_body
from toska_mesh.gateway.request import ALLOW, VIA, RequestHead
from toska_mesh.gateway.tunnel import Tunnel, TunnelEnd
from toska_mesh.gateway.upstream import Upstream, UpstreamConnection, date_line, passing_lines, status_line
from toska_mesh.guard import REPLAY_MAX_BYTES, has_alternative, plan_retry
from toska_mesh.resilience import RETRYABLE_STATUSES, Failure, Outcome, Permit, State, Try
from toska_mesh.router import Service

if TYPE_CHECKING:
    from toska_mesh.gateway.proxy import Proxy

PENDING_MAX_BYTES = 64 * 1024
"""What a client may send ahead while there is no upstream connection yet."""


class Phase(Enum):
    """Where an exchange stands."""

    BETWEEN = auto()
    """No try is under way: before the first one, or waiting for the next."""
    DIALLING = auto()
    WAITING = auto()
    """The request is with an upstream, of whose final answer nothing has come yet."""
    RELAYING = auto()
    TUNNEL = auto()
    LOCAL = auto()
    """The gateway itself answers."""
    FETCHING_KEYS = auto()
    """The token was signed with a key that is being looked up."""
    DONE = auto()


class Downstream(Protocol):
    """What an exchange needs of the client connection."""

    is_writing_paused: bool

    def send(self, data: bytes) -> None: ...

    def hold_reading(self, on_hold: bool) -> None:
        """Stop or resume taking the request's body from the client."""

    def finish(self, exchange: "Exchange", close: bool) -> None:
        """The answer is complete; the connection may be used for the next request unless `close`."""

    def cut(self) -> None:
        """End the connection such that nobody can take the answer for complete."""

    def hand_over(self) -> tuple[TunnelEnd, bytes]:
        """Leave the transport to a tunnel; gives it with what came too early."""


class Exchange:
    """See the module. Made when a request's head is complete."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_is_blamed",
        "_keeps_body",
        "_pause",
        "_retry_timer",
        "_sent_bytes",
        "_trailers",
        "attempts",
        "bytes_in",
        "bytes_out",
        "client",
        "client_speaks_11",
        "closes",
        "connection",
        "deadline",
        "expires",
        "head",
        "head_at",
        "is_head",
        "outcome",
        "permit",
        "phase",
        "policy",
        "proxy",
        "replaces_cors",
        "replaces_rate_limit",
        "request_complete",
        "response_fields",
        "route",
        "service",
        "start_line",
        "started",
        "status",
        "tried",
        "try_started",
        "upstream",
        "wants_upgrade",
    )

    expires: float
    """From `forward` on: when all tries together are given up. A client that takes its time to send the body does not
    use it up."""

    def __init__(self, proxy: "Proxy", client: Downstream, head: RequestHead, now: float) -> None:
        self.proxy = proxy
        self.client = client
        self.head = head
        self.started = now
        self.try_started = now
        self.head_at = 0.0
        self.deadline = 0.0
        """When the present try is given up, seconds on the loop's clock."""
        self.policy = proxy.unrouted
        """What holds for the request: from `forward` on that of its service, as it was then."""
        self.phase = Phase.BETWEEN
        self.is_head = head.method == b"HEAD"
        self.client_speaks_11 = head.is_11
        self.closes = not head.keep_alive
        self.request_complete = False
        self.wants_upgrade = head.upgrade is not None
        self.replaces_cors = False
        self.replaces_rate_limit = False
        self.response_fields = VIA
        """Our own header lines for the answer."""
        self.route = ""
        self.start_line = b""
        self.service: Service | None = None
        self.upstream: Upstream | None = None
        self.connection: UpstreamConnection | None = None
        self.permit = Permit(0)
        self.tried: tuple[Upstream, ...] = ()
        self.attempts = 0
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.outcome = ""
        """How it ended, for the log: `ok`, a problem's code, `client-left`, `upstream-truncated`, `drained`, `idle`."""
        self._trailers = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._keeps_body = head.is_idempotent
        self._sent_bytes = False
        self._is_blamed = False
        self._pause = 0.0
        self._retry_timer: asyncio.TimerHandle | None = None

    def begin(self, now: float) -> None:
        """Its turn comes only now: it waited for an answer before it, or for keys. Deadlines count from here."""
        self.started = now
        head = self.head
        if head.is_chunked:
            # What came meanwhile was held against the largest limit of any route. That of its own route looks at the
            # length in the head, and it has at least this one.
            head.content_length = self.bytes_in

    # -- tries

    def forward(self, service: Service, path: bytes) -> None:
        """Send the request to an instance of the service, as a request for `path`."""
        self.service = service
        self.policy = policy = service.policy
        self.expires = self.started + policy.total_timeout
        self.start_line = b"%b %b%b" % (self.head.method, path, self.head.query)
        self._try(self.started)

    def _try(self, now: float) -> None:
        proxy, service, head = self.proxy, self.service, self.head
        if service is None:
            self._refuse_unservable(now)
            return
        upstream = proxy.guard.choose(service, head.client_address, self.tried, head.is_idempotent, now)
        if upstream is None:
            self._refuse_unservable(now)
            return
        self.permit = upstream.circuit.epoch
        self.upstream = upstream
        self.attempts += 1
        self.try_started = now
        deadline = now + self.policy.response_timeout
        self.deadline = deadline if deadline < self.expires else self.expires
        self._is_blamed = False
        self._sent_bytes = False
        upstream.in_flight += 1
        upstream.waiting[self] = now
        connection = upstream.take_idle(now, not head.is_idempotent)
        if connection is not None:
            self._send_on(connection)
        else:
            self.phase = Phase.DIALLING
            proxy.dial(upstream, self)

    def on_dialled(self, connection: UpstreamConnection) -> None:
        """The dial that `_try` asked for is through."""
        self._send_on(connection)

    def on_dial_failed(self, why: str) -> None:
        self._try_failed(Failure.CONNECT, why)

    def _send_on(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        self.phase = Phase.WAITING
        connection.carry(self)
        upstream, head = connection.upstream, self.head
        self._sent_bytes = True
        if not head.has_body:
            connection.transport.write(self.start_line + upstream.address_line + head.fields)
            return
        body = self._body
        if self._body_bytes > REPLAY_MAX_BYTES:
            self._keeps_body = False
        if not self._keeps_body:
            self._body = []
            self._body_bytes = 0
        connection.transport.writelines([self.start_line, upstream.address_line, head.fields, *body])
        if self.request_complete:
            self._send_last_chunk(connection)
            return
        # Nobody owes us an answer while we still speak: the wait begins with the end of the request.
        upstream.waiting.pop(self, None)
        if not connection.is_writing_paused:
            self.client.hold_reading(False)

    def _send_last_chunk(self, connection: UpstreamConnection) -> None:
        if self.head.is_chunked:
            connection.transport.write(b"0\r\n" + self._trailers + b"\r\n")

    def _try_failed(self, failure: Failure, why: str) -> None:
        now = self.proxy.clock()
        self._blame(now)
        pause = self._plan_retry(failure, now)
        self._try_over(pause, failure, why, now)

    def _try_over(self, pause: float | None, failure: Failure, why: str, now: float) -> None:
        """The present try is lost; `pause` is what `_plan_retry` said."""
        upstream = self.upstream
        self.proxy.note_try_failed(self, failure, why)
        self._let_go_of_upstream()
        if upstream is not None:
            self.tried += (upstream,)
        self.phase = Phase.BETWEEN
        if pause is None:
            is_late = failure is Failure.TIMEOUT
            self.refuse(problems.UPSTREAM_TIMEOUT if is_late else problems.UPSTREAM_FAILED, "" if is_late else why)
        elif pause == 0.0:
            self._try(now)
        else:
            self._retry_timer = self.proxy.loop.call_later(pause, self._try_after_pause)

    def _try_after_pause(self) -> None:
        self._retry_timer = None
        self._look_service_up()
        self._try(self.proxy.clock())

    def _plan_retry(self, failure: Failure, now: float) -> float | None:
        """The pause before another try; None when there is none. Spends from the retry budget."""
        proxy = self.proxy
        service = self._look_service_up()
        attempt = Try(
            failure,
            idempotent=self.head.is_idempotent,
            bytes_sent=self._sent_bytes,
            body_kept=not self.head.has_body or self._keeps_body or not self._sent_bytes,
        )
        goes_elsewhere = service is not None and has_alternative(service, self.upstream, self.tried)
        return plan_retry(
            self.policy.retry,
            attempt,
            self.attempts - 1,
            goes_elsewhere,
            self.expires,
            proxy.retry_budget,
            proxy.rng,
            now,
        )

    def _look_service_up(self) -> Service | None:
        """The service as the present table has it: instances may have come and gone since the last try."""
        if self.service is not None:
            self.service = self.proxy.present(self.service)
        return self.service

    def _blame(self, now: float) -> None:
        """Count the failure against the instance, once per request however often it is tried there.

        A trial is counted all the same: whoever has it owes its outcome.
        """
        upstream = self.upstream
        if upstream is None or self._is_blamed:
            return
        if upstream not in self.tried or upstream.circuit.state is State.HALF_OPEN:
            self._is_blamed = True
            self.proxy.guard.settle(upstream, self.permit, Outcome.FAILURE, now)

    # -- what the guard asks (see toska_mesh.guard.Waiting)

    @property
    def is_dialling(self) -> bool:
        return self.phase is Phase.DIALLING

    def move_on(self, why: str) -> None:
        """Leave a silent instance for another, if that is safe and there is one; otherwise keep waiting."""
        if self.phase not in (Phase.DIALLING, Phase.WAITING):
            return
        service = self._look_service_up()
        if service is None or not has_alternative(service, self.upstream, self.tried):
            return
        now = self.proxy.clock()
        failure = Failure.CONNECT if self.is_dialling else Failure.TIMEOUT
        pause = self._plan_retry(failure, now)
        if pause is not None:
            # No failure for the breaker: suspicion keeps requests away as long as the silence lasts, and a slow
            # instance that does one thing at a time must not be switched off for it.
            self._withdraw(now)
            self._try_over(pause, failure, why, now)

    def give_up_waiting(self) -> None:
        """The deadline of this try has passed without an answer."""
        if self.phase is Phase.DIALLING:
            self._try_failed(Failure.CONNECT, "no connection in time")
        elif self.phase is Phase.WAITING:
            self._try_failed(Failure.TIMEOUT, "no answer in time")

    # -- the request's body (called by the client connection)

    def take_whole_body(self, body: bytes) -> None:
        """The body came with its head; called before anything is decided about the request."""
        self.bytes_in = self._body_bytes = len(body)
        self._body = [body]

    def on_request_data(self, data: bytes) -> None:
        """A part of the request's body."""
        self.bytes_in += len(data)
        if self.phase is Phase.DONE or self.phase is Phase.LOCAL:
            return
        limit = self.policy.max_request_bytes
        if limit and self.bytes_in > limit:
            self.refuse(problems.TOO_LARGE, f"the request body is larger than {limit} bytes")
            return
        if self.head.is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        connection = self.connection
        if connection is not None:
            connection.transport.write(data)
            if not self._keeps_body:
                return
        self._body.append(data)
        self._body_bytes += len(data)
        if connection is None:
            if self._body_bytes > PENDING_MAX_BYTES:
                self.client.hold_reading(True)
        elif self._body_bytes > REPLAY_MAX_BYTES:
            self._keeps_body = False
            self._body = []

    def on_request_end(self, trailers: bytes) -> None:
        """The request is complete; `trailers` are header lines that followed a chunked body."""
        self.request_complete = True
        self._trailers = trailers
        connection, upstream = self.connection, self.upstream
        if connection is None or upstream is None or not self.head.has_body:
            return
        self._send_last_chunk(connection)
        if self.phase is Phase.WAITING:
            now = self.proxy.clock()
            self.try_started = now
            self.expires = now + self.policy.total_timeout
            self.deadline = min(now + self.policy.response_timeout, self.expires)
            upstream.waiting[self] = now

    def on_client_left(self, outcome: str = "client-left") -> None:
        """The client is gone: what an upstream does for it is not wanted any more, and says nothing about it."""
        if self.phase is not Phase.DONE:
            self._cancel_try()
            self._record(outcome)

    def on_client_paused(self) -> None:
        if self.connection is not None:
            self.connection.pause_reading()

    def on_client_resumed(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()

    # -- the answer (called by the upstream connection)

    def on_interim(self, status: int, reason: bytes, fields: list[bytes]) -> None:
        """A 1xx answer; an HTTP/1.0 client must not see it (RFC 9110 section 15.2)."""
        upstream = self.upstream
        if upstream is not None:
            upstream.answered_at = self.proxy.clock()
            if upstream.is_suspect:
                self.proxy.guard.answered(upstream)
        if self.client_speaks_11:
            self.client.send(b"%b%b\r\n" % (status_line(status, reason), b"".join(fields)))

    def on_response_head(self, connection: UpstreamConnection, relayed: bytes) -> bytes | None:
        """Complete the head for the client; None when this answer is dropped because the request is tried again."""
        proxy = self.proxy
        upstream = connection.upstream
        now = proxy.clock()
        upstream.waiting.pop(self, None)
        upstream.answered_at = now
        if upstream.is_suspect:
            proxy.guard.answered(upstream)
        upstream.latency.observe(now - self.try_started)
        if connection.status in RETRYABLE_STATUSES:
            self._blame(now)
            pause = self._plan_retry(Failure.STATUS, now)
            if pause is not None:
                self._pause = pause
                return None
        elif not upstream.circuit.is_clean:
            self._end_trial(upstream, now)
        self.head_at = now
        self.status = connection.status
        self.phase = Phase.RELAYING
        if not self.request_complete:
            # An early answer: the rest of the request has nowhere to go, on either side.
            self.closes = True
            connection.keep_alive = False
        if connection.content_length < 0 and connection.has_body and not connection.chunked_to_client:
            self.closes = True  # an HTTP/1.0 client: the close is the end of the body
        return relayed + self.response_fields + self._connection_field()

    def _end_trial(self, upstream: Upstream, now: float) -> None:
        """An answer that begins decides a trial: its body may be a stream that goes on for hours."""
        if upstream.circuit.state is State.HALF_OPEN:
            self.proxy.guard.settle(upstream, self.permit, Outcome.SUCCESS, now)
            self.permit = upstream.circuit.epoch

    def on_response_data(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.client.send(data)

    def on_response_end(self) -> None:
        """The answer is complete; the connection has gone back to its pool or is closing."""
        upstream = self.upstream
        self.connection = None
        if upstream is not None:
            upstream.in_flight -= 1
            if not upstream.circuit.is_clean and not self._is_blamed:
                # "Not me, not now" from an instance that this request has blamed before is no news, least of all good.
                outcome = Outcome.CANCELLED if self.status in RETRYABLE_STATUSES else Outcome.SUCCESS
                self.proxy.guard.settle(upstream, self.permit, outcome, self.proxy.clock())
        self._record("ok")
        self.client.finish(self, self.closes)

    def on_answer_dropped(self) -> None:
        """The answer that `on_response_head` did not want is out of the way, its connection pooled or closed."""
        self.connection = None
        self._try_over(self._pause, Failure.STATUS, "the upstream said it cannot serve", self.proxy.clock())

    def on_connection_broken(self, why: str) -> None:
        """The connection ended, or what came on it was no valid answer."""
        if self.phase is Phase.RELAYING:
            self._blame(self.proxy.clock())
            self._record("upstream-truncated")
            self._let_go_of_upstream()
            self.client.cut()
        else:
            self._try_failed(Failure.RESET, why)

    def on_upstream_paused(self) -> None:
        self.client.hold_reading(True)

    def on_upstream_resumed(self) -> None:
        self.client.hold_reading(False)

    # -- tunnels (RFC 9110 section 7.8)

    def on_upgraded(self, connection: UpstreamConnection, early: bytes) -> None:
        """101: both sides speak something else from now on."""
        self.status = 101
        self.head_at = self.proxy.clock()
        self.phase = Phase.TUNNEL
        self.closes = True
        upstream = connection.upstream
        upstream.waiting.pop(self, None)
        upstream.answered_at = self.head_at
        self.proxy.guard.answered(upstream)
        if not upstream.circuit.is_clean:
            self.proxy.guard.settle(upstream, self.permit, Outcome.SUCCESS, self.head_at)
        headers = connection.headers
        protocol = next((value for name, value in reversed(headers) if name.lower() == b"upgrade"), b"")
        self.client.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n%b%b\r\n"
            % (protocol, b"".join(passing_lines(headers)), self.response_fields)
        )
        self.connection = None
        client, from_client = self.client.hand_over()
        Tunnel(self.proxy, self, client, connection.hand_over()).open(from_client, early)

    def on_tunnel_over(self, outcome: str) -> None:
        self._record(outcome)
        self._let_go_of_upstream()

    # -- the end

    def answer(self, status: int, fields: bytes, body: bytes, outcome: str) -> None:
        """Answer from the gateway itself. `fields` are header lines beside the framing."""
        if self.phase is Phase.DONE:
            return
        self.status = status
        self.head_at = self.proxy.clock()
        if not self.request_complete or self.proxy.is_draining:
            self.closes = True
        length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
        head = (
            status_line(status, b"") + date_line() + fields + self.response_fields + length + self._connection_field()
        )
        self.on_response_data(head + (b"" if self.is_head else body))
        self._record(outcome)
        self.client.finish(self, self.closes)

    def refuse(self, problem: Problem, detail: str = "", fields: bytes = b"") -> None:
        """Answer with a problem document, whatever was under way; once an answer has begun, cut it off instead."""
        if self.phase is Phase.DONE:
            return
        has_begun = self.phase is Phase.RELAYING
        self._cancel_try()
        if has_begun:
            self._record(problem.code)
            self.client.cut()
            return
        if problem is problems.METHOD_NOT_ALLOWED:
            fields += ALLOW  # RFC 9110 section 15.5.6
        body = problem_body(problem, detail, self.head.request_id)
        self.answer(problem.status, b"Content-Type: application/problem+json\r\n" + fields, body, problem.code)

    def _refuse_unservable(self, now: float) -> None:
        service = self.service
        if service is None or not service.targets:
            self.refuse(problems.NO_INSTANCE, "", b"Retry-After: 1\r\n")
            return
        seconds = self.proxy.guard.retry_after_seconds(service, now)
        self.refuse(problems.BREAKER_OPEN, "", b"Retry-After: %d\r\n" % max(1, round(seconds)))

    def _connection_field(self) -> bytes:
        if self.closes or self.proxy.is_draining:
            self.closes = True
            return b"Connection: close\r\n\r\n"
        return b"\r\n" if self.client_speaks_11 else b"Connection: keep-alive\r\n\r\n"

    def _cancel_try(self) -> None:
        """Stop whatever is under way upstream, without a judgement on it."""
        upstream = self.upstream
        if upstream is not None:
            self._withdraw(self.proxy.clock())
            self._let_go_of_upstream()
            self.tried += (upstream,)  # so that the log can name it
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def _withdraw(self, now: float) -> None:
        """Give the permit of the present try back, without a judgement."""
        upstream = self.upstream
        if upstream is not None and not upstream.circuit.is_clean and not self._is_blamed:
            self.proxy.guard.settle(upstream, self.permit, Outcome.CANCELLED, now)

    def _let_go_of_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.in_flight -= 1
            upstream.waiting.pop(self, None)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop_exchange()

    def _record(self, outcome: str) -> None:
        self.phase = Phase.DONE
        self.outcome = outcome
        self.proxy.record(self)
