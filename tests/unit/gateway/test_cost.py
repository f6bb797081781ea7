"""What the common request costs may not grow unnoticed: counted, not timed, so a busy machine changes nothing.

Bytecodes and calls into C are the same at every run of one interpreter. For instructions see docs/performance.md.
"""

import sys
from types import FrameType
from typing import Any

from bench.micro.exchange import RESPONSE, relaying

REQUESTS = 20
MOST_BYTECODES = 1940 if sys.version_info[:2] == (3, 11) else 2600
MOST_CALLS = 106 if sys.version_info[:2] == (3, 11) else 130
"""About 1 % above what was counted last; other versions of the interpreter have other bytecodes. Whoever raises a
limit says in the commit what the request gets for it; whoever makes it cheaper lowers it."""


class _Count:
    """Counts while it is installed as the tracer and profiler of this thread."""

    def __init__(self) -> None:
        self.bytecodes = 0
        self.calls = 0

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.bytecodes += 1
        return self.trace

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


async def _cost() -> tuple[int, int]:
    """Bytecodes and calls per common request, everything at its default on."""
    count = _Count()
    async with relaying() as (relay, to_client):
        relay(2)  # the first request of a connection is read whole
        sys.settrace(count.trace)
        try:
            relay(REQUESTS)
        finally:
            sys.settrace(None)
        sys.setprofile(count.profile)
        try:
            relay(REQUESTS)
        finally:
            sys.setprofile(None)
        assert to_client.written > 2 * REQUESTS * len(RESPONSE)  # what was counted were answers
    return count.bytecodes // REQUESTS, count.calls // REQUESTS


async def test_the_common_request_costs_no_more_than_it_did() -> None:
    bytecodes, calls = await _cost()
    assert bytecodes <= MOST_BYTECODES
    assert calls <= MOST_CALLS
