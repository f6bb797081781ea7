"""One JSON line per request, in batches, never in the way.

Lines are collected and handed to the line writer's thread some times a second; when nobody takes them (a full disk, a
stuck pipe) they are dropped there and counted.
"""

from datetime import UTC, datetime

import orjson

from toska_mesh.gateway.exchange import Exchange
from toska_mesh.telemetry.lines import LineWriter

MAX_BATCH_LINES = 512


class AccessLog:
    """Owned by the proxy; `flush` is called by its tick."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._lines: list[bytes] = []
        self._moment = ""

    @property
    def dropped_lines(self) -> int:
        return self._writer.dropped_lines

    def add(self, exchange: Exchange, now: float) -> None:
        """Record a finished exchange. `now`: seconds on the loop's clock. Times in the line are milliseconds."""
        moment = self._moment or self._tell_time()
        self._lines.append(_usual_line(exchange, now, moment) or _any_line(exchange, now, moment))
        if len(self._lines) >= MAX_BATCH_LINES:
            self.flush()

    def flush(self) -> None:
        self._moment = ""
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.write(b"".join(lines), len(lines))

    def _tell_time(self) -> str:
        # One reading of the wall clock per batch: a line's time is exact to the length of a tick.
        self._moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        return self._moment


_USUAL = (
    b'{"time":"%b","level":"info","msg":"request","method":"%b","path":"%b","status":%d,"duration_ms":%.3f,%b,'
    b'"attempts":%d,"upstream_ms":%.3f,"relay_ms":%.3f,"bytes_in":%d,"bytes_out":%d,"outcome":"%b","client_ip":"%b",'
    b'"request_id":"%b","correlation_id":"%b","trace_id":null}\n'
)


def _usual_line(exchange: Exchange, now: float, moment: str) -> bytes:
    """The line of a request that an instance answered and whose texts need no escaping; else empty."""
    head, upstream, head_at = exchange.head, exchange.upstream, exchange.head_at
    if upstream is None or not head_at or head.trace_id:
        return b""
    texts = head.path + head.id_fields
    if b'"' in texts or b"\\" in texts:
        return b""
    return _USUAL % (
        moment.encode(),
        head.method,
        head.path,
        exchange.status,
        (now - exchange.started) * 1000,
        upstream.log_fields,
        exchange.attempts,
        (head_at - exchange.try_started) * 1000,
        (now - head_at) * 1000,
        exchange.bytes_in,
        exchange.bytes_out,
        exchange.outcome.encode(),
        head.client_address.encode(),
        head.request_id.encode(),
        head.correlation_id.encode(),
    )


def _any_line(exchange: Exchange, now: float, moment: str) -> bytes:
    head = exchange.head
    upstream = exchange.upstream or (exchange.tried[-1] if exchange.tried else None)
    head_at = exchange.head_at
    return orjson.dumps(
        {
            "time": moment,
            "level": "info",
            "msg": "request",
            "method": head.method.decode("latin-1"),
            "path": head.path.decode("latin-1"),
            "status": exchange.status,
            "duration_ms": round((now - exchange.started) * 1000, 3),
            "service": exchange.route,
            "instance": upstream.instance.id if upstream is not None else None,
            "attempts": exchange.attempts,
            "upstream_ms": round((head_at - exchange.try_started) * 1000, 3) if head_at and upstream else None,
            "relay_ms": round((now - head_at) * 1000, 3) if head_at else None,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "outcome": exchange.outcome,
            "client_ip": head.client_address,
            "request_id": head.request_id,
            "correlation_id": head.correlation_id,
            "trace_id": head.trace_id or None,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
