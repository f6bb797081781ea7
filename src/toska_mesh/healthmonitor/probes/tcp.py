"""The TCP probe: an accepted connection is health enough. Nothing is sent, nothing is read."""

import asyncio

from toska_mesh.healthmonitor.probes.result import from_os_error
from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult


async def probe_tcp(address: str, port: int, deadline: float) -> ProbeResult:
    """Connect to `address` (an IP address) until `deadline` (the loop's clock) and hang up."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(deadline):
            transport, _ = await loop.create_connection(asyncio.Protocol, address, port)
    except TimeoutError as exc:
        return from_os_error(exc) if exc.errno else ProbeResult(Outcome.TIMEOUT, "no connection in time")
    except OSError as exc:
        return from_os_error(exc)
    transport.abort()
    return ProbeResult(Outcome.SUCCESS, "TCP connected", is_connected=True)
