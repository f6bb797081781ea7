"""Free TCP ports on loopback."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

_FIRST, _LAST = 10240, 32000
"""Below the range the kernel takes outgoing ports from, so that no client connection of a test can sit on it."""

_taken: set[int] = set()
_locks: list[int] = []


def free_port() -> int:
    """A port that nobody listens on and that no other test process of this machine was given.

    Asking the kernel for port 0 is not enough: it may hand the same number to somebody else before our server binds.
    The number is held by a file lock until this process ends.
    """
    folder = Path(tempfile.gettempdir()) / f"toska-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    chooser = random.Random()
    for _ in range(1000):
        port = chooser.randrange(_FIRST, _LAST)
        if port not in _taken and _is_free(port) and _lock(folder / str(port)):
            _taken.add(port)
            return port
    raise RuntimeError("no free port found")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _lock(path: Path) -> bool:
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _locks.append(handle)
    return True
