"""Durations as Consul's API writes them: what is read, what is refused, and that both ways agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.registryd.durations import NANOSECONDS, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("35s", 35 * NANOSECONDS),
        ("1m0s", 60 * NANOSECONDS),
        ("1h30m", 5400 * NANOSECONDS),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("10ms", 10_000_000),
        ("3us", 3_000),
        ("3µs", 3_000),
        ("7ns", 7),
        ("-2s", -2 * NANOSECONDS),
        ("+2s", 2 * NANOSECONDS),
    ],
)
def test_reads_what_go_reads(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("-", 'time: invalid duration "-"'),
        ("10", 'time: missing unit in duration "10"'),
        ("10x", 'time: unknown unit "x" in duration "10x"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        ("١s", 'time: invalid duration "١s"'),
        (" 1s", 'time: invalid duration " 1s"'),
    ],
)
def test_refuses_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert str(refused.value) == words


@given(st.integers(0, 10**9))
def test_whole_seconds_survive_the_way_out_and_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds * NANOSECONDS)) == seconds * NANOSECONDS
