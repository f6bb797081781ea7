"""The decisions of the supervisor that need no process."""

import signal

import pytest

from toska_mesh.cli.supervisor import LONGEST_DELAY_SECONDS, describe_exit, restart_delay_seconds


def test_restarts_come_later_and_later_up_to_a_bound() -> None:
    assert [restart_delay_seconds(failures) for failures in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert restart_delay_seconds(10_000) == LONGEST_DELAY_SECONDS


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (2, "exit code 2"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-200, "killed by signal 200"),
    ],
)
def test_an_end_is_described_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
