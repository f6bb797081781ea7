"""Properties of the gateway's data path, as functions of generated cases: see `tests/unit/gateway/test_proxy_fuzz.py`.

Kept apart from the tests so that `bench/fuzz.py` can run the same properties for as long as one likes, guided by the
code that they reach. Every `check_...` takes a case and raises AssertionError; every `..._cases` is its strategy.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tests.support.http1 import Fields, Message, Reading, read_answers, read_requests
from tests.support.wire import Bench, Server, Wire, with_bench

ALL = 1 << 30
"""As the size of a piece: everything in one."""

HOST = b"Host: shop.example\r\n"
_DATE = re.compile(rb"Date: [^\r]*GMT\r\n")

# -- what is said


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of a valid conversation."""

    method: bytes
    pieces: tuple[int, ...] = ()
    """Sizes of the body's pieces; the chunks, when it is chunked."""
    framing: str = "none"
    is_11: bool = True
    connection: bytes = b""
    expects: bool = False
    trailers: bool = False
    extensions: bool = False
    query: bytes = b""
    repeats_block: bool = False
    """Without a field of its own, so that the block of fields is that of the request before it."""

    def path(self, number: int) -> bytes:
        return b"/items/%d" % number

    def body(self, number: int) -> bytes:
        return tricky(b"ask%d" % number, sum(self.pieces))

    def end_to_end(self, number: int) -> Fields:
        own = () if self.repeats_block else ((b"x-ask", b"%d" % number),)
        return (*own, (b"x-kept", b"a,  b"))

    def encode(self, number: int) -> bytes:
        version = b"1.1" if self.is_11 else b"1.0"
        lines = [b"%b /api/hello%b%b HTTP/%b\r\n" % (self.method, self.path(number), self.query, version), HOST]
        lines += [b"%b: %b\r\n" % pair for pair in self.end_to_end(number)]
        if self.connection:
            lines.append(b"Connection: %b\r\nX-Hop: 1\r\n" % self.connection)
        if self.expects:
            lines.append(b"Expect: 100-continue\r\n")
        return b"".join(lines) + _framed(
            self.framing, self.body(number), self.pieces, self.trailers, self.extensions, b"x-sum"
        )

    @property
    def ends_connection(self) -> bool:
        return b"close" in self.connection or (not self.is_11 and self.connection != b"keep-alive")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the instance answers in a valid conversation."""

    status: int = 200
    pieces: tuple[int, ...] = ()
    framing: str = "length"
    is_11: bool = True
    closes: bool = False
    interim: tuple[int, ...] = ()
    trailers: bool = False
    extensions: bool = False
    is_early: bool = False
    """Given when the head of the request has come, without waiting for its body."""
    repeats_head: bool = False

    def has_body(self, method: bytes) -> bool:
        return method != b"HEAD" and self.status not in (204, 304)

    def body(self, number: int) -> bytes:
        return tricky(b"answer%d" % number, sum(self.pieces))

    def end_to_end(self, number: int) -> Fields:
        own = () if self.repeats_head else ((b"x-answer", b"%d" % number),)
        return (*own, (b"date", b"Fri, 20 Nov 2026 18:00:00 GMT"), (b"server", b"origin"))

    def encode(self, method: bytes, number: int) -> bytes:
        lines = [b"HTTP/1.1 %d Interim\r\nLink: <a>\r\n\r\n" % status for status in self.interim]
        lines.append(b"HTTP/1.%d %d Some Reason\r\n" % (self.is_11, self.status))
        lines += [b"%b: %b\r\n" % pair for pair in self.end_to_end(number)]
        if self.ends_connection:
            lines.append(b"Connection: close\r\n")
        framed = _framed(self.framing, self.body(number), self.pieces, self.trailers, self.extensions, b"x-sum")
        if not self.has_body(method):
            framed = framed[: framed.index(b"\r\n\r\n") + 4] if not framed.startswith(b"\r\n") else b"\r\n"
        return b"".join(lines) + framed

    @property
    def ends_connection(self) -> bool:
        return self.closes or not self.is_11 or self.framing == "close"


def tricky(mark: bytes, size: int) -> bytes:
    """So many bytes that look like anything but a body to who loses count."""
    unit = b"%b\r\n0\r\n\r\nGET /api/hello/smuggled HTTP/1.1\r\nHost: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" % mark
    return (unit * (size // len(unit) + 1))[:size]


def _framed(framing: str, body: bytes, pieces: tuple[int, ...], trailers: bool, extensions: bool, sum_: bytes) -> bytes:
    if framing == "length":
        return b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing != "chunked":
        return b"\r\n" + body
    parts, at = [b"Transfer-Encoding: chunked\r\n\r\n"], 0
    for position, size in enumerate(pieces):
        if size:
            extension = b';a=1;b="x;y"' if extensions and position % 2 == 0 else b""
            parts.append(b"%x%b\r\n%b\r\n" % (size, extension, body[at : at + size]))
            at += size
    parts.append(b"0\r\n%b\r\n" % (b"%b: 7\r\nHost: evil\r\n" % sum_.title() if trailers else b""))
    return b"".join(parts)


Conversation = tuple[tuple[Ask, Answer], ...]

_SMALL = st.integers(0, 60)
_SIZES = st.integers(0, 9).flatmap(
    lambda kind: _SMALL if kind < 9 else st.sampled_from((1000, 32767, 32768, 32769, 65536, 65537, 140_000))
)
_PIECES = st.lists(_SIZES, max_size=3).map(tuple)


@st.composite
def _asks(draw: st.DrawFn) -> Ask:
    is_11 = draw(st.integers(0, 7)) != 7
    framing = draw(st.sampled_from(("none", "none", "length", "chunked")))
    if framing == "chunked" and not is_11:
        framing = "length"
    has_body = framing != "none"
    usual = (b"", b"", b"", b"keep-alive", b"x-hop", b"close", b"close, x-hop")
    return Ask(
        draw(st.sampled_from((b"GET", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))),
        draw(_PIECES) if has_body else (),
        framing,
        is_11,
        draw(st.sampled_from(usual if is_11 else (b"keep-alive", b"keep-alive", b""))),
        is_11 and has_body and draw(st.booleans()),
        framing == "chunked" and draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from((b"", b"?", b"?a=b&c=%20"))),
        draw(st.booleans()),
    )


@st.composite
def _answers(draw: st.DrawFn, ask: Ask, is_early_allowed: bool) -> Answer:
    is_11 = draw(st.integers(0, 7)) != 7
    framing = draw(st.sampled_from(("length", "length", "chunked", "close")))
    if framing == "chunked" and not is_11:
        framing = "close"
    statuses = (200, 200, 200, 201, 204, 304, 404, 500)
    return Answer(
        draw(st.sampled_from(statuses + ((502, 503) if ask.method in (b"POST", b"PATCH") else ()))),
        draw(_PIECES),
        framing,
        is_11,
        draw(st.integers(0, 5)) == 5,
        tuple(draw(st.lists(st.sampled_from((100, 102, 103)), max_size=2))),
        framing == "chunked" and draw(st.booleans()),
        draw(st.booleans()),
        is_early_allowed and ask.framing != "none" and draw(st.integers(0, 3)) == 3,
        draw(st.booleans()),
    )


@st.composite
def conversations(draw: st.DrawFn, max_size: int = 5, is_early_allowed: bool = False) -> Conversation:
    asks = draw(st.lists(_asks(), min_size=1, max_size=max_size))
    return tuple((ask, draw(_answers(ask, is_early_allowed))) for ask in asks)


# -- how it comes apart


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where streams are cut, and whose piece comes next; both are gone round again when they end."""

    sizes: tuple[int, ...] = (ALL,)
    order: tuple[int, ...] = (0,)


cuts: SearchStrategy[Cuts] = st.builds(
    Cuts,
    st.lists(st.one_of(st.integers(1, 4), st.integers(1, 200)), min_size=1, max_size=12).map(tuple),
    st.lists(st.integers(0, 11), min_size=1, max_size=12).map(tuple),
)


async def deliver(bench: Bench, how: Cuts, also: Callable[[int], None] = lambda _: None) -> None:
    """Hand over everything that is on its way, piece by piece, until nothing moves."""
    step = 0
    while True:
        ready = [wire for wire in bench.wires if wire.can_deliver]
        if not ready:
            await bench.rest()
            ready = [wire for wire in bench.wires if wire.can_deliver]
            if not ready:
                return
        turn = how.order[step % len(how.order)]
        wire = ready[turn % len(ready)]
        size = how.sizes[step % len(how.sizes)]
        # Long bodies in pieces of a few bytes would say nothing new, slowly.
        wire.deliver(size if len(wire.inbox) < 3000 else size * 701 + 8192)
        if turn % 3 == 0:
            await bench.rest()
        also(step)
        step += 1


# -- who answers


@dataclass(slots=True)
class Heard:
    """One connection to an instance, as the instance sees it."""

    wire: Wire
    requests: list[Message] = field(default_factory=list)
    at: int = 0
    """Where the request begins that is not complete yet."""
    is_begun: bool = False
    """Its head has been seen."""
    is_chunked: bool = False
    wanted: int = 0
    """With fewer bytes there is nothing new to read."""

    def read(self) -> Reading:
        return read_requests(bytes(self.wire.taken))


class Origin:
    """All instances. `respond(heard, request, is_complete)` is called for every head and for every complete request."""

    def __init__(self, respond: Callable[[Heard, Message, bool], None]) -> None:
        self.heard: list[Heard] = []
        self._respond = respond

    def __call__(self, server: Server, wire: Wire) -> None:
        heard = Heard(wire)
        self.heard.append(heard)
        wire.on_taken = lambda _: self._look(heard)

    def _look(self, heard: Heard) -> None:
        taken = heard.wire.taken
        if len(taken) < heard.wanted or (heard.is_chunked and not taken.endswith(b"\r\n\r\n")):
            return
        reading = read_requests(bytes(taken[heard.at :]))
        heard.wanted, heard.is_chunked = len(taken) + 1, False
        for message in reading.messages:
            self._begin(heard, message)
            heard.requests.append(message)
            heard.is_begun = False
            self._respond(heard, message, True)
        heard.at = len(heard.wire.taken) - len(reading.rest)
        if reading.partial is not None:
            self._begin(heard, reading.partial)
            heard.is_chunked = reading.partial.framing == "chunked"
            if reading.partial.framing == "length":
                left = int(reading.partial.values(b"content-length")[0]) - len(reading.partial.body)
                heard.wanted = len(taken) + left

    def _begin(self, heard: Heard, message: Message) -> None:
        if not heard.is_begun:
            heard.is_begun = True
            self._respond(heard, message, False)

    @property
    def requests(self) -> list[Message]:
        return [request for heard in self.heard for request in heard.requests]


# -- 1 and 2: valid conversations


@dataclass(frozen=True, slots=True)
class Result:
    """What both ends of a conversation have in hand."""

    client: Reading
    client_bytes: bytes
    client_saw_end: bool
    upstream: tuple[Reading, ...]
    upstream_bytes: tuple[bytes, ...]


def converse(conversation: Conversation, how: Cuts, instances: int = 1) -> Result:
    """Hold a conversation, cut up in this way."""
    answered = [0]

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        number = answered[0]
        ask, answer = conversation[number]
        if not is_complete and ask.expects:
            heard.wire.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
        is_early = answer.is_early and sum(ask.pieces) > 0
        if is_complete is not is_early:
            heard.wire.feed(answer.encode(ask.method, number))
            if answer.ends_connection:
                heard.wire.end()
        if is_complete:
            answered[0] += 1

    origin = Origin(respond)

    async def scenario(bench: Bench) -> Result:
        bench.use_instances(list(range(1, instances + 1)))
        client = bench.connect()
        client.feed(b"".join(ask.encode(number) for number, (ask, _) in enumerate(conversation)))
        await deliver(bench, how)
        methods = [ask.method for ask, _ in conversation]
        return Result(
            read_answers(bytes(client.taken), methods, client.got_end),
            _DATE.sub(b"", bytes(client.taken)),
            client.got_end,
            tuple(heard.read() for heard in origin.heard),
            tuple(bytes(heard.wire.taken) for heard in origin.heard),
        )

    return with_bench(scenario, origin, breaker_failure_threshold=10**6)


split_cases = st.tuples(conversations(), cuts)


def check_splits_do_not_matter(case: tuple[Conversation, Cuts]) -> None:
    conversation, how = case
    whole, cut = converse(conversation, Cuts()), converse(conversation, how)
    assert cut.client == whole.client
    assert cut.upstream == whole.upstream
    assert cut.client_saw_end == whole.client_saw_end
    # Chunks are framed anew, piece by piece; everything else is the same down to the byte.
    if all(message.framing != "chunked" for message in whole.client.messages):
        assert cut.client_bytes == whole.client_bytes
    for ours, theirs, reading in zip(cut.upstream_bytes, whole.upstream_bytes, whole.upstream, strict=True):
        if all(message.framing != "chunked" for message in reading.messages):
            assert ours == theirs


meaning_cases = st.tuples(conversations(is_early_allowed=True), cuts, st.integers(1, 3))

_ADDED_TO_REQUESTS = {
    b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-request-id",
    b"x-correlation-id", b"content-length", b"transfer-encoding", b"expect",
}  # fmt: skip
_ADDED_TO_ANSWERS = {
    b"via", b"x-request-id", b"x-correlation-id", b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset",
    b"content-length", b"transfer-encoding", b"connection",
}  # fmt: skip


def check_meaning_is_kept(case: tuple[Conversation, Cuts, int]) -> None:
    conversation, how, instances = case
    got = converse(conversation, how, instances)
    served = []
    for ask, answer in conversation:
        served.append((ask, answer))
        is_unframed = not ask.is_11 and answer.has_body(ask.method) and answer.framing != "length"
        if ask.ends_connection or is_unframed:
            break
        if answer.is_early and sum(ask.pieces):
            break
    ask, answer = served[-1]
    cuts_off_request = answer.is_early and sum(ask.pieces) > 0
    requests = [message for reading in got.upstream for message in reading.messages]
    if instances == 1 and not cuts_off_request:
        assert len(requests) == len(served)
        assert all(not reading.rest for reading in got.upstream)
    by_number = {message.first_line[1].partition(b"?")[0]: message for message in requests}
    finals = got.client.finals
    assert len(finals) >= len(served)
    if not cuts_off_request:
        assert len(finals) == len(served), "an answer for a request behind the last one"
        assert not got.client.rest
    interims: list[list[int]] = [[]]
    for message in got.client.messages:
        if message.is_interim:
            interims[-1].append(message.status)
        else:
            interims.append([])
    for number, (ask, answer) in enumerate(served):
        is_early = answer.is_early and sum(ask.pieces) > 0
        request = by_number.get(ask.path(number))
        if not is_early:
            assert request is not None
            _check_request(ask, number, request)
        _check_answer(ask, answer, number, finals[number])
        promised = ([100] if ask.expects and ask.framing != "none" and sum(ask.pieces) else []) + list(answer.interim)
        told = [status for status in interims[number] if status != 100]
        assert told == ([status for status in promised if status != 100] if ask.is_11 else [])


def _check_request(ask: Ask, number: int, request: Message) -> None:
    assert request.first_line == (ask.method, ask.path(number) + ask.query, b"1")
    assert request.body == ask.body(number)
    assert request.trailers == (((b"x-sum", b"7"),) if ask.trailers else ())
    kept = tuple(pair for pair in request.fields if pair[0] not in _ADDED_TO_REQUESTS)
    hop = () if not ask.connection or b"x-hop" in ask.connection else ((b"x-hop", b"1"),)
    assert kept == ask.end_to_end(number) + hop
    assert request.values(b"host") == [b"127.0.0.1:1"] or len(request.values(b"host")) == 1
    assert request.values(b"x-forwarded-for") == [b"10.0.0.1"]


def _check_answer(ask: Ask, answer: Answer, number: int, got: Message) -> None:
    assert got.status == answer.status
    assert got.first_line[2] == b"Some Reason"
    assert got.body == (answer.body(number) if answer.has_body(ask.method) else b"")
    is_chunked_through = answer.trailers and answer.has_body(ask.method) and ask.is_11
    assert got.trailers == (((b"x-sum", b"7"),) if is_chunked_through else ())
    kept = tuple(pair for pair in got.fields if pair[0] not in _ADDED_TO_ANSWERS)
    assert kept == answer.end_to_end(number)


# -- 3: hostile bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One mutation of a stream of bytes. Positions are taken modulo its length."""

    kind: str
    at: int
    length: int
    by: bytes

    def apply(self, data: bytes, other: bytes) -> bytes:
        at = self.at % (len(data) + 1)
        end = min(len(data), at + self.length)
        if self.kind == "flip":
            return data[:at] + bytes(byte ^ (1 << self.length % 8) for byte in data[at : at + 1]) + data[at + 1 :]
        if self.kind == "delete":
            return data[:at] + data[end:]
        if self.kind == "double":
            return data[:end] + data[at:end] + data[end:]
        if self.kind == "insert":
            return data[:at] + self.by + data[at:]
        return data[:at] + other[self.length % (len(other) + 1) :]  # splice


WORDS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b" ", b"\t", b":", b",", b";", b"\0", b"\x7f", b"\xff", b"1",
    b"-1",
    b"GET /api/hello/ATTACK HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /api/hello/ATTACK HTTP/1.1\r\nHost: a\r\n",
    b"GET /api/hello/ATTACK HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    b"HEAD ", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"GET http://a/api/hello/ATTACK HTTP/1.1\r\nHost: a\r\n\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: 99999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"5\r\nATTAC\r\n", b"5;a=b\r\nATTAC\r\n", b"ffffffffffffffff\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: x\r\n",
    b"Upgrade: h2c\r\n",
    b"Connection: host, content-length, via\r\n", b"Expect: 100-continue\r\n", b"TE: trailers\r\n", b"X-Ask: 1\r\n",
    b"X-Forwarded-For: 10.0.0.2\r\n", b"X-Request-ID: ATTACK\r\n", b"Origin: http://a\r\n", b"Trailer: X\r\n",
    b"Access-Control-Request-Method: GET\r\n", b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01\r\n",
    b"b3: 0\r\n",
)  # fmt: skip

ANSWER_WORDS = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b" ", b":", b";", b"\0", b"\xff", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 304 Not Modified\r\n", b"HTTP/1.1 502 Bad\r\n", b"HTTP/1.1 503 No\r\n",
    b"HTTP/1.1 000 \r\n", b"HTTP/1.1 099 \r\n", b"HTTP/1.1 999 \r\n", b"HTTP/2.0 200 OK\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 99999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"5\r\nATTAC\r\n", b"ffffffffffffffff\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"ATTACK",
    b"Connection: x-answer\r\n", b"Trailer: X\r\n", b"X-Request-ID: ATTACK\r\n",
    b"Access-Control-Allow-Origin: a\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nATTACK",
)  # fmt: skip


def _changes(words: tuple[bytes, ...]) -> SearchStrategy[tuple[Change, ...]]:
    kinds = st.sampled_from(("insert", "flip", "delete", "double", "splice"))
    by = st.one_of(st.sampled_from(words), st.binary(max_size=4))
    return st.lists(st.builds(Change, kinds, st.integers(0, 1200), st.integers(0, 90), by), max_size=4).map(tuple)


def _soups(words: tuple[bytes, ...]) -> SearchStrategy[bytes]:
    return st.lists(st.one_of(st.sampled_from(words), st.sampled_from(words), st.binary(max_size=6)), max_size=24).map(
        b"".join
    )


def _changed(data: bytes, other: bytes, changes: tuple[Change, ...]) -> bytes:
    for change in changes:
        data = change.apply(data, other)
    return data


@st.composite
def _hostile_requests(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(_soups(WORDS))
    said = [
        b"".join(ask.encode(number) for number, (ask, _) in enumerate(conversation)).replace(b"/items", b"/ATTACK")
        for conversation in (draw(conversations(3)), draw(conversations(2)))
    ]
    return _changed(*said, draw(_changes(WORDS)))


@st.composite
def _hostile_answers(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(_soups(ANSWER_WORDS))
    method = draw(st.sampled_from((b"GET", b"GET", b"HEAD")))
    said = [draw(_answers(Ask(method), False)).encode(method, 666) for _ in range(2)]
    return _changed(*said, draw(_changes(ANSWER_WORDS)))


ATTACKER, INNOCENT = b"10.0.0.1", b"10.0.0.2"
_INNOCENT_BODY = b"SECRET-question"


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes of a client that means harm, and how it behaves beside them."""

    said: bytes
    how: Cuts
    leaves: str
    """At the end: `stays`, `ends`, `resets`."""
    stalls: bool
    """Takes nothing of what it is sent."""
    answer_bytes: int
    others: tuple[int, ...]
    """After how many of its pieces an innocent client asks something."""


attacks = st.builds(
    Attack,
    _hostile_requests(),
    cuts,
    st.sampled_from(("stays", "ends", "resets")),
    st.integers(0, 5).map(lambda drawn: drawn == 5),
    st.sampled_from((0, 7, 7, 100, 40_000)),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
)


def _innocent_request(number: int) -> bytes:
    return b"POST /api/hello/SECRET-%d HTTP/1.1\r\n%bX-Request-ID: SECRET%d\r\nContent-Length: %d\r\n\r\n%b" % (
        number,
        HOST,
        number,
        len(_INNOCENT_BODY),
        _INNOCENT_BODY,
    )


def _echo(serial: int, request: Message, filler: int) -> bytes:
    """An honest answer that says whose request it answers."""
    (who,) = request.values(b"x-forwarded-for")
    (which,) = request.values(b"x-request-id")
    mark = b"SECRET-answer" if who == INNOCENT else b"to-attacker"
    body = b"" if request.first_line[0] == b"HEAD" else mark + b"." * filler
    return b"HTTP/1.1 200 OK\r\nX-Serial: %d\r\nX-Who: %b\r\nX-Which: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        serial, who, which, len(mark) + filler, body,
    )  # fmt: skip


class _Innocent:
    """A client that asks now and then, and takes nothing but its own answers."""

    def __init__(self, bench: Bench) -> None:
        self._wire = bench.connect(INNOCENT.decode())
        self.asked = 0

    def ask(self) -> None:
        self._wire.feed(_innocent_request(self.asked))
        self.asked += 1

    def check(self) -> None:
        reading = read_answers(bytes(self._wire.taken), [b"POST"] * self.asked, False)
        assert not reading.rest
        assert len(reading.finals) == self.asked, "a client that did nothing wrong has no answer"
        for number, answer in enumerate(reading.finals):
            assert answer.status == 200, answer
            assert answer.values(b"x-who") == [INNOCENT]
            assert answer.values(b"x-which") == answer.values(b"x-request-id") == [b"SECRET%d" % number]
            assert answer.body.startswith(b"SECRET-answer")
        assert b"ATTACK" not in self._wire.taken


def check_hostile_clients(attack: Attack) -> None:
    serials: list[bytes] = []  # who sent the request that has this number

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if is_complete:
            serials.extend(request.values(b"x-forwarded-for"))
            heard.wire.feed(_echo(len(serials) - 1, request, attack.answer_bytes))

    origin = Origin(respond)

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        innocent = _Innocent(bench)
        wire = bench.connect(ATTACKER.decode())
        connection = wire.protocol
        if attack.stalls:
            wire.stall()
        wire.feed(attack.said)

        def others(step: int) -> None:
            if step in attack.others:
                innocent.ask()

        await deliver(bench, attack.how, others)
        innocent.ask()
        if attack.leaves == "ends":
            wire.end()
        elif attack.leaves == "resets":
            wire.reset()
        await deliver(bench, attack.how)
        innocent.check()
        if attack.stalls:
            await bench.pass_time(300.0, 60)
            if wire.get_write_buffer_size():
                assert wire.is_lost, "a client that takes nothing is never shown out"
            wire.flow()
        await bench.pass_time(1.0)
        exchanges = [exchange for exchange in bench.proxy.ended if exchange.client is connection]
        if not any(exchange.status == 101 for exchange in exchanges):
            _check_attacker(wire, [exchange.head.method for exchange in exchanges], serials)
        attempts = sum(exchange.attempts for exchange in bench.proxy.ended)
        running = sum(upstream.in_flight for upstream in bench.proxy.upstreams())
        assert len(origin.requests) <= attempts + running, "an instance got requests that nobody routed"
        await bench.finish()
        assert b"SECRET" not in wire.taken

    with_bench(scenario, origin, max_request_bytes=200_000)


def _check_attacker(wire: Wire, methods: list[bytes], serials: list[bytes]) -> None:
    methods = [*methods, b"GET"]  # of the request under way
    reading = read_answers(bytes(wire.taken), methods, wire.got_end)
    last = -1
    for answer in reading.finals:
        assert answer.status != 500
        if not answer.values(b"x-serial"):
            assert answer.values(b"content-type") or answer.status == 204, answer
            continue
        serial = int(answer.values(b"x-serial")[0])
        assert serials[serial] == ATTACKER
        assert serial > last, "answers are out of order"
        assert answer.values(b"x-which") == answer.values(b"x-request-id"), "the answer to another request"
        last = serial
    if wire.got_end:
        assert not reading.rest, "the end of an answer is missing, and the connection was closed as if it were not"


@dataclass(frozen=True, slots=True)
class Poison:
    """What a broken instance answers to the requests of one client, and then does."""

    answers: tuple[bytes, ...]
    leaves: tuple[str, ...]
    how: Cuts
    methods: tuple[bytes, ...]


poisons = st.builds(
    Poison,
    st.lists(_hostile_answers(), min_size=1, max_size=3).map(tuple),
    st.lists(st.sampled_from(("stays", "stays", "ends", "resets")), min_size=1, max_size=3).map(tuple),
    cuts,
    st.lists(
        st.sampled_from((b"GET", b"GET", b"HEAD", b"POST", b"GET upgrade")), min_size=1, max_size=4
    ).map(tuple),
)  # fmt: skip


def check_hostile_instances(poison: Poison) -> None:
    count = [0]

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if not is_complete:
            return
        number = count[0]
        count[0] += 1
        if request.values(b"x-forwarded-for") == [INNOCENT]:
            heard.wire.feed(_echo(number, request, 5))
            return
        heard.wire.feed(poison.answers[number % len(poison.answers)])
        leaves = poison.leaves[number % len(poison.leaves)]
        if leaves == "ends":
            heard.wire.end()
        elif leaves == "resets":
            heard.wire.loop.call_soon(heard.wire.reset)

    origin = Origin(respond)

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        innocent = _Innocent(bench)
        wire = bench.connect(ATTACKER.decode())
        connection = wire.protocol
        for method in poison.methods:
            name, _, wish = method.partition(b" ")
            fields = b"Connection: Upgrade\r\nUpgrade: x\r\n" if wish else b""
            wire.feed(b"%b /api/hello/ATTACK HTTP/1.1\r\n%b%b\r\n" % (name, HOST, fields))
            await deliver(bench, poison.how)
            # Whatever came too much has come by now: it must not be taken for the answer to somebody else.
            innocent.ask()
            await deliver(bench, poison.how)
            innocent.check()
        await bench.pass_time(1.0)
        innocent.ask()
        await deliver(bench, poison.how)
        innocent.check()
        for _ in range(40):
            if wire.is_lost or getattr(connection, "is_idle", True):
                break
            await bench.pass_time(5.0)
            await deliver(bench, poison.how)
        exchanges = [exchange for exchange in bench.proxy.ended if exchange.client is connection]
        if all(exchange.status != 101 for exchange in exchanges):
            methods = [method.partition(b" ")[0] for method in poison.methods]
            reading = read_answers(bytes(wire.taken), methods, wire.got_end)
            if wire.got_end:
                assert not reading.rest, "a broken answer was passed off as a whole one"
            assert len(reading.finals) <= len(poison.methods)
        await bench.finish()
        assert b"SECRET" not in wire.taken

    with_bench(scenario, origin, breaker_failure_threshold=10**6)


# -- 4: instances that fail, clients that leave, tables that change

_MOMENTS = (
    "ask", "ask", "ask", "answer", "answer", "half", "reset", "end", "leave", "dial", "table", "time", "tick",
    "drain", "stall",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happens, and to whom; numbers are taken modulo what there is to choose from."""

    what: str
    who: int
    how: int


stories = st.lists(
    st.builds(Moment, st.sampled_from(_MOMENTS), st.integers(0, 7), st.integers(0, 7)), min_size=2, max_size=25
).map(tuple)

_STORY_METHODS = (b"GET", b"POST", b"PUT", b"GET", b"POST", b"HEAD", b"PATCH", b"DELETE")
_DIALS = ("accept", "accept", "refuse", "hang", "close", "accept", "refuse", "accept")
_TABLES: tuple[list[int], ...] = ([1, 2, 3], [1], [2, 3], [], [1, 2], [3], [1, 2, 3, 4], [2])
_TIMES = (0.05, 0.3, 1.1, 4.0, 6.0, 25.0, 31.0, 70.0)


def check_failing_instances(story: tuple[Moment, ...]) -> None:
    """Every request gets one final answer or a cut; what is not idempotent reaches an instance once at most."""
    owed: list[tuple[Heard, Message]] = []

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if is_complete:
            owed.append((heard, request))

    origin = Origin(respond)

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1, 2, 3])
        asked: dict[int, list[tuple[bytes, int]]] = {}
        count = 0
        for moment in story:
            if moment.what == "ask":
                method = _STORY_METHODS[moment.how]
                index = moment.who % 3
                while len(bench.clients) <= index:
                    bench.connect(f"10.0.0.{len(bench.clients) + 1}")
                wire = bench.clients[index]
                framing = ("none", "length", "chunked")[moment.who % 3] if method != b"GET" else "none"
                pieces = (0, 5) if framing != "none" else ()
                wire.feed(Ask(method, pieces, framing).encode(count).replace(b"/items", b"/story"))
                asked.setdefault(index, []).append((method, count))
                count += 1
            elif moment.what in ("answer", "half"):
                while owed and (owed[0][0].wire.is_closing() or owed[0][0].wire.has_end):
                    owed.pop(0)
                if owed:
                    heard, request = owed.pop(moment.who % len(owed))
                    status = (200, 200, 503, 502, 204, 404, 504, 200)[moment.how]
                    answer = Answer(status, (20,), ("length", "chunked", "close")[moment.who % 3])
                    number = int(request.first_line[1].rpartition(b"/")[2])
                    said = answer.encode(request.first_line[0], number)
                    if moment.what == "half":
                        said = said[: len(said) * moment.how // 8]
                    heard.wire.feed(said)
                    if answer.ends_connection and moment.what == "answer":
                        heard.wire.end()
            elif moment.what in ("reset", "end"):
                if origin.heard:
                    wire = origin.heard[moment.who % len(origin.heard)].wire
                    _ = wire.reset() if moment.what == "reset" else wire.end()
            elif moment.what in ("leave", "stall"):
                if bench.clients:
                    wire = bench.clients[moment.who % len(bench.clients)]
                    _ = wire.stall() if moment.what == "stall" else wire.reset() if moment.how % 2 else wire.end()
            elif moment.what == "dial":
                bench.server(moment.who % 4 + 1).dial = _DIALS[moment.how]
            elif moment.what == "table":
                bench.use_instances(_TABLES[moment.how])
            elif moment.what in ("time", "tick"):
                await bench.pass_time(_TIMES[moment.how], moment.who + 1 if moment.what == "tick" else 1)
            else:
                bench.proxy.is_draining = True
            if moment.how % 4:
                await deliver(bench, Cuts((30 + moment.who * 20, ALL), (moment.how, moment.who)))
        await deliver(bench, Cuts())
        await bench.finish()
        for index, requests in asked.items():
            _check_story(bench.clients[index], requests)
        _check_deliveries(origin)

    with_bench(scenario, origin)


def _check_story(wire: Wire, requests: list[tuple[bytes, int]]) -> None:
    reading = read_answers(bytes(wire.taken), [method for method, _ in requests], wire.got_end)
    for (_, number), answer in zip(requests, reading.finals, strict=False):
        assert answer.status != 500
        told = answer.values(b"x-answer")
        assert told in ([], [b"%d" % number]), "the answer to another request"
    if wire.got_end and not wire.is_reset:
        assert not reading.rest, "half an answer was passed off as a whole one"


def _check_deliveries(origin: Origin) -> None:
    heads: dict[bytes, int] = {}
    for heard in origin.heard:
        reading = heard.read()
        for message in (*reading.messages, *((reading.partial,) if reading.partial is not None else ())):
            method, target, _ = message.first_line
            if method in (b"POST", b"PATCH"):
                heads[target] = heads.get(target, 0) + 1
    repeated = {target: times for target, times in heads.items() if times > 1}
    assert not repeated, f"delivered more than once: {repeated}"


# -- 5: tunnels


@dataclass(frozen=True, slots=True)
class Tunnelling:
    """What both ends say through a tunnel, and who ends it."""

    up: tuple[bytes, ...]
    down: tuple[bytes, ...]
    how: Cuts
    early_up: int
    """How many pieces the client sends right behind its request, before anybody has agreed."""
    early_down: int
    ends: str
    agrees: bool


_SAID = st.lists(
    st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from(WORDS), st.just(b"\0\r\n" * 30_000)), max_size=6
).map(tuple)

tunnels = st.builds(
    Tunnelling,
    _SAID,
    _SAID,
    cuts,
    st.integers(0, 6),
    st.integers(0, 6),
    st.sampled_from(("client", "instance", "client resets", "instance resets", "nobody")),
    st.integers(0, 9).map(bool),
)

_WISH = b"GET /api/hello/chat HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: chat\r\n\r\n"
_AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
_DECLINED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"


def check_tunnels(case: Tunnelling) -> None:
    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if is_complete and request.values(b"upgrade"):
            heard.wire.on_taken = lambda _: None  # what follows is no HTTP
            heard.wire.feed(_AGREED + b"".join(case.down[: case.early_down]) if case.agrees else _DECLINED)

    origin = Origin(respond)

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.feed(_WISH + (b"".join(case.up[: case.early_up]) if case.agrees else b""))
        await deliver(bench, case.how)
        instance = origin.heard[0].wire
        if not case.agrees:
            (answer,) = read_answers(bytes(client.taken), [b"GET"], False).messages
            assert answer.body == b"no"
            client.feed(_WISH)  # plain HTTP goes on
            await deliver(bench, case.how)
            await bench.finish()
            return
        client.feed(b"".join(case.up[case.early_up :]))
        instance.feed(b"".join(case.down[case.early_down :]))
        await deliver(bench, case.how)
        reading = read_answers(bytes(client.taken), [b"GET"], False)
        assert [message.status for message in reading.messages] == [101]
        assert reading.rest == b"".join(case.down)
        asked = read_requests(bytes(instance.taken[: instance.taken.index(b"\r\n\r\n") + 4])).messages
        assert [message.values(b"upgrade") for message in asked] == [[b"chat"]]
        assert bytes(instance.taken).partition(b"\r\n\r\n")[2] == b"".join(case.up)
        if case.ends != "nobody":
            one, other = (client, instance) if case.ends.startswith("client") else (instance, client)
            if case.ends.endswith("resets"):
                one.reset()
                await deliver(bench, case.how)
                assert other.is_lost
                assert not other.got_end
            else:
                one.end()
                await deliver(bench, case.how)
                assert other.got_end
                other.feed(b"last words")
                other.end()
                await deliver(bench, case.how)
                assert one.taken.endswith(b"last words")
                assert one.is_lost
                assert other.is_lost
        await bench.finish()

    with_bench(scenario, origin)
