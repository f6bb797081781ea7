"""What the gateway answers itself when it cannot give the upstream's answer: RFC 9457 problem documents.

One table from our reasons to HTTP status codes (RFC 9110 section 15); `code` is stable and meant for programs.
"""

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of refusal. `detail` is for people and may be replaced case by case."""

    status: int
    code: str
    title: str
    detail: str = ""


BAD_REQUEST = Problem(400, "bad-request", "Bad Request")
BAD_FRAMING = Problem(400, "ambiguous-framing", "Bad Request", "the request's framing is ambiguous or malformed")
BAD_HOST = Problem(400, "bad-host", "Bad Request", "an HTTP/1.1 request needs exactly one Host header")
BAD_TARGET = Problem(400, "bad-target", "Bad Request")
UNAUTHORIZED = Problem(401, "unauthorized", "Unauthorized", "a valid bearer token is needed")
FORBIDDEN_ORIGIN = Problem(403, "origin-not-allowed", "Forbidden", "this origin may not read answers")
NO_ROUTE = Problem(404, "no-such-route", "Not Found")
METHOD_NOT_ALLOWED = Problem(405, "method-not-allowed", "Method Not Allowed")
REQUEST_TIMEOUT = Problem(408, "request-timeout", "Request Timeout", "the request did not arrive in time")
TOO_LARGE = Problem(413, "request-too-large", "Content Too Large")
RATE_LIMITED = Problem(429, "rate-limited", "Too Many Requests", "Too many requests. Please try again later.")
HEAD_TOO_LARGE = Problem(431, "head-too-large", "Request Header Fields Too Large")
INTERNAL = Problem(500, "internal-error", "Internal Server Error", "the gateway failed; this is a bug")
NOT_IMPLEMENTED = Problem(501, "not-implemented", "Not Implemented")
UPSTREAM_FAILED = Problem(502, "upstream-failed", "Bad Gateway")
NO_INSTANCE = Problem(503, "no-instance", "Service Unavailable", "no instance of the service is fit for requests")
BREAKER_OPEN = Problem(503, "breaker-open", "Service Unavailable", "every instance of the service has been failing")
NOT_READY = Problem(503, "no-table-yet", "Service Unavailable", "the gateway has not heard from the registry yet")
NO_KEYS = Problem(
    503,
    "auth-not-configured",
    "Service Unavailable",
    "the service demands a token, and this gateway has no key to check one with",
)
TOO_MANY_CONNECTIONS = Problem(503, "too-many-connections", "Service Unavailable", "too many connections")
UPSTREAM_TIMEOUT = Problem(504, "upstream-timeout", "Gateway Timeout", "the upstream did not answer in time")
BAD_VERSION = Problem(505, "http-version", "HTTP Version Not Supported", "HTTP/1.1 and HTTP/1.0 are spoken here")

REASONS = {
    problem.status: problem.title.encode() for problem in tuple(globals().values()) if isinstance(problem, Problem)
} | {200: b"OK", 204: b"No Content"}
"""Reason phrases of the answers that the gateway makes itself."""


def problem_body(problem: Problem, detail: str, request_id: str) -> bytes:
    """The JSON document (RFC 9457 section 3.1), with our `code` and `requestId` as extension members."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": problem.title,
            "status": problem.status,
            "detail": detail or problem.detail,
            "code": problem.code,
            "requestId": request_id,
        }
    )
