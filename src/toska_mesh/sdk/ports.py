"""Which port somebody else's server has opened for us, and which of several workers on it speaks for the instance.

A server tells its app neither. On Linux the kernel's own list says what this process listens on, and a file lock that
dies with its holder says who was first.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import tempfile
from pathlib import Path

from toska_mesh.telemetry import event_log

log = event_log("sdk")

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_CAN_SAY = Path(_TABLES[0]).exists()
_LISTENING = "0A"
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")
_EVERY_SECONDS = 0.05
_PATIENCE_SECONDS = 5.0
"""After so long without the port something is said, and one that was open before counts too."""


def listening_ports() -> frozenset[int]:
    """TCP ports that this process listens on; empty where the system does not say."""
    return frozenset(port for _, port in _listening())


def _listening() -> set[tuple[str, int]]:
    """Addresses, as the kernel writes them, and ports."""
    own = _own_sockets()
    found = set[tuple[str, int]]()
    for table in _TABLES:
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in own:
                address, _, port = fields[1].rpartition(":")
                found.add((address, int(port, 16)))
    return found


async def until_open(wanted: int, before: frozenset[int]) -> int:
    """Wait until the server listens, on `wanted` or (0) on whatever it opens; gives the port.

    `before`: what was open when the app started, so what is not the server's if there is anything else.
    """
    loop = asyncio.get_running_loop()
    impatient_at = loop.time() + _PATIENCE_SECONDS
    is_told = False
    while True:
        found = listening_ports()
        candidates = (found - before) or (found if loop.time() >= impatient_at else frozenset())
        if wanted and (wanted in found or (not _CAN_SAY and await _accepts(wanted))):
            return wanted
        if not wanted and len(candidates) == 1:
            return next(iter(candidates))
        if loop.time() >= impatient_at and not is_told:
            is_told = True
            log.warning("waiting_for_port", **_what_to_do(wanted, found))
        await asyncio.sleep(_EVERY_SECONDS if not is_told else 1.0)


class PortLease:
    """One process of this machine (network namespace) and user holds it per service, port and the addresses on which
    this process listens there; it ends with the process."""

    def __init__(self, port: int, service: str) -> None:
        try:
            namespace = os.stat("/proc/self/ns/net").st_ino
        except OSError:
            namespace = 0
        addresses = sorted(address for address, open_port in _listening() if open_port == port)
        what = hashlib.blake2b(repr((service, addresses)).encode(), digest_size=8).hexdigest()
        folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self._path = Path(folder) / f"toska-mesh-{os.getuid()}-{namespace}-{port}-{what}.lock"
        self._file: int | None = None

    def take(self) -> bool:
        """Whether it is ours now. Where no lock can be had it is: better registered twice than not at all."""
        if self._file is None:
            try:
                file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as exc:
                consequence = "if several workers share the port, each of them registers"
                log.warning("no_port_lease", path=str(self._path), reason=exc.strerror, consequence=consequence)
                return True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _own_sockets() -> set[str]:
    found = set[str]()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for name in names:
        try:
            match = _SOCKET_LINK.match(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # closed meanwhile
        if match:
            found.add(match.group(1))
    return found


async def _accepts(port: int) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _what_to_do(wanted: int, found: frozenset[int]) -> dict[str, object]:
    if wanted:
        words = f"nothing listens on port {wanted} in this process; set MESH_SERVICE_PORT to the server's port"
    elif found:
        words = "several ports are open; set MESH_SERVICE_PORT to the one that serves the app"
    else:
        words = "no TCP port is open; set MESH_SERVICE_PORT where the system does not say which ports a process has"
    return {"consequence": "not registered", "reason": words, "open": sorted(found)}
