"""What a service asks of an HTTP server, and the socket that it is given.

The service binds before anything else, so that the port is known (0 asks for any) and a taken one is an error at once;
the host listens on it when the app has started, and only then is the service registered.
"""

import asyncio
import errno
import socket
from typing import Protocol

from toska_mesh.errors import ConfigError

PORT_VARIABLE = "MESH_SERVICE_PORT"
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Idle connections are closed by the gateways first: the side that may be sending must be the one that decides."""


class Host(Protocol):
    """An HTTP server for one app on one socket, which its maker closes. Made inside the running loop."""

    started: asyncio.Event
    """Set once connections are accepted."""

    async def run(self) -> None:
        """Start the app, serve until `stop`, then finish what is in flight and stop the app. Cancelled, end at once."""

    def stop(self, seconds: float) -> None:
        """Close the listener now; what is in flight has so long to finish."""


def bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A socket on that address, not listening yet. Raises ConfigError naming the variable at fault.

    `is_shared`: another socket of this process will be bound to the same port and do the listening (SO_REUSEPORT).
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        raise ConfigError(f"host {host!r} is not an address or host name of this machine ({exc.strerror})") from exc
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host in ("", "::"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if is_shared:
            if port:
                bind(host, port).close()  # somebody else's shared port would be taken without an error
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise _explained(exc, host, port) from exc
    except BaseException:
        sock.close()
        raise
    return sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def _explained(exc: OSError, host: str, port: int) -> Exception:
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} is in use by another program; stop it or set {PORT_VARIABLE} to a free port, 0 for any"
        )
    if exc.errno == errno.EACCES:
        return ConfigError(f"port {port} may not be opened by this user; set {PORT_VARIABLE} to a port above 1023")
    if exc.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"host {host!r} is not an address of this machine; 0.0.0.0 means all of them")
    return exc
