"""What the properties of `test_proxy_fuzz` have found, each as the shortest story that shows it."""

import pytest
from tests.support.http1 import Message, read_answers
from tests.support.proxy_fuzz import ALL, Cuts, Heard, Origin, deliver
from tests.support.wire import Bench, with_bench

HOST = b"Host: shop.example\r\n"
GET = b"GET /api/hello/one HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answering(*answers: bytes, ends: bool = False) -> Origin:
    """Instances that give these answers, the last one for good; `ends`: and close behind each."""
    left = list(answers)

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if is_complete:
            heard.wire.feed(left.pop(0) if len(left) > 1 else left[0])
            if ends:
                heard.wire.end()

    return Origin(respond)


def test_an_answer_that_ends_the_connection_is_not_lost_to_requests_that_nobody_reads():
    old = b"GET /api/hello/old HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\n\r\n"

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.feed(old + GET + GET)
        await deliver(bench, Cuts((len(old), len(GET), 10), (1,)))
        # Closing at once, with unread bytes there, would be a reset, and a reset may overtake the answer.
        assert client.got_end
        assert not client.is_lost
        (answer,) = read_answers(bytes(client.taken), [b"GET"], True).messages
        assert answer.body == b"until the end"
        await bench.pass_time(3.0, 3)
        assert client.is_lost

    with_bench(scenario, answering(b"HTTP/1.0 200 OK\r\n\r\nuntil the end", ends=True))


def test_a_client_that_does_not_take_the_end_of_an_answer_is_not_kept_for_ever():
    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.stall()
        client.feed(GET)
        await deliver(bench, Cuts((ALL,)))
        assert client.get_write_buffer_size()  # too little for backpressure
        await bench.pass_time(75.0 + 3 * 60.0, 40)
        assert client.is_lost
        assert not client.got_end

    with_bench(scenario, answering(OK))


def test_a_client_that_stays_after_its_refused_request_is_shown_out():
    post = b"POST /api/nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\nbody"

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.feed(post)  # the body comes with the head, so the refusal is given before the body is looked at
        await deliver(bench, Cuts((ALL,)))
        (answer,) = read_answers(bytes(client.taken), [b"POST"], client.got_end).messages
        assert answer.status == 404
        assert not client.is_lost
        await bench.pass_time(3.0, 3)
        assert client.is_lost

    with_bench(scenario, answering(OK))


def test_a_reason_phrase_with_control_characters_is_not_passed_on():
    said = b"HTTP/1.1 103 Ear\x01ly\r\n\r\nHTTP/1.1 500 So\x11me\x7f\r\nContent-Length: 0\r\n\r\n"

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.feed(GET)
        await deliver(bench, Cuts((ALL,)))
        interim, answer = read_answers(bytes(client.taken), [b"GET"], False).messages
        assert (interim.status, answer.status) == (103, 500)
        assert interim.first_line[2] == b""
        assert answer.first_line[2] in (b"", b"Internal Server Error")

    with_bench(scenario, answering(said))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50])
def test_a_request_that_begins_in_the_read_that_ended_the_head_before_it_is_understood(size):
    get = GET.removesuffix(b"\r\n") + b"X-A: 1\r\nX-B: 2\r\n\r\n"

    async def scenario(bench: Bench) -> None:
        bench.use_instances([1])
        client = bench.connect()
        client.feed(get + b"HEAD" + get[3:] + get)
        await deliver(bench, Cuts((size,)))
        reading = read_answers(bytes(client.taken), [b"GET", b"HEAD", b"GET"], False)
        assert [answer.status for answer in reading.messages] == [200, 200, 200]

    def respond(heard: Heard, request: Message, is_complete: bool) -> None:
        if is_complete:
            heard.wire.feed(OK if request.first_line[0] == b"GET" else OK.removesuffix(b"ok"))

    with_bench(scenario, Origin(respond))
