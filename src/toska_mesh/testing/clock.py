"""An event loop whose clock jumps to the next timer, so that a test of hours takes milliseconds.

`loop.time()` starts at 0.0, moves only when nothing is left to do, and then lands exactly on the next timer: it is a
value to assert. A test that waits for something that can never come fails at once instead of hanging, and says where
its tasks wait.

Work that the loop hands to a thread (`run_in_executor`, `asyncio.to_thread`) is waited for in real time while the
virtual clock stands still; anything else that comes from outside has to be announced with `VirtualLoop.outside`.
"""

import asyncio
import math
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

_PATIENCE_SECONDS = 20.0
"""How long, in real seconds, a thread may work before the test is called hung."""


class StuckError(RuntimeError):
    """The test waits for something that never comes. The text names the tasks and where each of them waits."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: where a selector would wait `timeout` seconds, the clock moves by as much."""

    now = 0.0
    outside = 0

    def __init__(self, limit_seconds: float | None, next_timer: Callable[[], float | None]) -> None:
        super().__init__()
        self._limit_seconds = limit_seconds
        self._next_timer = next_timer

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.outside:
            ready = super().select(_PATIENCE_SECONDS)
            if not ready:
                raise StuckError(f"a thread of this test has not answered for {_PATIENCE_SECONDS:g} s")
            return ready
        if timeout is None:
            raise StuckError("this test waits for something that never comes: no timer is set and nothing is ready")
        if self._limit_seconds is not None and self.now + timeout > self._limit_seconds:
            self._limit_seconds, limit = None, self._limit_seconds  # once: the test's cleaning up needs time too
            raise StuckError(
                f"this test waits for something that never comes: {limit:g} s of its clock have passed "
                "(limit_seconds of the virtual clock allows more)"
            )
        due = self._next_timer()
        then = self.now + timeout
        # Exactly there, and not where the rounding of a sum and a difference leads.
        self.now = due if due is not None and abs(due - then) <= 4 * math.ulp(then) else then
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Drop-in loop for one test, see the module's text. Past `limit_seconds` of its clock the test counts as stuck:
    beats and probes never end, so a wait beside them would never be found out otherwise. None = no limit."""

    def __init__(self, limit_seconds: float | None = None) -> None:
        self._jumping = _JumpingSelector(limit_seconds, self._next_timer)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def _next_timer(self) -> float | None:
        return self._scheduled[0].when() if self._scheduled else None  # type: ignore[attr-defined]  # asyncio's heap

    @property
    def _clock_resolution(self) -> float:
        """How far ahead asyncio looks for timers that are due: no further than the present. With the nanosecond that it
        takes for a real clock timers would fire early, and after some months of a clock, whose next number is further
        away than that, never."""
        return math.ulp(self.time())

    @_clock_resolution.setter
    def _clock_resolution(self, seconds: float) -> None:
        """asyncio sets it once, for a real clock."""

    def run_until_complete(self, future: Any) -> Any:
        try:
            return super().run_until_complete(future)
        except StuckError as exc:
            waiting = describe_waiting(self)
            if isinstance(future, asyncio.Future):
                future.cancel()  # what the test has opened is closed before its fixtures are
                with suppress(asyncio.CancelledError, Exception):
                    super().run_until_complete(future)
            raise StuckError(f"{exc}{waiting}") from None

    @contextmanager
    def outside(self) -> Iterator[None]:
        """While the block is open something outside the loop is expected to wake it: wait for it in real time."""
        self._jumping.outside += 1
        try:
            yield
        finally:
            self._jumping.outside -= 1

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.outside += 1
        future.add_done_callback(self._executor_answered)
        return future

    def _executor_answered(self, _: asyncio.Future[Any]) -> None:
        self._jumping.outside -= 1

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        with self.outside():  # the threads are joined in a thread
            await super().shutdown_default_executor(*args, **kwargs)


def run_virtual(main: Callable[[], Any]) -> Any:
    """Run the coroutine function on a fresh virtual loop; for tests that need several loops, such as properties."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def describe_waiting(loop: asyncio.AbstractEventLoop) -> str:
    """One line for each task of the loop: its name, and the calls down to the one that waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    return "".join(f"\n  {task.get_name()} waits at {_way_down(task.get_coro())}" for task in tasks)


def _way_down(coroutine: object) -> str:
    steps = []
    while (frame := _frame(coroutine)) is not None:
        steps.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        coroutine = _awaited(coroutine)
    return " > ".join(steps) or repr(coroutine)


def _frame(coroutine: object) -> FrameType | None:
    match coroutine:
        case CoroutineType():
            return coroutine.cr_frame
        case GeneratorType():
            return coroutine.gi_frame
        case AsyncGeneratorType():
            return coroutine.ag_frame
        case _:
            return None


def _awaited(coroutine: object) -> object:
    match coroutine:
        case CoroutineType():
            return coroutine.cr_await
        case GeneratorType():
            return coroutine.gi_yieldfrom
        case AsyncGeneratorType():
            return coroutine.ag_await
        case _:
            return None
