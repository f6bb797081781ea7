"""Commands that may not work on this machine, with the reason in words."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class NotHereError(Exception):
    """This way does not lead to the server; the text says why."""


def run(
    command: Sequence[str], timeout_seconds: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Standard output; NotHereError with the last words of a command that fails."""
    try:
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout_seconds,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    except subprocess.CalledProcessError as failure:
        words = (failure.stderr or failure.stdout or "").strip().splitlines()
        raise NotHereError(f"{_short(command)} failed: {words[-1] if words else failure.returncode}") from None
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise NotHereError(f"{_short(command)} failed: {failure}") from None
    return done.stdout


def _short(command: Sequence[str]) -> str:
    words = [word for word in command if word != "-o" and "::" not in word]
    return " ".join(words[:4])
