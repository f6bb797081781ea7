"""What is known about the caller of one request, whichever transport it came by, and how its time is shared out."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from toska_mesh.discovery.auth import Identity
from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model.rules import IPAddress

T = TypeVar("T")

DEFAULT_SECONDS = 5.0
"""How long a call may take whose caller set no deadline."""

MAX_SECONDS = 30.0
"""A caller's own deadline beyond this is cut: a frozen registry must not collect callers."""

ANSWER_SECONDS = 0.1
"""Kept back from the caller's deadline, so that a refusal still reaches it."""

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """`deadline` is on the loop's clock. `peer` is for the audit log, `ip` for addresses."""

    deadline: float
    peer: str = ""
    ip: IPAddress | None = None
    identity: Identity | None = None
    correlation_id: str | None = None


def deadline_of(
    now: float,
    seconds_left: float | None,
    *,
    longest_seconds: float = MAX_SECONDS,
    kept_back_seconds: float = ANSWER_SECONDS,
) -> float:
    """The moment by which the registry must have answered, given the caller's own patience (None = not said)."""
    if seconds_left is None:
        return now + DEFAULT_SECONDS
    patience = min(seconds_left, longest_seconds)
    return now + patience - min(kept_back_seconds, patience / 4)


async def patiently(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Ask the registry, and again after a hiccup, until `deadline`. Raises the last RegistryUnavailableError then."""
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await ask()
        except RegistryUnavailableError:
            if loop.time() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
