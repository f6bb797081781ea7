"""Answers of the gateway's own handlers: health on the public port, and the shape that all of them share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from toska_mesh.admin import Health, HealthReport
from toska_mesh.gateway.exchange import Exchange
from toska_mesh.gateway.problems import REASONS, Problem, problem_body


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What one of the gateway's own handlers says."""

    status: int
    body: bytes
    content_type: str = "application/json"


Handler = Callable[[Exchange], LocalAnswer]
AsyncHandler = Callable[[Exchange], Awaitable[LocalAnswer]]


def problem_answer(status: int, code: str, detail: str, request_id: str) -> LocalAnswer:
    """An RFC 9457 document as an answer."""
    problem = Problem(status, code, REASONS.get(status, b"Error").decode())
    return LocalAnswer(status, problem_body(problem, detail, request_id), "application/problem+json")


def health_handlers(health: Health) -> dict[bytes, Handler]:
    """The public health paths: exact matches, never limited, never behind authentication."""
    reports: dict[bytes, Callable[[], HealthReport]] = {
        b"/health": health.overall,
        b"/health/live": health.live,
        b"/health/ready": health.ready,
    }
    return {path: _reporter(report) for path, report in reports.items()}


def _reporter(make_report: Callable[[], HealthReport]) -> Handler:
    def report(exchange: Exchange) -> LocalAnswer:
        if exchange.head.method not in (b"GET", b"HEAD"):
            return problem_answer(405, "method-not-allowed", "health is read with GET", exchange.head.request_id)
        made = make_report()
        return LocalAnswer(made.status, orjson.dumps(made.body, default=str))

    return report
