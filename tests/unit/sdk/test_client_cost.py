"""What a call through the client costs beside its transport may not grow unnoticed: counted, not timed."""

import sys
from types import FrameType
from typing import Any

from tests.unit.sdk.scripted_calls import ORDERS, ScriptedReply, World, world

from toska_mesh.sdk.client import CallOptions, Client

CALLS = 20
MOST_CALLS = 68 if sys.version_info[:2] == (3, 11) else 80
"""Calls of functions, in Python and in C, for one call to an instance with a closed breaker, the test's own included.
Whoever raises it says in the commit what a call gets for it."""


class _AtOnce:
    """A transport that costs nothing and answers at once."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, request: Any, target: Any, headers: Any, progress: Any) -> ScriptedReply:
        self.sent += 1
        progress.connected()
        return ScriptedReply(200)


async def _count(mesh: World) -> int:
    transport = _AtOnce()
    mesh.sender.transport = transport
    client: Any = Client(mesh.sender, ORDERS, CallOptions())  # type: ignore[arg-type]  # its replies are scripted
    counted = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        if event in ("call", "c_call"):
            counted += 1

    await client.get("/items/1")
    sys.setprofile(profile)
    try:
        for _ in range(CALLS):
            await client.get("/items/1")
    finally:
        sys.setprofile(None)
    assert transport.sent == CALLS + 1
    return counted // CALLS


async def test_the_common_call_costs_no_more_than_it_did() -> None:
    async with world("a", "b", ticking=False) as mesh:
        assert await _count(mesh) <= MOST_CALLS
