"""Cross-origin answers (WHATWG Fetch, section CORS protocol). Pure.

The gateway is the one owner: what an upstream says about CORS is replaced, so a browser never sees two answers. Only
true preflights are answered here; any other OPTIONS request goes to the service.
"""

from collections.abc import Collection

ALLOWED_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
ALLOWED_HEADERS = b"Authorization, Content-Type, X-Correlation-ID, X-Request-ID, traceparent, tracestate"
EXPOSED_HEADERS = b"X-Correlation-ID, X-Request-ID, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After"
MAX_AGE_SECONDS = 600


class Cors:
    """What the operator allows. Any origin, or a list of them; an empty list means none."""

    def __init__(self, allow_any: bool, allowed_origins: Collection[str]) -> None:
        self._allow_any = allow_any
        self._allowed = frozenset(origin.lower().encode() for origin in allowed_origins)

    def allows(self, origin: bytes) -> bool:
        return self._allow_any or origin.lower() in self._allowed

    def response_fields(self, origin: bytes) -> bytes:
        """Header lines for the answer to a request with this Origin; empty when the origin is not allowed."""
        if self._allow_any:
            return b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: %b\r\n" % EXPOSED_HEADERS
        if not self.allows(origin):
            return b"Vary: Origin\r\n"
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\nAccess-Control-Expose-Headers: %b\r\n" % (
            origin,
            EXPOSED_HEADERS,
        )

    def preflight_fields(self, origin: bytes) -> bytes | None:
        """Header lines of the 204 answer to a preflight; None when the origin is not allowed."""
        if not self.allows(origin):
            return None
        shown = b"*" if self._allow_any else origin
        return (
            b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Methods: %b\r\n"
            b"Access-Control-Allow-Headers: %b\r\nAccess-Control-Max-Age: %d\r\n"
            b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"
            % (shown, ALLOWED_METHODS, ALLOWED_HEADERS, MAX_AGE_SECONDS)
        )
