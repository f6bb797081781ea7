"""Calling code that blocks, from the loop, without letting it hold up the end of the process.

`asyncio.to_thread` uses the loop's executor, whose threads are joined when the loop ends: one that hangs would hang the
exit. A thread of this module is a daemon thread of its own, so it is for what is called seldom.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], name: str, on_end: Callable[[], None] = lambda: None) -> T:
    """The result of `call()`, or its exception. Cancelled, it leaves the thread to itself.

    `on_end` is called from the loop when the thread has ended, also after such a cancellation.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        on_end()
        if not done.done():
            done.set_result((value, error))

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(call)
        except BaseException as exc:  # whatever it is, somebody waits for it
            error = exc
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:
            pass  # the loop has closed meanwhile: nobody waits any more

    threading.Thread(target=work, name=name, daemon=True).start()
    value, error = await done
    if error is None:
        return value  # type: ignore[return-value]  # what the call gave
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        raise error
    raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
