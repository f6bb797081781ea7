"""Values in Redis, through redis-py (extra `redis`). Keys and texts are those of the C# runtime's Redis provider.

The deadline is the store's and so are the retries: redis-py's own are off. A connection that a deadline cut off in the
middle of an answer is thrown away by redis-py; the next call dials again.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from toska_mesh.errors import KeyValueError, KeyValueFormatError, KeyValueUnavailableError
from toska_mesh.sdk.kv.backend import Page
from toska_mesh.sdk.kv.redis_address import RedisAddress

_CONNECTIONS: Final = 50
_SCAN_COUNT: Final = 1000

_GLOB: Final = str.maketrans({character: f"\\{character}" for character in "*?[]\\^-"})

_NOT_NOW: Final = (
    exceptions.BusyLoadingError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
_NOT_NOW_CODES: Final = ("BUSY ", "NOREPLICAS ")
"""Answers that say: later. All of them come before the command does anything."""

_HINTS: Final[Mapping[type[Exception], str]] = {
    exceptions.ReadOnlyError: "this server is a replica: name the primary",
    exceptions.MovedError: "this is a Redis Cluster, which is not supported",
    exceptions.AuthenticationError: "user or password are missing or wrong",
    exceptions.NoPermissionError: "this user may not do that",
    exceptions.OutOfMemoryError: "the server's memory is full",
}


class RedisBackend:
    """Implements `Backend`. Dials at the first call; one connection per call under way, kept for the next."""

    repeats_keys = True  # SCAN promises only that what stays is met at least once

    def __init__(self, address: RedisAddress) -> None:
        self.name = f"Redis at {address}"
        self._client: Any = Redis(
            host=address.host,
            port=address.port,
            db=address.database or 0,
            username=address.user or None,
            password=address.password or None,
            ssl=address.use_tls,
            client_name=address.client_name or None,
            max_connections=_CONNECTIONS,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # every server speaks it, and with it redis-py looks whether a kept connection still lives
        )

        # redis-py refuses what is more than its connections; here it waits its turn, within the deadline.
        self._turns = asyncio.Semaphore(_CONNECTIONS)

    async def write(self, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        # Without PX Redis forgets a time to live that the key had.
        return bool(await self._run(key, self._client.set(key, text, px=ttl_ms, nx=if_absent)))

    async def read(self, key: str) -> str | None:
        return self._text(key, await self._run(key, self._client.get(key)))

    async def read_many(self, keys: Sequence[str]) -> Sequence[str | None]:
        found = await self._run(keys[0], self._client.mget(keys))
        return [self._text(key, value) for key, value in zip(keys, found, strict=True)]

    async def remove(self, key: str) -> bool:
        return bool(await self._run(key, self._client.delete(key)))

    async def page(self, prefix: str, size: int, cursor: str | None) -> Page:
        pattern = f"{prefix.translate(_GLOB)}*"
        # The count is of keys looked at, also of other services' ones: few steps over a large database.
        count = max(size, _SCAN_COUNT)
        after, keys = await self._run(prefix, self._client.scan(int(cursor or 0), match=pattern, count=count))
        names = tuple(str(self._text(prefix, key)) for key in keys)
        return Page(names, str(after) if int(after) else None)

    async def close(self) -> None:
        await self._client.aclose()

    def _text(self, key: str, value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as exc:
            raise KeyValueFormatError(f"{self.name} holds something at {key!r} that is no UTF-8 text") from exc

    async def _run(self, key: str, command: Awaitable[Any]) -> Any:
        try:
            async with self._turns:
                return await command
        except _NOT_NOW as exc:
            raise KeyValueUnavailableError(f"{self.name} cannot serve now: {exc}", may_have_happened=False) from exc
        except (exceptions.AuthenticationError, exceptions.ResponseError) as exc:
            if str(exc).startswith(_NOT_NOW_CODES):
                raise KeyValueUnavailableError(f"{self.name} cannot serve now: {exc}", may_have_happened=False) from exc
            hint = next((f" ({hint})" for kind, hint in _HINTS.items() if isinstance(exc, kind)), "")
            raise KeyValueError(f"{self.name} refused {key!r}: {exc}{hint}") from exc
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as exc:
            # redis-py has one error for a refused and for a broken connection; only the text tells them apart.
            was_sent = "connecting to" not in str(exc)
            raise KeyValueUnavailableError(f"{self.name} cannot be reached: {exc}", was_sent) from exc
        except exceptions.RedisError as exc:
            raise KeyValueError(f"{self.name} failed for {key!r}: {exc}") from exc
