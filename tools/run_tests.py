"""Runs the tests in two processes, and what failed there once more, alone.

The tests talk to real servers in real time. Two processes use both cores, and next to a neighbour that starts a broker
a promise about milliseconds may be missed for want of a processor. Alone nothing excuses a failure: what fails a second
time fails the run, and what passes then is named as unsteady, to be mended. Arguments go to pytest.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PYTEST = (sys.executable, "-m", "pytest", "-o", "faulthandler_timeout=240")
_TESTS_FAILED = 1  # pytest's exit code
_WORTH_A_SECOND_LOOK = 10
"""More failures than this are no accident."""


def main(arguments: Sequence[str]) -> int:
    together = _pytest("-n", "2", "--dist", "loadfile", f"--maxfail={_WORTH_A_SECOND_LOOK + 1}", *arguments)
    if together != _TESTS_FAILED or _failures() > _WORTH_A_SECOND_LOOK:
        return together
    print("\nOnce more, alone, what failed beside others:", flush=True)
    alone = _pytest("-n", "0", "--last-failed", "--last-failed-no-failures", "none", *arguments)
    if alone == 0:
        print("\nPassed alone: the tests above are unsteady, please mend them.", flush=True)
    return alone


def _pytest(*arguments: str) -> int:
    return subprocess.run((*_PYTEST, *arguments), cwd=_ROOT, check=False).returncode  # noqa: S603


def _failures() -> int:
    """How many tests the last run left as failed, by pytest's own cache."""
    try:
        return len(json.loads((_ROOT / ".pytest_cache/v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return _WORTH_A_SECOND_LOOK + 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
