"""The line writer against real pipes: it must never make its caller wait."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.wait import eventually_now

from toska_mesh.telemetry.lines import LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for handle in (reader, writer):
        try:
            os.close(handle)
        except OSError:
            pass


def read_all(reader: int, into: list[bytes]) -> threading.Thread:
    def read() -> None:
        while block := os.read(reader, 65536):
            into.append(block)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    blocks: list[bytes] = []
    reading = read_all(reader, blocks)
    writer = LineWriter(descriptor)
    sent = [b"line %d\n" % number for number in range(20_000)]
    assert all(writer.write(line) for line in sent)
    writer.close(timeout_seconds=30)
    os.close(descriptor)
    reading.join(30)
    assert b"".join(blocks) == b"".join(sent)
    assert writer.dropped_lines == 0


def test_a_reader_that_stops_reading_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    _, descriptor = pipe
    writer = LineWriter(descriptor, max_pending_bytes=100_000)
    line = b"x" * 999 + b"\n"
    started = time.monotonic()
    taken = sum(writer.write(line) for _ in range(5_000))
    assert time.monotonic() - started < 5
    assert 100 <= taken < 5_000
    assert writer.dropped_lines == 5_000 - taken
    writer.close(timeout_seconds=0.05)


def test_several_lines_at_once_are_counted_as_such(pipe: tuple[int, int]) -> None:
    _, descriptor = pipe
    writer = LineWriter(descriptor, max_pending_bytes=10)
    assert not writer.write(b"one\ntwo\nthree\n", count=3)
    assert writer.dropped_lines == 3
    writer.close()


def test_closing_does_not_wait_for_a_stuck_reader(pipe: tuple[int, int]) -> None:
    _, descriptor = pipe
    writer = LineWriter(descriptor)
    writer.write(b"x" * 1_000_000)
    started = time.monotonic()
    writer.close(timeout_seconds=0.1)
    assert time.monotonic() - started < 5


def test_nothing_is_taken_after_closing(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.close()
    assert not writer.write(b"late\n")
    assert writer.dropped_lines == 1


def test_a_closed_pipe_loses_the_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.close(reader)
    writer = LineWriter(descriptor)
    writer.write(b"lost\n")
    eventually_now(lambda: writer.dropped_lines == 1)
    assert writer.write(b"lost too\n")
    eventually_now(lambda: writer.dropped_lines == 2)
    writer.close()


def test_a_non_blocking_pipe_loses_no_line(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
    writer = LineWriter(descriptor)
    sent = b"".join(b"line %d\n" % number for number in range(50_000))
    writer.write(sent, count=50_000)
    blocks: list[bytes] = []
    reading = read_all(reader, blocks)
    writer.close(timeout_seconds=30)
    os.close(descriptor)
    reading.join(30)
    assert b"".join(blocks) == sent
