"""Ways to end a connection such that the other side understands it: not in the middle of its next request, or broken.

An HTTP/1.1 server may close an idle connection at any time, and a client may send its next request in the same moment
(RFC 9112 section 9.3.1). A transport closes its socket one turn of the loop later, and until then takes no notice of
what arrives. With many connections a turn is milliseconds; here it is the time between two system calls.
"""

import asyncio
import fcntl
import os
import select
import socket
import struct
import termios


def close_idle(transport: asyncio.Transport) -> bool:
    """Close unless something has come that was not read yet; False then: it is the next request."""
    raw = transport.get_extra_info("socket")
    handle = raw.fileno() if raw is not None else -1
    if handle >= 0 and transport.get_extra_info("sslcontext") is None:
        try:
            if _unread_bytes(handle):
                return False
            # The end of our side leaves now: a client that sees it does not send.
            with socket.socket(fileno=os.dup(handle)) as same:
                same.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client is gone
    transport.close()
    return True


def is_readable(transport: asyncio.Transport) -> bool:
    """Whether something has come that the loop has not read yet: bytes, the end, or a reset."""
    raw = transport.get_extra_info("socket")
    if raw is None:
        return False
    handle = raw.fileno()
    if handle < 0:
        return True
    _poll.register(handle, select.POLLIN | select.POLLRDHUP)
    try:
        return bool(_poll.poll(0))
    finally:
        _poll.unregister(handle)


_poll = select.poll()


def reset(transport: asyncio.Transport) -> None:
    """End the connection with a reset instead of a FIN: what was under way on it must not look complete."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it is gone already
    transport.abort()


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Bytes in the kernel's send buffer that the other side has not taken (SIOCOUTQ); 0 where that cannot be told."""
    raw = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, AttributeError):
        return 0


def _unread_bytes(handle: int) -> int:
    answer = fcntl.ioctl(handle, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
