"""Kills the servers of a test run that was itself killed.

`with` blocks and fixtures stop what they started, unless the test process dies by SIGKILL. For that case one small
child watches a pipe: when the pipe ends it kills the process groups that were never reported as gone.
"""

import atexit
import subprocess
import sys
import threading

_WATCH = """
import os, signal, sys
alive = set()
for line in sys.stdin:
    group = int(line[1:])
    alive.add(group) if line[0] == "+" else alive.discard(group)
for group in alive:
    for number in (signal.SIGCONT, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            pass
"""

_lock = threading.Lock()
_watcher: "subprocess.Popen[str] | None" = None


def guard(group: int) -> None:
    """Kill this process group if we die."""
    _tell(f"+{group}\n")


def release(group: int) -> None:
    """The group is gone; its number may belong to somebody else from now on."""
    _tell(f"-{group}\n")


def _tell(line: str) -> None:
    global _watcher
    with _lock:
        if _watcher is None:
            _watcher = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _WATCH], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
            atexit.register(_dismiss, _watcher)
        assert _watcher.stdin is not None
        _watcher.stdin.write(line)
        _watcher.stdin.flush()


def _dismiss(watcher: "subprocess.Popen[str]") -> None:
    """We end well: let it do its last work now, so that nothing is left of it."""
    assert watcher.stdin is not None
    watcher.stdin.close()
    watcher.wait(10)
