"""First lines of requests (RFC 9112 section 3), where the parser is more lenient than we want to be. Pure.

llhttp takes RTSP and ICE for HTTP, and any number of spaces between the parts, and does not say which it saw. So the
line is looked for in what was read. Most lines match `USUAL`, and nothing more is done for them.
"""

import re

USUAL = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/[!-~]*) HTTP/1\.1\r\n")
"""First lines that need no parser: usual methods, origin form, visible ASCII."""

_KIN = re.compile(rb" (?:RTSP|ICE)/[0-9]")


class LineCheck:
    """What was read of the client since the present head began; tells whether its first line is in order.

    Several requests can come in one read. Every byte is searched once, however many there are.
    """

    __slots__ = ("_at", "_is_proven", "_kin_targets", "_later", "_raw")

    def __init__(self) -> None:
        self._raw = b""
        self._later = b""  # the newest read, when it began behind the first line of the present head
        self._at = 0  # behind the last first line that was found
        self._is_proven = False
        self._kin_targets: frozenset[bytes] | None = None

    def begin(self, raw: bytes, usual: re.Match[bytes] | None) -> None:
        """A read that does not begin inside a head; `usual` is the match if it begins with a usual first line."""
        self._raw = raw
        self._kin_targets = None
        self._is_proven = usual is not None
        self._at = usual.end() if usual is not None else 0

    def add(self, raw: bytes) -> None:
        """More of a head whose first line is not complete."""
        self._raw += raw
        self._kin_targets = None

    def add_later(self, raw: bytes) -> None:
        """More of a head whose first line is complete: behind its end the next head may begin."""
        self._later = raw

    def forget(self) -> None:
        """No head is under way; what was read is not kept."""
        self._raw = self._later = b""

    def is_in_order(self, method: bytes, target: bytes, version: str) -> bool:
        """Whether the next first line is, to the letter, the one that the parser believes to have seen."""
        if not self._is_next(method, target, version):
            return False
        if self._later:
            self.begin(self._later, None)
            self._later = b""
        return True

    def _is_next(self, method: bytes, target: bytes, version: str) -> bool:
        if self._is_proven:
            self._is_proven = False
            return True
        if self._kin_targets is None:
            self._kin_targets = targets_of_kin(self._raw)
        line = b"%b %b HTTP/%b\r\n" % (method, target, version.encode())
        at = self._raw.find(line, self._at)
        if at < 0 or target in self._kin_targets:
            return False
        self._at = at + len(line)
        return True

    def is_of_kin(self, target: bytes) -> bool:
        """Whether the line that was not in order is one of RTSP or ICE."""
        return self._kin_targets is not None and target in self._kin_targets


def targets_of_kin(raw: bytes) -> frozenset[bytes]:
    """What stands before `RTSP/1` or `ICE/1`, wherever in `raw`: mostly nothing."""
    if raw.find(b" RTSP/") < 0 and raw.find(b" ICE/") < 0:
        return frozenset()
    targets = set()
    for found in _KIN.finditer(raw):
        end = found.start()
        while end and raw[end - 1] == 0x20:
            end -= 1
        targets.add(raw[raw.rfind(b" ", 0, end) + 1 : end])
    return frozenset(targets)
