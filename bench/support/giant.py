"""A backend for transfers of any size that costs next to no CPU time, so that the proxy is what is measured.

    python giant.py PORT FILE

`GET /1g` gives the file, straight from the page cache; `PUT` reads a body to its end and answers with the number of
bytes; anything else gets `ok`. Bodies need a Content-Length. One thread per connection. Runs as a program of its own.
"""

import os
import socket
import sys
from threading import Thread

CHUNK_BYTES = 1024 * 1024


def serve(connection: socket.socket, file: int, size_bytes: int) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            received = answer(connection, head, received, file, size_bytes)


def answer(connection: socket.socket, head: bytes, received: bytes, file: int, size_bytes: int) -> bytes:
    """Answer one request; gives what was received of the next one."""
    line, *fields = head.split(b"\r\n")
    method, path, _ = line.split(b" ")
    length = 0
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"transfer-encoding":
            connection.sendall(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            raise SystemExit
    if method == b"GET" and path == b"/1g":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes)
        offset = 0
        while offset < size_bytes:
            offset += os.sendfile(connection.fileno(), file, offset, size_bytes - offset)
        return received
    body = received[:length]
    swallow(connection, length - len(body))
    text = b"%d" % length if method == b"PUT" else b"ok"
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
    return received[length:]


def swallow(connection: socket.socket, length: int) -> None:
    """Take exactly so many bytes. MSG_TRUNC: the kernel drops them without copying (tcp(7))."""
    buffer = bytearray(CHUNK_BYTES)
    while length > 0:
        taken = connection.recv_into(buffer, min(length, CHUNK_BYTES), socket.MSG_TRUNC)
        if not taken:
            raise ConnectionResetError(f"{length} bytes are missing")
        length -= taken


def quietly(connection: socket.socket, file: int, size_bytes: int) -> None:
    try:
        serve(connection, file, size_bytes)
    except OSError:
        pass  # the proxy left; it is the one to complain


def main() -> None:
    port, path = int(sys.argv[1]), sys.argv[2]
    file = os.open(path, os.O_RDONLY)
    size_bytes = os.fstat(file).st_size
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        while True:
            connection, _ = listener.accept()
            Thread(target=quietly, args=(connection, file, size_bytes), daemon=True).start()


if __name__ == "__main__":
    main()
