"""Writing lines without ever blocking the event loop.

A full disk or a reader that stopped reading its pipe must not stop a gateway: lines go to a thread through a bounded
buffer; what does not fit is dropped and counted.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Iterator

MAX_PENDING_BYTES = 8 * 1024 * 1024
_NEWLINE = 0x0A


class LineWriter:
    """Writes byte strings (whole lines, newline included) to a file descriptor, in order, from its own thread."""

    def __init__(self, fd: int, max_pending_bytes: int = MAX_PENDING_BYTES, is_shared: bool = False) -> None:
        """`is_shared`: other processes write to the same pipe, so lines go out in pieces that are never mixed."""
        self._fd = fd
        self._is_shared = is_shared
        self._max_pending = max_pending_bytes
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        self._is_in_a_line = False
        """A write ended in the middle of a line and its rest was lost."""
        self.dropped_lines = 0
        self._thread = threading.Thread(target=self._run, name="line writer", daemon=True)
        self._thread.start()

    def write(self, lines: bytes, count: int = 1) -> bool:
        """Take `count` lines; False when the buffer is full and they were dropped."""
        with self._wake:
            if self._closing or self._pending_bytes + len(lines) > self._max_pending:
                self.dropped_lines += count
                return False
            self._pending.append(lines)
            self._pending_bytes += len(lines)
            self._wake.notify()
        return True

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Write out what is pending, but wait no longer than `timeout_seconds`: the reader may be gone."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closing:
                    self._wake.wait()
                if not self._pending:
                    return
                batch = b"".join(self._pending)
                self._pending.clear()
                self._pending_bytes = 0
            for piece in _pieces(batch) if self._is_shared else (batch,):
                self._write_all(piece)

    def _write_all(self, batch: bytes) -> None:
        # What comes after half a line must not look like its end.
        view = memoryview(b"\n" + batch if self._is_in_a_line else batch)
        while view:
            try:
                written = os.write(self._fd, view)
                self._is_in_a_line = view[written - 1] != _NEWLINE
                view = view[written:]
            except BlockingIOError:
                # Another owner of this terminal or pipe made it non-blocking; waiting is this thread's job.
                select.select([], [self._fd], [], 1.0)
            except OSError:
                # A closed pipe or a full disk: the lines are lost, the daemon is not.
                self.dropped_lines += batch[max(0, len(batch) - len(view)) :].count(b"\n")
                return


def _pieces(batch: bytes) -> Iterator[bytes]:
    """Whole lines, as many as fit into `PIPE_BUF` bytes: such a write is atomic. A longer line goes alone."""
    start = 0
    while start < len(batch):
        end = start + select.PIPE_BUF
        if end < len(batch):
            cut = batch.rfind(b"\n", start, end) + 1
            end = cut if cut > start else batch.find(b"\n", end) + 1 or len(batch)
        yield batch[start:end]
        start = end
