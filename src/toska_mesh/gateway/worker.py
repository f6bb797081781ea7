"""One of several processes that serve the gateway's port; started by the supervisor (`workers`), not by people.

`python -m toska_mesh.gateway.worker LISTENER LIMIT LIFELINE SOCKET PATIENT`: numbers of inherited descriptors (the
listening socket, the table of the rate limit, the reading end of a pipe that closes when the supervisor ends), the path
of the Unix socket for its part of the admin API, and 1 when others serve already, else 0. Settings come from the
environment, as everywhere.
"""

import asyncio
import os
import signal
import socket
import sys

from toska_mesh.admin import run_to_the_end
from toska_mesh.errors import ConfigError
from toska_mesh.gateway.app import Inherited, serve
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.settings import load


def main() -> None:
    """Exit codes are those of every daemon."""
    # A hang-up of the terminal reaches the whole process group; what it means is the supervisor's decision.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    listener, limit, lifeline = map(int, sys.argv[1:4])
    inherited = Inherited(socket.socket(fileno=listener), limit, sys.argv[4], is_patient=sys.argv[5] == "1")

    async def run(settings: GatewaySettings, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        # The supervisor never writes: the descriptor becomes readable when it has ended, however it ended.
        loop.add_reader(lifeline, stop.set)
        try:
            await serve(settings, stop, inherited)
        finally:
            loop.remove_reader(lifeline)

    try:
        settings = load(GatewaySettings, os.environ).settings
    except ConfigError as exc:
        sys.exit(f"toska-gateway worker: {exc}")
    sys.exit(run_to_the_end("toska-gateway-worker", settings, run, is_one_of_several=True))


if __name__ == "__main__":
    main()
