"""Consul's blocking queries, and how long to wait after one failed.

Rules (https://developer.hashicorp.com/consul/api-docs/features/blocking): the first read carries no index; an index
that goes backwards is reset; 0 is never waited on; the client waits longer than the server may (wait + wait/16).
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.registry.consul.client import Answer, ConsulApi, ThrottledError

_NO_PARAMS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Poll:
    """One answer of a blocking query."""

    body: bytes
    index: int
    went_back: bool
    """The index is lower than one seen before: the registry was wiped, restored or replaced."""
    is_new: bool
    """False when the wait ran out without a change."""


class BlockingQuery:
    """Asks one endpoint again and again, each time waiting for news. One owner; one call of `next` at a time."""

    def __init__(
        self,
        api: ConsulApi,
        path: str,
        *,
        params: Mapping[str, str] = _NO_PARAMS,
        wait_seconds: float = 120.0,
        slack_seconds: float = 5.0,
    ) -> None:
        self._api = api
        self._path = path
        self._params = params
        self._wait_seconds = wait_seconds
        # Consul adds up to wait/16 of jitter of its own.
        self._limit_seconds = wait_seconds + wait_seconds / 16 + slack_seconds
        self._first_seconds = slack_seconds
        self._index = 0
        self._highest = 0
        self._asked_at = 0.0
        self._timeout: asyncio.Timeout | None = None

    async def next(self) -> Poll:
        """The next answer: at once when there is no index to wait on, else after a change or `wait_seconds`.

        Raises RegistryError, after which the next call reads without an index: the registry may have been replaced by
        one whose index is lower, and waiting there for the old index would miss everything until the wait ran out.
        """
        index, self._index = self._index, 0
        params = dict(self._params)
        if index > 0:
            params |= {"index": str(index), "wait": f"{max(1, round(self._wait_seconds))}s"}
        answer = await self._ask(params, self._limit_seconds if index else self._first_seconds)
        if answer.index is None or answer.index < 0:
            raise RegistryUnavailableError(f"the answer to {self._path} carries no X-Consul-Index")
        seen = answer.index
        went_back = seen < self._highest
        self._highest = seen
        # A wiped registry is read once more without an index, so that nothing hides behind the old one.
        self._index = 0 if went_back else max(seen, 1)
        return Poll(answer.body if answer.status != 404 else b"", seen, went_back, index == 0 or seen != index)

    async def _ask(self, params: Mapping[str, str], limit_seconds: float) -> Answer:
        self._asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as self._timeout:
                return await self._api.call("GET", self._path, params, limit_seconds=limit_seconds, missing_ok=True)
        except TimeoutError as error:
            raise RegistryUnavailableError(f"the wait on {self._path} was cut short") from error
        finally:
            self._timeout = None

    def forget_index(self) -> None:
        """Read at once next time, without an index: the last answer could not be used."""
        self._index = 0

    def cut_short(self, asked_before: float) -> None:
        """Let a running `next` fail now if it asked before that moment: its connection may have died since."""
        if self._timeout is not None and self._asked_at < asked_before:
            self._timeout.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True)
class Backoff:
    """Growing, jittered pauses between failed tries. `Retry-After` of the registry is obeyed."""

    rng: random.Random
    base_seconds: float = 0.2
    longest_seconds: float = 5.0
    failures: int = field(default=0, init=False)

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, error: RegistryError) -> float:
        """Seconds to wait before the next try: between half and all of base * 2^n, at most `longest_seconds`.

        A refusal (no retry will help until somebody acts) waits the longest at once.
        """
        self.failures += 1
        ceiling = min(self.longest_seconds, self.base_seconds * 2.0 ** min(self.failures - 1, 16))
        if not isinstance(error, RegistryUnavailableError):
            ceiling = self.longest_seconds
        pause = ceiling * self.rng.uniform(0.5, 1.0)
        if isinstance(error, ThrottledError):
            pause += error.retry_after_seconds
        return pause
