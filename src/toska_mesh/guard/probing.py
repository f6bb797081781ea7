"""The guard's own small question to an instance that serves HTTP: whether it answers at all.

Any answer will do, also an error: what is in doubt is whether somebody is there. The connection is a new one, because
those that are open may be what hangs.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, TypeVar

from toska_mesh.guard.guard import Guarded
from toska_mesh.model import Endpoint
from toska_mesh.model.metadata import HEALTH_CHECK_ENDPOINT

PROBE_SECONDS = 1.0
"""How long a probe waits for the first bytes of an answer."""

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


class DialError(Exception):
    """There is no connection. The text is for the client as well: it names neither addresses nor hosts."""


class Dials(Protocol):
    """Makes connections. Raises DialError or OSError."""

    async def dial(
        self, endpoint: Endpoint, tls: ssl.SSLContext | None, make: Callable[[], _P]
    ) -> tuple[asyncio.Transport, _P]: ...


class HttpProber:
    """`Prober` for HTTP/1.1: the health path, or `OPTIONS *` (RFC 9110 section 9.3.7) where none is known."""

    def __init__(self, dialler: Dials, user_agent: str) -> None:
        self._dialler = dialler
        self._user_agent = user_agent

    async def probe(self, target: Guarded) -> bool:
        """Whether any HTTP answer comes in time."""
        instance = target.instance
        path = instance.metadata.get(HEALTH_CHECK_ENDPOINT, "")
        is_usable = path.startswith("/") and path.isascii() and path.isprintable() and " " not in path
        request = f"{f'GET {path}' if is_usable else 'OPTIONS *'} HTTP/1.1\r\nHost: {instance.endpoint.authority}\r\n"
        reader = asyncio.StreamReader()
        transport = None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                transport, _ = await self._dialler.dial(
                    instance.endpoint, target.tls, lambda: asyncio.StreamReaderProtocol(reader)
                )
                transport.write(
                    f"{request}User-Agent: {self._user_agent}\r\nConnection: close\r\n\r\n".encode("latin-1")
                )
                return (await reader.readexactly(7)) == b"HTTP/1."
        except (DialError, OSError, TimeoutError, UnicodeError, RuntimeError, asyncio.IncompleteReadError):
            # RuntimeError: what uvloop says of a write to a connection that has just been lost.
            return False  # UnicodeError: the registry may hold names that are none
        finally:
            if transport is not None:
                transport.abort()
