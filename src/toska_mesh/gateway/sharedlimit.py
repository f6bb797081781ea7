"""The rate limit when several processes serve one port: the same GCRA, its buckets in memory that they share.

The table is a file in memory with a fixed number of slots: a client's tag (64 bits of a keyed hash) and the moment at
which its bucket is full again (`time.monotonic`, one clock for all processes of a machine). There is no lock: two
workers that serve the same client in the same microsecond may lose one of two updates, so the limit holds within a few
percent. A slot whose bucket is full again is free; when all slots that a client may use are taken, it shares the
emptiest of them, so a flood of invented addresses cannot give anybody's permits back.

Behind the table of the gateway's own limit lies a second one for the limits of single routes, all of them together: a
route mixes its name into the tag. So memory does not grow with the routes, a limit survives every change of the
routes, and a route with a window of an hour cannot fill the slots that the gateway's own limit needs.
"""

import mmap
import os
from copy import copy
from hashlib import blake2b

from toska_mesh.resilience import Decision

SLOTS = 1 << 17
SLOT_BYTES = 16
WAYS = 8
"""Slots in a row that a client may use."""

_FORGIVEN = 1e-3
_MAX_TAGS = 16_384


def create_table() -> int:
    """Both tables, new; gives their file descriptor, to be handed to the workers. Unused pages cost no memory."""
    descriptor = os.memfd_create("toska-rate-limit")
    os.ftruncate(descriptor, 2 * SLOTS * SLOT_BYTES + SLOT_BYTES)
    os.pwrite(descriptor, os.urandom(SLOT_BYTES), 2 * SLOTS * SLOT_BYTES)
    return descriptor


class SharedRateLimiter:
    """`resilience.RateLimiter` over a shared table. Times are seconds of `time.monotonic`."""

    _route = 0
    """Mixed into every tag, so that a client has a bucket of its own at each route."""

    def __init__(self, descriptor: int, permits: int, window_seconds: float) -> None:
        self._memory = mmap.mmap(descriptor, 2 * SLOTS * SLOT_BYTES + SLOT_BYTES)
        view = memoryview(self._memory)
        self._secret = bytes(view[2 * SLOTS * SLOT_BYTES :])
        self._tags = view[: SLOTS * SLOT_BYTES].cast("Q")
        self._full_at = view[: SLOTS * SLOT_BYTES].cast("d")
        self._known: dict[str, int] = {}
        self._allow(permits, window_seconds)

    def _allow(self, permits: int, window_seconds: float) -> None:
        self._limit = permits
        self._step = window_seconds / permits
        self._span = window_seconds

    def for_route(self, name: str, permits: int, window_seconds: float) -> "SharedRateLimiter":
        """The limit of one route, in the second table. Those made for the same name and limit share their buckets."""
        limiter = copy(self)
        view = memoryview(self._memory)[SLOTS * SLOT_BYTES : 2 * SLOTS * SLOT_BYTES]
        limiter._tags = view.cast("Q")
        limiter._full_at = view.cast("d")
        # A bucket of another limit would say nothing: after a window of an hour a client might wait as long.
        limiter._route = self._hash(f"{name} {permits} {window_seconds}")
        limiter._allow(permits, window_seconds)
        return limiter

    def admit(self, client: str, now: float) -> Decision:
        """Ask for one permit of this client."""
        slot = self._find(self._known.get(client) or self._tag(client), now)
        full_at = max(self._full_at[slot], now)
        room = now + self._span - full_at
        is_admitted = room >= self._step * (1.0 - _FORGIVEN)
        if is_admitted:
            full_at += self._step
            room -= self._step
            self._full_at[slot] = full_at
        remaining = int(room / self._step + _FORGIVEN)
        return Decision(is_admitted, self._limit, remaining, full_at - now, 0.0 if remaining else self._step - room)

    def _find(self, tag: int, now: float) -> int:
        """Index into both casts: the client's own slot, else a free one made its own, else the emptiest to share."""
        tags, full_at = self._tags, self._full_at
        tag = tag ^ self._route or 1
        start = (tag % SLOTS) * 2
        free = emptiest = -1
        for way in range(WAYS):
            at = (start + way * 2) % (SLOTS * 2)
            if tags[at] == tag:
                return at + 1
            moment = full_at[at + 1]
            if moment <= now:
                if free < 0:
                    free = at
            elif emptiest < 0 or moment < full_at[emptiest + 1]:
                emptiest = at
        if free < 0:
            return emptiest + 1
        tags[free] = tag
        full_at[free + 1] = now
        return free + 1

    def _tag(self, client: str) -> int:
        tag = self._hash(client) or 1
        if len(self._known) >= _MAX_TAGS:
            self._known.clear()
        self._known[client] = tag
        return tag

    def _hash(self, text: str) -> int:
        return int.from_bytes(blake2b(text.encode(), digest_size=8, key=self._secret).digest(), "little")
