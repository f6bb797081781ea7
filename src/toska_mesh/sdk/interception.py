"""Hearing SIGTERM and SIGINT before the server that carries us does, and handing them on when we are ready.

A server of somebody else's closes its listener first and tells the app afterwards, when gateways still send. So from
the moment we are registered the signal is ours: we leave the mesh, put the server's own handler back, and raise the
signal again. Only the main thread can do this; elsewhere, and under a loop whose handler cannot be had, nothing is
intercepted and leaving begins with the lifespan's shutdown.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from toska_mesh.telemetry import event_log

log = event_log("sdk")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ASYNCIO_MARK = "_sighandler_noop"
"""What asyncio puts in Python's place for a handler of the loop; uvloop puts a method of the loop there."""


def tell_stop_requested(service: str, name: str, *, is_again: bool) -> None:
    """Whoever stops a service sees at once that it was heard, and how to wait for nothing."""
    if is_again:
        log.info("stop_requested", service=service, signal=name, consequence="leaving at once")
    else:
        hint = f"{name} again leaves at once"
        log.info("stop_requested", service=service, signal=name, consequence="draining", hint=hint)


class Interception:
    """From `begin` to `hand_on` the signals are `heard` instead, by name. Lives on the loop of the main thread.

    One that comes again means `hurried`, and is for the server at once.
    """

    def __init__(self, heard: Callable[[str], None], hurried: Callable[[str], None]) -> None:
        self._heard = heard
        self._hurried = hurried
        self._put_back: dict[int, Callable[[], object]] = {}
        self._numbers: list[int] = []

    def begin(self) -> bool:
        """Whether the signals can be had."""
        if threading.current_thread() is not threading.main_thread():
            return False
        loop = asyncio.get_running_loop()
        takers = [self._taker(loop, number) for number in _SIGNALS]
        if None in takers:
            return False
        for take in takers:
            if take is not None:
                take()
        return True

    def hand_on(self) -> None:
        """Give the signals back, and the one that was heard to whom it was meant for."""
        self.end()
        if self._numbers:
            number = self._numbers[0]
            self._numbers.clear()
            signal.raise_signal(number)

    def end(self) -> None:
        """Give the signals back."""
        while self._put_back:
            _, put_back = self._put_back.popitem()
            put_back()

    def _hear(self, number: int) -> None:
        if not self._put_back:
            return  # on its way here when the first was handed on, which says the same
        # A supervisor may send its own after that of the terminal; somebody in a hurry sends the same again.
        is_again = number in self._numbers
        self._numbers.append(number)
        if is_again:
            self._hurried(signal.Signals(number).name)
            self.hand_on()
        elif len(self._numbers) == 1:
            self._heard(signal.Signals(number).name)

    def _taker(self, loop: asyncio.AbstractEventLoop, number: int) -> Callable[[], None] | None:
        before = signal.getsignal(number)
        if getattr(before, "__name__", "") == _ASYNCIO_MARK or getattr(before, "__self__", None) is loop:
            # Such a loop calls its own handler whatever Python's is. asyncio has no public way to read it, uvloop none.
            handle = getattr(loop, "_signal_handlers", {}).get(number)
            callback, arguments = getattr(handle, "_callback", None), getattr(handle, "_args", None) or ()
            return None if callback is None else partial(self._take_from_loop, loop, number, callback, arguments)
        return partial(self._take_from_python, loop, number, before)

    def _take_from_loop(
        self, loop: asyncio.AbstractEventLoop, number: int, callback: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        loop.add_signal_handler(number, self._hear, number)
        self._put_back[number] = partial(loop.add_signal_handler, number, callback, *arguments)

    def _take_from_python(self, loop: asyncio.AbstractEventLoop, number: int, before: Any) -> None:
        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._hear, number)

        signal.signal(number, on_signal)
        self._put_back[number] = partial(signal.signal, number, before if before is not None else signal.SIG_DFL)
