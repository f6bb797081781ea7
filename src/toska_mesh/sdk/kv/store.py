"""`JsonStore`: the `KeyValueStore` that every provider shares. Owns the prefix, the JSON, the deadline and the retries.

A read, a `set` and a page are repeated while the deadline allows, because doing them twice is doing them once. `add`
and `delete` say what was there before, so they are repeated only when the first try certainly never took effect: after
a lost answer the second try would find the work of the first and tell a lie.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueFormatError, KeyValueUnavailableError
from toska_mesh.resilience.retry import RetryPolicy
from toska_mesh.sdk.kv.api import DEFAULT_AT_MOST, Listed, Ttl
from toska_mesh.sdk.kv.backend import Backend
from toska_mesh.sdk.kv.codec import encode
from toska_mesh.sdk.kv.typed import decode

T = TypeVar("T")

LONGEST_TTL_MS: Final = 1000 * 365 * 86_400_000
"""A thousand years: a sum with the time of day stays inside every store's integers."""

LARGEST_PAGE: Final = 1000
"""ToskaStore answers 400 to a larger limit; it is long enough for every store."""

_PATIENCE: Final = RetryPolicy(count=3, base_seconds=0.05, factor=4.0, jitter_seconds=0.05)
"""Rides over the restart of a server that takes a second, and does not hold the caller for a longer one."""


class JsonStore:
    """One store under one key prefix; implements `KeyValueStore`. Lives on one event loop. Closes its backend."""

    def __init__(
        self, backend: Backend, key_prefix: str, timeout_seconds: float = 5.0, rng: random.Random | None = None
    ) -> None:
        """Raises ConfigError for a prefix that `whole_prefix` does not take, and for a time that is none."""
        if not (math.isfinite(timeout_seconds) and timeout_seconds > 0):
            raise ConfigError(f"timeout_seconds={timeout_seconds!r} should be a number of seconds above 0")
        self.key_prefix = whole_prefix(key_prefix)
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        self._rng = rng or random.Random()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<JsonStore {self.key_prefix}* in {self._backend.name}>"

    async def close(self) -> None:
        """Every later call is a KeyValueError."""
        self._is_closed = True
        await self._backend.close()

    # One value

    async def set(self, key: str, value: object, ttl_seconds: Ttl = None) -> None:
        full, text, ttl_ms = self._full(key), _encoded(key, value), _milliseconds(ttl_seconds)
        await self._ask(f"set {key!r}", lambda: self._backend.write(full, text, ttl_ms, False))

    async def add(self, key: str, value: object, ttl_seconds: Ttl = None) -> bool:
        full, text, ttl_ms = self._full(key), _encoded(key, value), _milliseconds(ttl_seconds)
        return await self._ask(
            f"add {key!r}", lambda: self._backend.write(full, text, ttl_ms, True), is_repeatable=False
        )

    async def get(self, key: str, default: object = None, *, as_type: object = None) -> Any:
        full = self._full(key)
        text = await self._ask(f"get {key!r}", lambda: self._backend.read(full))
        return _decoded(key, text, as_type) if text else default  # an empty text is what the C# runtime calls missing

    async def delete(self, key: str) -> bool:
        full = self._full(key)
        return await self._ask(f"delete {key!r}", lambda: self._backend.remove(full), is_repeatable=False)

    # Many values

    async def keys(self, prefix: str = "", *, page_size: int = 100) -> AsyncIterator[str]:
        async for keys in self._pages(prefix, page_size):
            for key in keys:
                yield self._short(key)

    async def items(
        self, prefix: str = "", *, page_size: int = 100, as_type: object = None
    ) -> AsyncIterator[tuple[str, Any]]:
        async for keys in self._pages(prefix, page_size):
            texts = await self._ask(f"list {prefix!r}", partial(self._backend.read_many, keys))
            for key, text in zip(keys, texts, strict=True):
                if text:  # gone since its key was listed, or empty
                    yield self._short(key), _decoded(self._short(key), text, as_type)

    async def list_keys(self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST) -> Listed[str]:
        found: list[str] = []
        async for key in self.keys(prefix, page_size=page_size):
            self._check_bound(found, at_most, prefix)
            found.append(key)
        return sorted(found)

    async def list(
        self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST, as_type: object = None
    ) -> Listed[Any]:
        found: Listed[tuple[str, Any]] = []
        async for item in self.items(prefix, page_size=page_size, as_type=as_type):
            self._check_bound(found, at_most, prefix)
            found.append(item)
        return [value for _, value in sorted(found, key=lambda item: item[0])]

    def _check_bound(self, found: Listed[Any], at_most: int, prefix: str) -> None:
        if len(found) >= at_most:
            raise KeyValueError(
                f"{self._backend.name} has more than at_most={at_most} keys that begin with {prefix!r}; "
                "take them one by one with keys() or items()"
            )

    async def _pages(self, prefix: str, page_size: int) -> AsyncIterator[tuple[str, ...]]:
        if page_size < 1:
            raise ValueError(f"page_size={page_size} should be at least 1")
        _check_text(prefix, "the prefix")
        full, size = self.key_prefix + prefix, min(page_size, LARGEST_PAGE)
        seen: set[str] = set()
        cursor: str | None = None
        while True:
            page = await self._ask(f"list {prefix!r}", partial(self._backend.page, full, size, cursor))
            keys = page.keys
            if self._backend.repeats_keys:
                keys = tuple(key for key in dict.fromkeys(keys) if key not in seen)
                seen.update(keys)
            if keys:
                yield keys
            cursor = page.cursor
            if cursor is None:
                return

    # One request

    async def _ask(self, what: str, call: Callable[[], Awaitable[T]], is_repeatable: bool = True) -> T:
        """Call, and again after a failure while that is safe and the deadline allows."""
        if self._is_closed:
            raise KeyValueError(f"{self._backend.name} is closed; it cannot {what}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        retries = 0
        failure: KeyValueUnavailableError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await call()
                    except KeyValueUnavailableError as exc:
                        failure = exc
                    pause = _PATIENCE.pause_seconds(retries, self._rng)
                    given_up = retries >= _PATIENCE.count or loop.time() + pause >= deadline
                    if given_up or (failure.may_have_happened and not is_repeatable):
                        raise failure
                    retries += 1
                    await asyncio.sleep(pause)
        except TimeoutError as exc:
            before = f"; before that: {failure}" if failure else ""
            raise KeyValueUnavailableError(
                f"{self._backend.name} did not answer within {self._timeout_seconds:g} s to: {what}{before}"
            ) from exc

    def _full(self, key: str) -> str:
        if not key:
            raise KeyValueError("the key is empty; it should be a text of at least one character")
        _check_text(key, "the key")
        return self.key_prefix + key

    def _short(self, key: str) -> str:
        return key.removeprefix(self.key_prefix)


def whole_prefix(text: str) -> str:
    """With the colon at its end. ConfigError when it is blank."""
    if not text.strip():
        raise ConfigError("the key-value store needs a key prefix or the name of the service")
    _check_text(text, "the key prefix")
    return text if text.endswith(":") else f"{text}:"


def _check_text(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {text!r}; it should be a str")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise KeyValueError(f"{what} {text!r} has a lone surrogate, which is no character") from exc


def _encoded(key: str, value: object) -> str:
    try:
        return encode(value)
    except KeyValueFormatError as exc:
        raise KeyValueFormatError(f"{key!r} cannot be stored: {exc}") from exc


def _decoded(key: str, text: str, as_type: object) -> Any:
    try:
        return decode(text, as_type)
    except KeyValueFormatError as exc:
        raise KeyValueFormatError(f"{key!r} cannot be read: {exc}") from exc


def _milliseconds(ttl: Ttl) -> int | None:
    """Whole milliseconds. Below one there is none that all stores know: ToskaStore would delete, Redis refuse."""
    if ttl is None:
        return None
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not 0.001 <= seconds <= LONGEST_TTL_MS / 1000:
        raise KeyValueError(
            f"ttl_seconds={seconds!r} should be at least 0.001 (a millisecond) and at most 1000 years; "
            "None keeps a value for ever, delete() removes it"
        )
    return round(seconds * 1000)
