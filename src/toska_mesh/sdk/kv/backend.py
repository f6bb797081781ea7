"""The seam below `JsonStore`: a place that keeps text under text keys. Redis, ToskaStore and SQLite implement it.

A backend knows nothing of JSON, prefixes, deadlines or retries. It is awaited under a deadline and must stay usable
when that cuts a call off. Foreign exceptions become `KeyValueError` (refused), or `KeyValueUnavailableError` with the
truth about `may_have_happened`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Page:
    """Some keys, and where to go on; no cursor: these were the last. A page may be empty and not the last."""

    keys: tuple[str, ...]
    cursor: str | None


class Backend(Protocol):
    """Keys are whole: prefix and all."""

    @property
    def name(self) -> str:
        """For messages: kind and address, no secrets."""
        ...

    @property
    def repeats_keys(self) -> bool:
        """Whether one walk through the pages may meet a key twice."""
        ...

    async def write(self, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        """Store; False only when `if_absent` and the key is taken."""
        ...

    async def read(self, key: str) -> str | None: ...

    async def read_many(self, keys: Sequence[str]) -> Sequence[str | None]:
        """The texts in the order of the keys."""
        ...

    async def remove(self, key: str) -> bool:
        """True when there was something to remove."""
        ...

    async def page(self, prefix: str, size: int, cursor: str | None) -> Page:
        """Roughly `size` keys that begin with `prefix`, from the cursor of the page before."""
        ...

    async def close(self) -> None: ...
