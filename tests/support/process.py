"""A real server as an object that can be started, stopped, killed, frozen and wiped.

All methods block; inside an async test call the slow ones (`start`, `stop`, `wipe_and_restart`) through
`asyncio.to_thread`, so that the loop under test keeps running. A server keeps its ports and its data over `stop`,
`kill` and `start`; `wipe_and_restart` keeps only the ports. Everything runs in a process group of its own and is
signalled as such, by number.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.support import guardian

_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")


class ServerFailedError(AssertionError):
    """The server ended or did not get ready; the message carries the end of its output."""


def bare_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What a server sees of our environment: enough to run, nothing that configures it."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")} | dict(extra)


def http_get(url: str, timeout_seconds: float = 2.0) -> tuple[int, bytes]:
    """Status and body; OSError when there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


class ServerProcess(ABC):
    """Base of all servers. Owns one folder below the temp folder, with `data/`, `home/` and `output.log`."""

    ready_seconds = 40.0
    """How long a start may take; generous, because the machine may be busy with something else."""

    stop_seconds = 20.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"toska-{name}-"))
        self.data = self.folder / "data"
        self.home = self.folder / "home"
        self.output = self.folder / "output.log"
        for folder in (self.data, self.home):
            folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._group_is_ours = False  # false once all of it was killed: the number may be somebody else's

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Program and arguments."""

    @abstractmethod
    def is_ready(self) -> bool:
        """One quick question to the running server; OSError counts as no."""

    def environment(self) -> Mapping[str, str]:
        """Variables beside the bare environment."""
        return {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "not running"
        return f"<{type(self).__name__} {self.name}, {state}, {self.folder}>"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self, wait: bool = True) -> None:
        """Start and, unless told otherwise, wait until it is ready."""
        assert not self.is_running, f"{self.name} runs already"
        self.kill()  # what an earlier life may have left
        with self.output.open("ab") as output:
            self._process = self._spawn(output)
        self._group_is_ours = True
        guardian.guard(self._process.pid)
        if wait:
            self.wait_ready()

    def _spawn(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            list(self.command()),
            env=bare_environment(self.home, self.environment()),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.ready_seconds
        while True:
            try:
                if self.is_ready():
                    return
            except OSError:
                pass
            if not self.is_running:
                raise ServerFailedError(f"{self.name} ended with {self.exit_code()} while starting:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailedError(f"{self.name} not ready after {self.ready_seconds:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """To the main process alone."""
        os.kill(self.pid, number)

    def _signal_group(self, number: int) -> None:
        if not self._group_is_ours:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def pause(self) -> None:
        """SIGSTOP: connections are still accepted by the kernel, nothing is answered."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to everything the server started; returns when it is gone. Data stays."""
        if self._process is None:
            return
        self._signal_group(signal.SIGKILL)
        self._process.wait(self.stop_seconds)
        self._group_is_ours = False
        guardian.release(self._process.pid)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.signal(signal.SIGTERM)

    def wait(self, seconds: float | None = None) -> int:
        """Wait for the end; gives the exit code."""
        assert self._process is not None, f"{self.name} was never started"
        try:
            return self._process.wait(self.stop_seconds if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            raise ServerFailedError(f"{self.name} did not end:\n{self.tail()}") from None

    def stop(self) -> int:
        """SIGTERM, wait, sweep up what it left; gives the exit code. Data stays."""
        if self._process is None:
            return 0
        if self.is_running:
            self.resume()
            self.terminate()
        try:
            return self.wait()
        finally:
            self.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def wipe_and_restart(self) -> None:
        """Killed, all data deleted, started again on the same ports."""
        self.kill()
        shutil.rmtree(self.data)
        self.data.mkdir()
        self.start()

    def close(self) -> None:
        """Stop whatever state it is in and delete the folder."""
        try:
            if self.is_running:
                self.resume()
                self.terminate()
                try:
                    self.wait()
                except ServerFailedError:
                    pass  # killed below; a test that cares about a clean end calls stop() itself
            self.kill()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def log_text(self) -> str:
        """All output since the first start."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def log_lines(self) -> list[str]:
        return self.log_text().splitlines()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_lines()[-lines:])

    def memory_bytes(self) -> int:
        """Resident memory of the main process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0
