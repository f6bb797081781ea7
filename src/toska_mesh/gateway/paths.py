"""From a request target to a service and the path that the service sees. Pure.

The path is forwarded byte for byte: percent-encoding means something to the service, so it is never decoded and
encoded again. Two exceptions: dot segments are resolved first (RFC 3986 section 5.2.4), also when their dots are
percent-encoded, since a server behind us would resolve them after we chose by the unresolved path; and the service
name is compared decoded and in lower case.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_DOT_SEGMENT = re.compile(rb"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_ENCODED_DOT = re.compile(rb"%2e", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(https?)://([^/?#@\s]+)(/[^\s]*|\?[^\s]*|)$", re.IGNORECASE)


class BadTargetError(ValueError):
    """The request target cannot be used; the text says why."""


class Target(NamedTuple):
    """A request target taken apart. `path` begins with a slash; `query` holds the question mark or is empty."""

    path: bytes
    query: bytes
    authority: bytes
    """From the absolute form (RFC 9112 section 3.2.2: it replaces Host); empty in the usual origin form."""


def is_plain(target: bytes) -> bool:
    """Origin form with nothing in it that `parse_target` would look at: the usual case, told cheaply."""
    # Not `in`: given bytes, CPython 3.11 first raises and swallows an error inside, which costs more than the search.
    find = target.find
    return (
        target.startswith(b"/")
        and find(b"/.") < 0
        and find(b"#") < 0
        and find(b"\\") < 0
        and (find(b"%") < 0 or (find(b"/%2") < 0 and find(b"%00") < 0))
    )


def parse_target(target: bytes) -> Target:
    """Take a request target apart and resolve its dot segments.

    Raises BadTargetError for what is neither origin form nor absolute form, for a fragment, for dot segments that
    lead out of the root, and for characters in the path that servers are known to disagree on (backslash, null).
    """
    authority = b""
    if not target.startswith(b"/"):
        match = _AUTHORITY.match(target)
        if match is None:
            raise BadTargetError("the request target should be a path or an http URL")
        authority = match.group(2)
        target = match.group(3)
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise BadTargetError("the request target has a fragment (RFC 9112 section 3.2)")
    path, mark, query = target.partition(b"?")
    if b"\\" in path:
        raise BadTargetError("the path has a backslash; some servers read it as a slash")
    if b"%00" in path:
        raise BadTargetError("the path has a null character; some servers end it there")
    if _DOT_SEGMENT.search(path):
        path = _resolve_dot_segments(path)
    return Target(path, mark + query, authority)


def _resolve_dot_segments(path: bytes) -> bytes:
    resolved: list[bytes] = []
    segments = path.split(b"/")[1:]
    for position, segment in enumerate(segments):
        is_last = position == len(segments) - 1
        plain = _ENCODED_DOT.sub(b".", segment)
        if plain == b"..":
            if not resolved:
                raise BadTargetError("the path leads out of the root")
            resolved.pop()
        elif plain != b".":
            resolved.append(segment)
            continue
        if is_last:
            resolved.append(b"")
    return b"/" + b"/".join(resolved)


def split_service(path: bytes, prefix: bytes) -> tuple[bytes, bytes] | None:
    """Service name as written and the path for it, or None when the path is not below the prefix.

    `/api/orders/items/1` gives `(b"orders", b"/items/1")`, `/api/orders` gives `(b"orders", b"/")`.
    """
    if not path.startswith(prefix):
        return None
    start = len(prefix)
    end = path.find(b"/", start)
    if end < 0:
        return path[start:], b"/"
    return path[start:end], path[end:]


def service_key(name: bytes) -> str:
    """The name as the route table knows it: decoded, lower case. Bytes that are no UTF-8 match no service."""
    if b"%" in name:
        name = unquote_to_bytes(name)
    return name.decode("utf-8", "replace").lower()
