"""An address as a dead machine has it: attempts to connect get no answer, not even a refusal."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.ports import free_port


@contextmanager
def swallowing_port() -> Iterator[int]:
    """A port whose queue is full: the kernel drops further attempts to connect, as a dead host's network does."""
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        try:
            yield port
        finally:
            for filler in fillers:
                filler.close()
