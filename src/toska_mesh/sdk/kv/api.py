"""What a service programs against: `KeyValueStore`. Which store is behind it is the environment's business (`open.py`).

The operations are those of the C# runtime's abstraction, with `add` and the lazy `keys` and `items` beside them.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

T = TypeVar("T")
D = TypeVar("D")

Ttl = float | timedelta | None
"""Seconds, or a timedelta; None is for ever. The shortest is a millisecond, which is also the grain."""

Listed = list
"""The built-in, whose name `KeyValueStore.list` takes inside the class."""

DEFAULT_AT_MOST = 10_000


class KeyValueStore(Protocol):
    """Values of any JSON shape under text keys. Safe to share between the tasks of one event loop.

    Every call ends within the store's `timeout_seconds`; a listing within that time per page. Every method raises
    `KeyValueUnavailableError` when the store cannot be asked, never an empty answer in its place, `KeyValueError` when
    the store refuses, and `KeyValueFormatError` for a value that has no JSON form or does not fit `as_type`.
    """

    async def set(self, key: str, value: object, ttl_seconds: Ttl = None) -> None:
        """Store a value, whatever was there. Without a time to live it stays for ever, also if the old one had one."""
        ...

    async def add(self, key: str, value: object, ttl_seconds: Ttl = None) -> bool:
        """Store a value only if the key is free; True when it was. Of several at once exactly one gets True."""
        ...

    @overload
    async def get(self, key: str, default: None = None) -> Any: ...
    @overload
    async def get(self, key: str, default: D) -> Any | D: ...
    @overload
    async def get(self, key: str, default: None = None, *, as_type: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, default: D, *, as_type: type[T]) -> T | D: ...
    @overload
    async def get(self, key: str, default: object = None, *, as_type: object) -> Any: ...
    async def get(self, key: str, default: object = None, *, as_type: object = None) -> Any:
        """The value, built as `as_type` when given; `default` when there is none."""
        ...

    async def delete(self, key: str) -> bool:
        """Remove a value; True when there was one."""
        ...

    def keys(self, prefix: str = "", *, page_size: int = 100) -> AsyncIterator[str]:
        """All keys that begin with `prefix`, in no order, asked for page by page as they are taken.

        What is there from beginning to end comes exactly once; what comes or goes meanwhile may or may not.
        """
        ...

    @overload
    def items(self, prefix: str = "", *, page_size: int = 100) -> AsyncIterator[tuple[str, Any]]: ...
    @overload
    def items(self, prefix: str = "", *, page_size: int = 100, as_type: type[T]) -> AsyncIterator[tuple[str, T]]: ...
    @overload
    def items(self, prefix: str = "", *, page_size: int = 100, as_type: object) -> AsyncIterator[tuple[str, Any]]: ...
    def items(
        self, prefix: str = "", *, page_size: int = 100, as_type: object = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """Keys as by `keys`, each with its value; one request per page fetches the values."""
        ...

    async def list_keys(self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST) -> Listed[str]:
        """The keys of `keys`, sorted. KeyValueError when there are more than `at_most`: never a silent half."""
        ...

    @overload
    async def list(self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST) -> Listed[Any]: ...
    @overload
    async def list(
        self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST, as_type: type[T]
    ) -> Listed[T]: ...
    @overload
    async def list(
        self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST, as_type: object
    ) -> Listed[Any]: ...
    async def list(
        self, prefix: str = "", *, page_size: int = 100, at_most: int = DEFAULT_AT_MOST, as_type: object = None
    ) -> Listed[Any]:
        """The values of `items`, in the order of their keys, bounded as `list_keys` is."""
        ...
