"""An event loop whose clock jumps to the next timer, so that a unit test of hours takes milliseconds.

`loop.time()` starts at 0.0, moves only when nothing is left to do, and then lands exactly on the next timer: it is a
value to assert. A test that waits for something that can never come fails at once instead of hanging.

Work that the loop hands to a thread (`run_in_executor`, `asyncio.to_thread`) is waited for in real time while the
virtual clock stands still; anything else that comes from outside has to be announced with `VirtualLoop.outside`.
"""

import asyncio
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PATIENCE_SECONDS = 20.0
"""How long, in real seconds, a thread may work before the test is called hung."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: where a selector would wait `timeout` seconds, the clock moves by as much."""

    now = 0.0
    outside = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.outside:
            ready = super().select(_PATIENCE_SECONDS)
            if not ready:
                raise RuntimeError(f"a thread of this test has not answered for {_PATIENCE_SECONDS:g} s")
            return ready
        if timeout is None:
            raise RuntimeError("this test waits for something that never comes")
        self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Drop-in loop for one test, see the module's text."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

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
