"""One JSON line per request, in batches, never in the way.

Lines are collected and handed to the line writer's thread some times a second; when nobody takes them (a full disk, a
stuck pipe) they are dropped there and counted. No line is longer than what the kernel writes to a pipe in one piece,
so those of several workers never mix.

A request's time has three phases, which together are its duration: before the try that decided it (policies, earlier
tries, the pauses between them, the arrival of the body), until the head of the answer, until its end.
"""

import select
from datetime import UTC, datetime

import orjson

from toska_mesh.gateway.exchange import Exchange
from toska_mesh.telemetry.lines import LineWriter

MAX_BATCH_LINES = 512

_MAX_PLAIN_PATH_BYTES = 2048
"""With a longer path a line might not fit into one piece: it is looked at."""
_KEPT_PATH_BYTES = 1024
_KEPT_ID_BYTES = 256


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
    b'"attempts":%d,"before_ms":%b,"upstream_ms":%.3f,"relay_ms":%.3f,"bytes_in":%d,"bytes_out":%d,"outcome":"%b","client_ip":"%b",'
    b'"request_id":"%b","correlation_id":"%b","trace_id":null}\n'
)


def _usual_line(exchange: Exchange, now: float, moment: str) -> bytes:
    """The line of a request that an instance answered and whose texts need no escaping; else empty."""
    head, upstream, head_at = exchange.head, exchange.upstream, exchange.head_at
    if upstream is None or not head_at or head.trace_id:
        return b""
    texts = head.path + head.id_fields
    if texts.find(b'"') >= 0 or texts.find(b"\\") >= 0 or len(texts) > _MAX_PLAIN_PATH_BYTES:
        return b""
    return _USUAL % (
        moment.encode(),
        head.method,
        head.path,
        exchange.status,
        (now - exchange.started) * 1000,
        upstream.log_fields,
        exchange.attempts,
        b"0.000"
        if exchange.try_started == exchange.started
        else b"%.3f" % ((exchange.try_started - exchange.started) * 1000),
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
    line: dict[str, object] = {
        "time": moment,
        "level": "info",
        "msg": "request",
        "method": head.method.decode("latin-1"),
        "path": head.path.decode("latin-1"),
        "status": exchange.status,
        "duration_ms": _milliseconds(exchange.started, now),
        "service": exchange.route,
        "instance": upstream.instance.id if upstream is not None else None,
        "attempts": exchange.attempts,
        "before_ms": _milliseconds(exchange.started, exchange.try_started) if upstream is not None else None,
        "upstream_ms": _milliseconds(exchange.try_started, head_at) if head_at and upstream is not None else None,
        "relay_ms": _milliseconds(head_at, now) if head_at else None,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "outcome": exchange.outcome,
        "client_ip": head.client_address,
        "request_id": head.request_id,
        "correlation_id": head.correlation_id,
        "trace_id": head.trace_id or None,
    }
    dumped = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    if len(dumped) > select.PIPE_BUF:
        line["path"] = head.path[:_KEPT_PATH_BYTES].decode("latin-1")
        line["path_bytes"] = len(head.path)
        line["method"] = head.method[:_KEPT_ID_BYTES].decode("latin-1")
        line["client_ip"] = head.client_address[:_KEPT_ID_BYTES]
        dumped = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    return dumped


def _milliseconds(since: float, until: float) -> float:
    return round((until - since) * 1000, 3)
