"""Bodies of requests: whether they can be sent again, and how one that comes bit by bit passes.

The gateway's rule holds for callers too: what is up to `REPLAY_MAX_BYTES` long is kept for another try, what is longer
is sent once. A caller's own mistake while it produces its body (`Upload.error`) is the caller's, never the instance's.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any, Final, Protocol, cast
from urllib.parse import urlencode

import aiohttp
import orjson
from aiohttp.payload import Payload

from toska_mesh.guard import REPLAY_MAX_BYTES

CHUNK_BYTES: Final = 64 * 1024


class Body(Protocol):
    """What one call sends, in as many tries as it takes."""

    content_type: str
    """Empty: the caller's headers say it, or nobody."""
    length: int | None
    """None: not known before its end."""

    @property
    def is_repeatable(self) -> bool:
        """Whether all of it can be sent again, as far as it was sent by now."""

    def payload(self) -> Any:
        """What the transport sends in the next try: bytes, or chunks of them; None for no body at all."""


class Nothing:
    """No body."""

    __slots__ = ()
    content_type = ""
    length: int | None = 0
    is_repeatable = True

    def payload(self) -> None:
        return None


NOTHING: Final = Nothing()


class Whole:
    """A body that is here in one piece, and short enough to be kept."""

    __slots__ = ("_data", "content_type", "length")
    is_repeatable = True

    def __init__(self, data: bytes, content_type: str) -> None:
        self._data = data
        self.content_type = content_type
        self.length: int | None = len(data)

    def payload(self) -> bytes:
        return self._data


class Upload:
    """A body that comes bit by bit. Its beginning is kept as long as it is short, so that another try may have it.

    One try reads at a time; a try that was given up in the middle of waiting for the caller's next bit may have lost
    that bit, so nothing is sent again after that.
    """

    def __init__(self, source: AsyncIterable[bytes], content_type: str = "", length: int | None = None) -> None:
        self.content_type = content_type
        self.length = length
        self.error: Exception | None = None
        """What the caller's own code raised while it produced the body."""
        self.is_over = False
        """Whether the last bit has been taken."""
        self.on_over: Any = None
        """Called without arguments when the last bit has been taken."""
        self._source = aiter(source)
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._is_waiting = False
        self._reader = 0

    @property
    def is_repeatable(self) -> bool:
        return self._kept is not None and not self._is_waiting and self.error is None

    def payload(self) -> AsyncIterator[bytes]:
        self._reader += 1
        return self._read(self._reader)

    async def _read(self, reader: int) -> AsyncIterator[bytes]:
        for chunk in list(self._kept or ()):
            yield chunk
        while reader == self._reader and (chunk := await self._next()):
            yield chunk
        if self.on_over is not None and reader == self._reader:
            self.on_over()

    async def _next(self) -> bytes:
        """The next bit; nothing at the end."""
        while not self.is_over:
            self._is_waiting = True
            try:
                chunk = await anext(self._source)
            except StopAsyncIteration:
                self.is_over = True
                break
            except Exception as error:
                self.error = error
                raise
            except BaseException:
                self._kept = None  # cancelled: the bit that was under way is lost
                raise
            finally:
                self._is_waiting = False
            if chunk:
                self._keep(chunk)
                return chunk
        return b""

    def _keep(self, chunk: bytes) -> None:
        self._kept_bytes += len(chunk)
        if self._kept is None or self._kept_bytes > REPLAY_MAX_BYTES:
            self._kept = None
        else:
            self._kept.append(bytes(chunk))


class Once:
    """A body in a form of aiohttp's own (a large multipart form): sent once, and not again if it was begun."""

    __slots__ = ("_is_given", "_payload", "content_type", "length")

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._is_given = False
        self.content_type = ""
        self.length: int | None = None

    @property
    def is_repeatable(self) -> bool:
        return not self._is_given

    def payload(self) -> Payload:
        self._is_given = True
        return self._payload


async def make_body(data: object = None, json: object = None) -> Body:
    """The body of a call from what aiohttp takes as `data`, or from a value for `json`.

    Raises TypeError for both at once, and what orjson raises for a value without a JSON form.
    """
    if json is not None:
        if data is not None:
            raise TypeError("data and json say the body twice; give one of them")
        return _piece(orjson.dumps(json), "application/json")
    if data is None:
        return NOTHING
    if isinstance(data, str):
        return _piece(data.encode(), "text/plain; charset=utf-8")
    if isinstance(data, bytes | bytearray | memoryview):
        return _piece(bytes(data), "application/octet-stream")
    if isinstance(data, AsyncIterable):
        return Upload(cast("AsyncIterable[bytes]", data), "application/octet-stream")
    if hasattr(data, "read"):
        return Upload(_file_chunks(data), "application/octet-stream")
    return await _form(data)


def _piece(data: bytes, content_type: str) -> Body:
    if len(data) <= REPLAY_MAX_BYTES:
        return Whole(data, content_type)
    return Upload(_slices(data), content_type, len(data))


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


async def _file_chunks(file: Any) -> AsyncIterator[bytes]:
    """A file's bytes, read in a thread because a disk may be slow."""
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk.encode() if isinstance(chunk, str) else chunk


async def _form(data: Any) -> Body:
    pairs = list(data.items()) if isinstance(data, Mapping) else data
    if isinstance(pairs, Iterable) and not isinstance(pairs, aiohttp.FormData):
        pairs = list(pairs)
        if all(isinstance(pair, tuple) and isinstance(pair[1], str | int | float) for pair in pairs):
            return _piece(urlencode(pairs).encode(), "application/x-www-form-urlencoded")
    payload = data() if isinstance(data, aiohttp.FormData) else aiohttp.FormData(data)()
    if payload.size is None or payload.size > REPLAY_MAX_BYTES:
        return Once(payload)
    rendered = _Rendered()
    await payload.write(cast("Any", rendered))
    return Whole(bytes(rendered.data), payload.headers["Content-Type"])


class _Rendered:
    """Takes what a payload writes to a connection."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, chunk: bytes) -> None:
        self.data += chunk
