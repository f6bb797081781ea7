"""A second reading of HTTP/1.1, written against RFC 9112 alone, for tests that ask whether the gateway reads it right.

Strict, slow and without a line in common with the gateway: what it does not understand is an error, never a guess.
"""

import re
from dataclasses import dataclass

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9]) ([\t -~\x80-\xff]*)")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t -~\x80-\xff]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Fields = tuple[tuple[bytes, bytes], ...]


class NoHttpError(ValueError):
    """The bytes are no HTTP/1.1; the text says where."""


class _MissingError(Exception):
    """The message is not complete."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer. Chunks are joined, as where they begin and end means nothing (section 7.1)."""

    first_line: tuple[bytes, bytes, bytes]
    """Method, target, minor version; or minor version, status, reason."""
    fields: Fields
    """Names in lower case."""
    framing: str
    """How its end is told: `none`, `length`, `chunked`, `close`."""
    body: bytes = b""
    trailers: Fields = ()

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.fields if known == name]

    @property
    def status(self) -> int:
        return int(self.first_line[1])

    @property
    def is_interim(self) -> bool:
        return self.status < 200


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stream of bytes says."""

    messages: tuple[Message, ...]
    rest: bytes
    """Of a message that is not complete; empty when the last one is."""
    partial: Message | None = None
    """The incomplete message, when at least its head is there; with as much of its body as has come."""

    @property
    def finals(self) -> list[Message]:
        return [message for message in self.messages if not message.is_interim]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.body = b""

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise _MissingError
        line = self.data[self.at : end]
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            raise NoHttpError(f"a line does not end with CR LF alone: {line[:80]!r}")
        self.at = end + 1
        return line[:-1]

    def take(self, count: int) -> bytes:
        if len(self.data) - self.at < count:
            self.body += self.data[self.at :]
            raise _MissingError
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def fields(self) -> Fields:
        found = []
        while line := self.line():
            match = _FIELD_LINE.fullmatch(line)
            if match is None:
                raise NoHttpError(f"no field line: {line[:80]!r}")
            found.append((match.group(1).lower(), match.group(2)))
        return tuple(found)

    def chunks(self) -> Fields:
        """Read a chunked body into `body`; gives the trailer fields."""
        while True:
            match = _CHUNK_LINE.fullmatch(self.line())
            if match is None:
                raise NoHttpError("no chunk size")
            size = int(match.group(1), 16)
            if not size:
                return self.fields()
            self.body += self.take(size)
            if self.take(2) != b"\r\n":
                self.body = self.body[:-2]
                raise NoHttpError("a chunk does not end where its size says")


def _framing(fields: Fields, default: str) -> tuple[str, int]:
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if codings and lengths:
        raise NoHttpError("both Content-Length and Transfer-Encoding")
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise NoHttpError(f"transfer codings {codings}")
        return "chunked", 0
    if lengths:
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise NoHttpError(f"lengths {lengths}")
        return "length", int(lengths[0])
    return default, 0


def read_requests(data: bytes) -> Reading:
    """The requests in what a server received on one connection. Raises NoHttpError."""
    return _read(data, None, False)


def read_answers(data: bytes, methods: list[bytes], has_ended: bool) -> Reading:
    """The answers to requests with these methods; with `has_ended` the connection was closed in order behind them.

    Reading stops behind an answer of 101. Raises NoHttpError, also for an answer that nobody asked for.
    """
    return _read(data, list(methods), has_ended)


def _read(data: bytes, methods: list[bytes] | None, has_ended: bool) -> Reading:
    messages: list[Message] = []
    reader = _Reader(data)
    while reader.at < len(data):
        begin, reader.body = reader.at, b""
        head: Message | None = None
        try:
            head = _head(reader, methods)
            if methods is not None and head.status == 101:
                messages.append(head)
                return Reading(tuple(messages), data[reader.at :])
            trailers: Fields = ()
            if head.framing == "length":
                reader.body = reader.take(_framing(head.fields, "none")[1])
            elif head.framing == "chunked":
                trailers = reader.chunks()
            elif head.framing == "close":
                reader.body = data[reader.at :]
                reader.at = len(data)
                if not has_ended:
                    raise _MissingError
        except _MissingError:
            partial = None if head is None else _with_body(head, reader.body, ())
            return Reading(tuple(messages), data[begin:], partial)
        messages.append(_with_body(head, reader.body, trailers))
        if methods is not None and not messages[-1].is_interim:
            methods.pop(0)
    return Reading(tuple(messages), b"")


def _with_body(head: Message, body: bytes, trailers: Fields) -> Message:
    return Message(head.first_line, head.fields, head.framing, body, trailers)


def _head(reader: _Reader, methods: list[bytes] | None) -> Message:
    line = reader.line()
    if methods is None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise NoHttpError(f"no request line: {line[:80]!r}")
        fields = reader.fields()
        if match.group(3) == b"1" and len([name for name, _ in fields if name == b"host"]) != 1:
            raise NoHttpError("a request has not one Host")
        return Message((match.group(1), match.group(2), match.group(3)), fields, _framing(fields, "none")[0])
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise NoHttpError(f"no status line: {line[:80]!r}")
    if not methods:
        raise NoHttpError(f"an answer that nobody asked for: {line[:80]!r}")
    fields = reader.fields()
    status = int(match.group(2))
    framing = _framing(fields, "close")[0]
    if status < 200 or status == 204 or status == 304 or methods[0] == b"HEAD":
        framing = "none"
    return Message((match.group(1), match.group(2), match.group(3)), fields, framing)
