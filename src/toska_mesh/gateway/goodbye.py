"""Closing an idle client connection without losing a request that is on its way.

An HTTP/1.1 server may close an idle connection at any time, and a client may send its next request in the same moment
(RFC 9112 section 9.3.1). A transport closes its socket one turn of the loop later, and until then takes no notice of
what arrives. With many connections a turn is milliseconds; here it is the time between two system calls.
"""

import asyncio
import fcntl
import os
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


def _unread_bytes(handle: int) -> int:
    answer = fcntl.ioctl(handle, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
