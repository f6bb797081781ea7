"""What of a request can be sent again, and with which bytes."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from toska_mesh.sdk.bodies import NOTHING, Body, Once, Upload, Whole, make_body


async def sent(body: Body) -> bytes:
    """All of it, as one try sends it."""
    payload: Any = body.payload()
    if payload is None:
        return b""
    if isinstance(payload, bytes):
        return payload
    return b"".join([chunk async for chunk in payload])


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def multipart(*parts: tuple[str, bytes]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, content in parts:
        form.add_field(name, content, filename=name)
    return form


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        pytest.param("grüße", "text/plain; charset=utf-8", "grüße".encode(), id="text"),
        pytest.param(b"abc", "application/octet-stream", b"abc", id="bytes"),
        pytest.param(bytearray(b"abc"), "application/octet-stream", b"abc", id="bytearray"),
        pytest.param({"a": "1 2", "b": 3}, "application/x-www-form-urlencoded", b"a=1+2&b=3", id="form"),
        pytest.param([("a", "1"), ("a", "2")], "application/x-www-form-urlencoded", b"a=1&a=2", id="repeated fields"),
        pytest.param(b"x" * 65_536, "application/octet-stream", b"x" * 65_536, id="just short enough"),
    ],
)
async def test_what_is_short_is_kept(data: Any, content_type: str, expected: bytes) -> None:
    body = await make_body(data)
    assert isinstance(body, Whole)
    assert (body.content_type, body.length) == (content_type, len(expected))
    assert await sent(body) == await sent(body) == expected
    assert body.is_repeatable


async def test_json_is_written_once_for_all_tries() -> None:
    body = await make_body(json={"id": 7, "name": "ü"})
    assert (body.content_type, await sent(body)) == ("application/json", '{"id":7,"name":"ü"}'.encode())
    with pytest.raises(TypeError, match="say the body twice"):
        await make_body(b"x", {"id": 7})


async def test_without_data_there_is_no_body() -> None:
    assert await make_body() is NOTHING
    assert (NOTHING.payload(), NOTHING.is_repeatable) == (None, True)


async def test_what_is_longer_passes_once_and_says_its_length() -> None:
    body = await make_body(b"x" * 65_537)
    assert isinstance(body, Upload)
    assert body.length == 65_537
    assert body.is_repeatable, "nothing has been taken yet"
    assert await sent(body) == b"x" * 65_537
    assert not body.is_repeatable
    assert body.is_over


async def test_a_short_stream_can_be_sent_again_from_its_beginning() -> None:
    body = Upload(chunks(b"abc", b"", b"def"))
    assert await sent(body) == b"abcdef"
    assert body.is_repeatable
    assert await sent(body) == b"abcdef"


async def test_a_try_that_was_given_up_between_two_bits_loses_none() -> None:
    body = Upload(chunks(b"abc", b"def", b"ghi"))
    first = body.payload()
    assert await anext(first) == b"abc"
    assert body.is_repeatable
    second = body.payload()
    assert await anext(second) == b"abc"
    assert await anext(second) == b"def"
    with pytest.raises(StopAsyncIteration):
        await anext(first)  # it is over for the try that was given up
    assert b"".join([chunk async for chunk in second]) == b"ghi"


async def test_a_try_that_was_given_up_while_it_waited_for_the_next_bit_ends_it() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"abc"
        await asyncio.sleep(10)
        yield b"def"

    body = Upload(slow())
    reader = body.payload()
    assert await anext(reader) == b"abc"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(reader)
    assert not body.is_repeatable
    await reader.aclose()


async def test_the_end_of_an_upload_is_told_once() -> None:
    told = []
    body = Upload(chunks(b"abc"))
    body.on_over = lambda: told.append(body.is_over)
    await sent(body)
    assert told == [True]


async def test_what_a_caller_s_body_raises_is_remembered() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise LookupError("gone")

    body = Upload(broken())
    with pytest.raises(LookupError):
        await sent(body)
    assert isinstance(body.error, LookupError)
    assert not body.is_repeatable


async def test_a_file_is_read_bit_by_bit() -> None:
    body = await make_body(io.BytesIO(b"x" * 200_000))
    assert isinstance(body, Upload)
    assert await sent(body) == b"x" * 200_000


async def test_a_short_multipart_form_is_kept_and_a_long_one_goes_out_once() -> None:
    short = await make_body(multipart(("a", b"content")))
    assert isinstance(short, Whole)
    assert short.content_type.startswith("multipart/form-data; boundary=")
    assert b"content" in await sent(short)
    long = await make_body(multipart(("a", b"x" * 100_000)))
    assert isinstance(long, Once)
    assert long.is_repeatable
    long.payload()
    assert not long.is_repeatable
