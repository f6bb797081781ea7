"""One GET over a connection of its own, lean enough for thousands per second.

A new connection each time is on purpose: a kept one would not notice that the instance accepts no others. The status
line decides; redirects are answers like any other and not followed (they may lead out of the mesh). What is read is
bounded in bytes and in time, so an endless head or body costs nothing but its own probe.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import httptools

from toska_mesh.healthmonitor.probes.result import from_os_error, printable
from toska_mesh.healthmonitor.targets import ProbePlan
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
LINGER_SECONDS = 0.5
"""How long the rest of an answer is read once the status is known, so that servers see no reset on a normal probe."""

DEFAULT_HEADERS: Mapping[str, str] = {"User-Agent": "toska-healthmonitor", "Accept": "*/*"}


def build_request(plan: ProbePlan, headers: Mapping[str, str]) -> bytes:
    """The request's bytes. `headers` are the operator's and replace ours of the same name, `Host` included."""
    fields = {"host": ("Host", plan.authority)}
    for name, value in (*DEFAULT_HEADERS.items(), *headers.items()):
        fields[name.lower()] = (name, value)
    lines = [f"GET {plan.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.values()), "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Exchange(asyncio.Protocol):
    """Sends the request, decides on the status line, reads on for a moment, then closes. Lives for one probe."""

    __slots__ = ("_body_bytes", "_deadline", "_head_bytes", "_linger", "_loop", "_parser", "_request", "_snippet",
                 "_status", "_transport", "done", "is_connected", "result")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes) -> None:
        self._loop = loop
        self._request = request
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._snippet = b""
        self._status = 0
        self._linger: asyncio.TimerHandle | None = None
        self.is_connected = False
        self.done: asyncio.Future[None] = loop.create_future()
        self.result: ProbeResult | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape, not by class
        self.is_connected = True
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.done.done() or self._parser is None:
            return
        if self._status == 0:
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # 101: the status is known, the rest is not HTTP
        except httptools.HttpParserError as exc:
            if self._status == 0:
                self._finish(
                    ProbeResult(Outcome.FAILURE, f"not an HTTP answer: {printable(str(exc))}", is_connected=True)
                )
            else:
                self._finish()  # the status counts; what follows it does not
            return
        if self._status:
            if self.result is None:
                self._decide()
            if self._body_bytes > MAX_BODY_BYTES:
                self._finish()
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._finish(
                ProbeResult(
                    Outcome.FAILURE, f"answer without an end of its head in {MAX_HEAD_BYTES} bytes", is_connected=True
                )
            )

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code() if self._parser is not None else 0
        if status >= 200 or status == 101:  # other 1xx only announce the answer (RFC 9110 section 15.2)
            self._status = status

    def on_body(self, body: bytes) -> None:
        if not self._snippet:
            self._snippet = body[:512]

    def on_message_complete(self) -> None:
        if self._status:
            self._decide()
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.result is None:
            if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
                self._finish(replace(from_os_error(exc), is_connected=True))
            else:
                self._finish(ProbeResult(Outcome.FAILURE, "connection closed before an answer", is_connected=True))
        else:
            self._finish()

    def close(self) -> None:
        """Let go of the connection at once. May be called any number of times."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._parser = None  # the parser holds us: without this every probe would wait for the garbage collector

    def _decide(self) -> None:
        if self.result is not None:
            return
        if 200 <= self._status < 300:
            self.result = ProbeResult(Outcome.SUCCESS, f"HTTP {self._status}", is_connected=True)
        else:
            words = printable(self._snippet.decode("utf-8", "replace"))
            message = f"HTTP {self._status}: {words}" if words else f"HTTP {self._status}"
            self.result = ProbeResult(Outcome.FAILURE, message, is_connected=True)
        self._linger = self._loop.call_later(LINGER_SECONDS, self._finish)

    def _finish(self, result: ProbeResult | None = None) -> None:
        if self.result is None:
            self.result = result
        if not self.done.done():
            self.done.set_result(None)


async def probe_http(
    plan: ProbePlan, address: str, request: bytes, deadline: float, tls: ssl.SSLContext | None = None
) -> ProbeResult:
    """Ask `address` (an IP address) for the plan's path until `deadline` (the loop's clock).

    TLS is verified against the plan's host, whatever the address is.
    """
    loop = asyncio.get_running_loop()
    exchange = _Exchange(loop, request)
    try:
        async with asyncio.timeout_at(deadline):
            if plan.tls:
                await loop.create_connection(
                    lambda: exchange, address, plan.port, ssl=tls, server_hostname=plan.host.rstrip(".")
                )
            else:
                await loop.create_connection(lambda: exchange, address, plan.port)
            await exchange.done
    except TimeoutError as exc:
        if exc.errno:  # ETIMEDOUT of the socket, not our deadline
            return from_os_error(exc)
        if exchange.result is None:
            what = "connected, but no answer" if exchange.is_connected else "no connection"
            return ProbeResult(Outcome.TIMEOUT, f"{what} in time", exchange.is_connected)
    except ssl.SSLCertVerificationError as exc:
        return ProbeResult(
            Outcome.FAILURE, f"TLS certificate refused: {printable(exc.verify_message or str(exc))}", is_connected=True
        )
    except ssl.SSLError as exc:
        return ProbeResult(Outcome.FAILURE, f"TLS handshake failed: {printable(exc.reason or str(exc))}")
    except OSError as exc:
        return from_os_error(exc)
    finally:
        exchange.close()
    return exchange.result or ProbeResult(Outcome.FAILURE, "connection closed before an answer")
