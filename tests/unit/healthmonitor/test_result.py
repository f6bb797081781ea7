"""Whose fault an error of the operating system is, and what is shown of hostile text."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.healthmonitor.probes.result import from_os_error, printable
from toska_mesh.healthmonitor.verdict import Outcome


@pytest.mark.parametrize(
    ("number", "outcome", "words"),
    [
        pytest.param(errno.ECONNREFUSED, Outcome.FAILURE, "connection refused", id="refused"),
        pytest.param(errno.EHOSTUNREACH, Outcome.FAILURE, "host unreachable", id="host unreachable"),
        pytest.param(errno.EPROTO, Outcome.FAILURE, "Protocol error", id="any other"),
        pytest.param(errno.ETIMEDOUT, Outcome.TIMEOUT, "timed out by the network", id="timed out"),
        pytest.param(errno.EMFILE, Outcome.INCONCLUSIVE, "Too many open files", id="no descriptor"),
        pytest.param(errno.EADDRNOTAVAIL, Outcome.INCONCLUSIVE, "the monitor could not probe", id="no port left"),
        pytest.param(errno.ENETUNREACH, Outcome.INCONCLUSIVE, "the monitor could not probe", id="no route"),
    ],
)
def test_the_monitors_own_trouble_is_told_apart(number, outcome, words):
    result = from_os_error(OSError(number, "whatever"))
    assert result.outcome is outcome
    assert words in result.message


def test_an_error_without_a_number_keeps_its_words():
    assert from_os_error(OSError("broken\r\nin two")).message == "broken in two"


@given(st.text())
def test_what_is_shown_is_one_short_printable_line(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 120
