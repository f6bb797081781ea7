"""Whose fault an operating system error is, and how to show what an instance wrote."""

import errno
import os

from toska_mesh.healthmonitor.verdict import Outcome, ProbeResult

# The monitor is out of descriptors, ports, memory or routes: not a word about the instance.
_OWN_TROUBLE = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENETDOWN)
)
_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed by the instance",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ETIMEDOUT: "no connection: timed out by the network",
}


def from_os_error(error: OSError) -> ProbeResult:
    """The result of a probe that ended with an error of the socket."""
    number = error.errno or 0
    if number in _OWN_TROUBLE:
        return ProbeResult(Outcome.INCONCLUSIVE, f"the monitor could not probe: {os.strerror(number)}")
    if number == errno.ETIMEDOUT:
        return ProbeResult(Outcome.TIMEOUT, _WORDS[number])
    words = _WORDS.get(number) or (os.strerror(number) if number > 0 else printable(str(error)) or type(error).__name__)
    return ProbeResult(Outcome.FAILURE, words)


def printable(text: str, limit: int = 120) -> str:
    """One line of at most `limit` printable characters: instances write hostile text."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * limit]).split())[:limit]
