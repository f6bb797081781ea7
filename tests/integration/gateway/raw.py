"""Raw bytes against the gateway: cases, a second reading of HTTP/1.1 that is independent of the gateway's, and the rule
that holds for every case: an instance never sees a request that the client did not send as one.

The second reading (`read_requests`) is deliberately simple and strict: RFC 9112 without any of the tolerance that it
allows, but for empty lines before a request. What the gateway passes on must be a request in this reading too.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Literal

import pytest
from _pytest.mark import ParameterSet
from tests.integration.gateway.harness import Backend, Client, Message, running_gateway

from toska_mesh.resilience import State

HOST = b"Host: shop.example\r\n"
GET_LINE = b"GET /api/orders/case HTTP/1.1\r\n"
POST = b"POST /api/orders/case HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /api/orders/smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
END = b"0\r\n\r\n"

Pace = Literal["whole", "byte by byte"]

REFUSALS = frozenset({400, 405, 413, 431, 501, 505})


def get(*fields: bytes) -> bytes:
    return GET_LINE + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def line(request_line: bytes) -> bytes:
    """A request with this first line."""
    return request_line + b"\r\n" + HOST + b"\r\n"


def target(request_target: bytes, method: bytes = b"GET") -> bytes:
    return line(method + b" " + request_target + b" HTTP/1.1")


# -- the second reading


Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as one reads it on the wire."""

    method: bytes
    target: bytes
    headers: Fields
    body: bytes
    trailers: Fields

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/1\.([01])\r\n" % _TOKEN)
_FIELD_LINE = re.compile(rb"(%b):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\r\n" % _TOKEN)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;[\t -~\x80-\xff]*)?\r\n")


class MalformedError(Exception):
    """What stands here is no request."""


class IncompleteError(Exception):
    """What stands here may become a request."""


def read_requests(data: bytes) -> list[Sent]:
    """The requests that are whole in `data`, up to the first byte that is not what RFC 9112 says."""
    return _read(data)[0]


def _read(data: bytes) -> tuple[list[Sent], str]:
    """The whole requests, and how it ends: `clean`, `close`, `incomplete` or `malformed`."""
    requests: list[Sent] = []
    at = 0
    try:
        while True:
            while data[at : at + 1] in (b"\r", b"\n"):
                at += 1
            if at == len(data):
                return requests, "clean"
            request, is_last, at = _read_one(data, at)
            requests.append(request)
            if is_last:
                return requests, "close"
    except IncompleteError:
        return requests, "incomplete"
    except MalformedError:
        return requests, "malformed"


def _read_one(data: bytes, at: int) -> tuple[Sent, bool, int]:
    """A request, whether it is the last one of its connection, and where it ends."""
    first = _match(_REQUEST_LINE, data, at)
    headers, at = _read_fields(data, first.end())
    is_11 = first[3] == b"1"
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    body, trailers = b"", ()
    if codings:
        if lengths or not is_11 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise MalformedError
        body, trailers, at = _read_chunked(data, at)
    elif lengths:
        if len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0]):
            raise MalformedError
        body, at = _take(data, at, int(lengths[0]))
    options = {
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    is_last = b"close" in options or (not is_11 and b"keep-alive" not in options)
    return Sent(first[1], first[2], headers, body, trailers), is_last, at


def _match(pattern: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes]:
    found = pattern.match(data, at)
    if found is None:
        raise MalformedError if b"\r\n" in data[at:] else IncompleteError
    return found


def _take(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if len(data) < at + length:
        raise IncompleteError
    return data[at : at + length], at + length


def _read_fields(data: bytes, at: int) -> tuple[Fields, int]:
    """Field lines up to the empty line, and where that ends."""
    fields = []
    while not data.startswith(b"\r\n", at):
        field = _match(_FIELD_LINE, data, at)
        fields.append((field[1], field[2]))
        at = field.end()
    return tuple(fields), at + 2


def _read_chunked(data: bytes, at: int) -> tuple[bytes, Fields, int]:
    body = b""
    while True:
        size_line = _match(_CHUNK_LINE, data, at)
        size = int(size_line[1], 16)
        if not size:
            trailers, at = _read_fields(data, size_line.end())
            return body, trailers, at
        part, at = _take(data, size_line.end(), size)
        end, at = _take(data, at, 2)
        if end != b"\r\n":
            raise MalformedError
        body += part


NEVER_DOUBLE = (b"host", b"content-length", b"transfer-encoding", b"x-request-id", b"x-forwarded-for", b"forwarded")


def assert_nothing_smuggled(sent: bytes, backend: Backend) -> None:
    """Whatever reached the instance, on whatever connection, is a request of the client; each came once, in order.

    Method, path and body are compared. A path is what follows the service's name in the target; the cases about
    targets say themselves what they expect, since dot segments are resolved on the way.
    """
    expected = [(request.method, _path_of(request.target), request.body) for request in read_requests(sent)]
    came: list[Sent] = []
    for received in backend.received:
        seen, ending = _read(bytes(received))
        assert ending != "malformed", bytes(received)
        came += seen
    for request in came:
        for name in NEVER_DOUBLE:
            assert len(request.all(name)) < 2, (name, request)
        assert request.all(b"host"), request
        assert not (request.all(b"content-length") and request.all(b"transfer-encoding")), request
    remaining = iter(expected)
    for request in came:
        seen_as = (request.method, request.target, request.body)
        assert any(_is_same(seen_as, wanted) for wanted in remaining), f"{seen_as} is not of {expected}"


def _path_of(request_target: bytes) -> bytes | None:
    """The path that the instance should see; None when this simple rule does not know it."""
    path, mark, query = re.sub(rb"^https?://[^/?]+", b"", request_target, flags=re.IGNORECASE).partition(b"?")
    prefix = b"/api/orders"
    if not path.startswith(prefix) or re.search(rb"/(\.|%2e)", path, re.IGNORECASE):
        return None
    return (path[len(prefix) :] or b"/") + mark + query


def _is_same(seen: tuple[bytes, bytes, bytes], wanted: tuple[bytes, bytes | None, bytes]) -> bool:
    return seen[0] == wanted[0] and seen[2] == wanted[2] and (wanted[1] is None or seen[1] == wanted[1])


# -- cases


@dataclass(frozen=True, slots=True)
class Case:
    """What a client sends, what may come of it, and what the instance may get."""

    sent: bytes
    answers: tuple[frozenset[int], ...]
    """Allowed statuses, answer by answer. Behind the last one the connection ends when `closes`."""
    reaches: tuple[tuple[str, bytes], ...] = ()
    """Method and path, and the body: what the instance gets, and nothing else."""
    closes: bool = True
    is_long: bool = False
    """Too long to send it byte by byte."""


def refused(sent: bytes, *statuses: int, is_long: bool = False) -> Case:
    """One refusal, and the end of the connection."""
    return Case(sent, (frozenset(statuses or (400,)),), is_long=is_long)


def passed(sent: bytes, *reaches: tuple[str, bytes], closes: bool = False, is_long: bool = False) -> Case:
    """Every request is answered by the instance."""
    reaches = reaches or (("GET /case", b""),)
    return Case(sent, (frozenset({200}),) * len(reaches), reaches, closes, is_long)


def mixed(sent: bytes, *statuses: int, reaches: tuple[tuple[str, bytes], ...]) -> Case:
    """Good requests, then something that is refused."""
    return Case(sent, tuple(frozenset({status}) for status in statuses), reaches)


def names(cases: dict[str, Case]) -> list[ParameterSet]:
    """For `parametrize`: every case whole, and byte by byte unless it is too long."""
    return [
        pytest.param(case, pace, id=f"{name}-{pace}".replace(" ", "-"))
        for name, case in cases.items()
        for pace in ("whole", "byte by byte")
        if pace == "whole" or not case.is_long
    ]


async def send(client: Client, data: bytes, pace: Pace) -> None:
    """At once, or so that every byte is a read of its own; as far as the gateway listens."""
    if pace == "whole":
        client.send(data)
        return
    for position in range(len(data)):
        if client.writer.transport.is_closing():
            return
        client.send(data[position : position + 1])
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def play(case: Case, pace: Pace, **variables: object) -> list[Message]:
    """Run a case against a gateway of its own and check all that it says; gives the answers."""
    answers: list[Message] = []
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0, **variables) as gateway:
        client = await gateway.connect()
        await send(client, case.sent, pace)
        for allowed in case.answers:
            answer = await client.answer("HEAD" if case.sent.startswith(b"HEAD") else "GET")
            assert answer.status in allowed, answer
            answers.append(answer)
            if answer.status in REFUSALS:
                assert answer.get("Content-Type") == "application/problem+json"
        if case.closes:
            last = answers[-1]
            assert last.get("Connection") == "close", last
        else:
            with contextlib.suppress(OSError):
                client.writer.write_eof()
        assert await client.is_closed()
        came = tuple((request.start.removesuffix(" HTTP/1.1"), request.body) for request in backend.requests)
        assert came == case.reaches
        assert_nothing_smuggled(case.sent, backend)
        assert gateway.breakers == {State.CLOSED}
    assert gateway.recorded == len(case.answers)
    return answers
