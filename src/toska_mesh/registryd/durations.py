"""Durations as Go writes them (`1m30s`), because Consul's bodies and query parameters do. Pure.

Everything is in whole nanoseconds: that is what travels on the wire when a number stands in place of a text.
"""

import re

NANOSECONDS = 1_000_000_000
"""In one second."""

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,  # U+03BC, Greek letter mu
    "ms": 1_000_000,
    "s": NANOSECONDS,
    "m": 60 * NANOSECONDS,
    "h": 3600 * NANOSECONDS,
}
_TERM = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_LARGEST = 2**63 - 1


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration (`time.ParseDuration`). Raises ValueError with Go's words."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    total, position = 0, 0
    while position < len(body):
        term = _TERM.match(body, position)
        if term is None or not term[1].isascii():
            raise ValueError(f'time: invalid duration "{text}"')
        if not term[2]:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if term[2] not in _UNITS:
            raise ValueError(f'time: unknown unit "{term[2]}" in duration "{text}"')
        total += _times(term[1], _UNITS[term[2]])
        position = term.end()
    if not body or total > _LARGEST:
        raise ValueError(f'time: invalid duration "{text}"')
    return -total if text[0] == "-" else total


def _times(number: str, unit: int) -> int:
    whole, _, fraction = number[:40].partition(".")
    return int(whole or 0) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def format_duration(nanoseconds: int) -> str:
    """As Go's `Duration.String` for whole seconds: `24h0m0s`, `1m0s`, `10s`."""
    minutes, seconds = divmod(nanoseconds // NANOSECONDS, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
