"""A load that does not wait: requests leave at moments fixed beforehand, however slow the answers are.

wrk sends the next request when the last one is answered, so a stall of the server hides all the requests that would
have been sent meanwhile ("coordinated omission"). Here each request has its moment, drawn from a Poisson process, and
its latency counts from that moment; when all connections are taken it waits, and the waiting counts. The generator's
own lateness counts too: it is the same for all, and `measure` against the backend alone shows how much it is.

It answers to nothing but HTTP/1.1 with Content-Length and is written on sockets and epoll for its own speed.
"""

import ctypes
import gc
import random
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.support.results import percentile

PATIENCE_SECONDS = 5.0
"""How long answers may still arrive after the last request was due."""

_PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, slots=True)
class Latencies:
    """In milliseconds since each request's scheduled moment; a failed one has no latency and counts as failed."""

    requests: int
    failed: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    sent_late_p99_ms: float
    """How late the generator itself was, connections being free or not."""

    def figures(self) -> dict[str, float]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "p50_ms": round(self.p50_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "p999_ms": round(self.p999_ms, 3),
            "max_ms": round(self.max_ms, 3),
            "sent_late_p99_ms": round(self.sent_late_p99_ms, 3),
        }

    def __str__(self) -> str:
        failed = f", {self.failed} FAILED" if self.failed else ""
        return f"p50 {self.p50_ms:.2f}, p99 {self.p99_ms:.2f}, p99.9 {self.p999_ms:.2f} ms{failed}"


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments in seconds from the start, as independent clients would choose them: the same for the same seed."""
    rng = random.Random(seed)
    moments: list[float] = []
    moment = rng.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += rng.expovariate(rate)
    return moments


def reduce_latencies(seconds: Sequence[float], lateness: Sequence[float], failed: int) -> Latencies:
    """Percentiles of what was measured; `seconds` must not be empty."""
    ordered, late = sorted(seconds), sorted(lateness)
    p50, p99, p999 = (percentile(ordered, fraction) * 1000 for fraction in (0.5, 0.99, 0.999))
    return Latencies(len(ordered) + failed, failed, p50, p99, p999, ordered[-1] * 1000, percentile(late, 0.99) * 1000)


def measure(port: int, request: bytes, rate: float, seconds: float, connections: int = 64, seed: int = 1) -> Latencies:
    """Send `request` to a loopback port `rate` times a second. Raises SystemExit when nothing at all is answered."""
    moments = schedule(rate, seconds, seed)
    # The kernel may delay our timers by 50 microseconds to save power (prctl(2)); that would be half a gap here.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    gc.collect()
    gc.disable()
    try:
        latencies, lateness, failed = _Generator(port, request, connections).run(moments)
    finally:
        gc.enable()
    if not latencies:
        raise SystemExit(f"no answer from port {port}")
    return reduce_latencies(latencies, lateness, failed)


class _Generator:
    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._port = port
        self._request = request
        self._poller = select.epoll()
        self._free: list[socket.socket] = []
        self._by_number: dict[int, socket.socket] = {}
        self._due: dict[int, float] = {}  # by socket: the moment of the request that is under way
        self._partial: dict[int, bytes] = {}
        for _ in range(connections):
            self._dial()

    def _dial(self) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._poller.register(connection, select.EPOLLIN)
        self._by_number[connection.fileno()] = connection
        self._free.append(connection)

    def run(self, moments: Sequence[float]) -> tuple[list[float], list[float], int]:
        """Latencies, how late each request was sent, and the number of failed ones."""
        try:
            return self._run(moments)
        finally:
            for connection in self._by_number.values():
                connection.close()
            self._poller.close()

    def _run(self, moments: Sequence[float]) -> tuple[list[float], list[float], int]:
        latencies: list[float] = []
        lateness: list[float] = []
        failed = sent = 0
        total, free, due, request = len(moments), self._free, self._due, self._request
        clock, poll, poller = time.perf_counter, self._poller.poll, self._poller
        start = clock() + 0.01
        end = start + moments[-1] + PATIENCE_SECONDS
        while len(latencies) + failed < total:
            now = clock()
            while sent < total and free and start + moments[sent] <= now:
                connection = free.pop()
                moment = start + moments[sent]
                sent += 1
                try:
                    connection.send(request)
                except OSError:
                    failed += 1
                    self._replace(connection)
                    continue
                due[connection.fileno()] = moment
                now = clock()
                lateness.append(now - moment)
            if now > end:
                return latencies, lateness, failed + (total - sent) + len(due)
            pause = start + moments[sent] - now if sent < total and free else 0.1
            if pause > 0:
                # epoll rounds up to milliseconds; select on the poller itself takes microseconds.
                select.select([poller], (), (), pause)
            for number, _ in poll(0):
                moment_or_none = due.get(number)
                ok = self._receive(number)
                if ok is None:
                    continue
                if moment_or_none is None:
                    self._replace(self._by_number[number], was_free=True)
                    continue
                del due[number]
                if ok:
                    latencies.append(clock() - moment_or_none)
                    free.append(self._by_number[number])
                else:
                    failed += 1
                    self._replace(self._by_number[number])
        return latencies, lateness, failed

    def _receive(self, number: int) -> bool | None:
        """Whether a complete answer is there and good; None while it is not complete."""
        try:
            data = self._by_number[number].recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not data:
            return False
        data = self._partial.pop(number, b"") + data
        is_complete = complete(data)
        if is_complete is None:
            self._partial[number] = data
        return is_complete

    def _replace(self, connection: socket.socket, was_free: bool = False) -> None:
        number = connection.fileno()
        if was_free:
            self._free.remove(connection)
        self._partial.pop(number, None)
        del self._by_number[number]
        self._poller.unregister(number)
        connection.close()
        self._dial()


def complete(data: bytes) -> bool | None:
    """Of an answer with Content-Length: whether it is a complete 200; None while some of it is missing."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    if not head.startswith(b"HTTP/1.1 200"):
        return False
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return False
    length = int(head[at + 17 :].partition(b"\r\n")[0])
    return None if len(body) < length else len(body) == length
