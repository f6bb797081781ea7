"""When to stop asking, when to ask again, how much to admit. Pure: no I/O, no clock, usable alone.

Every decision takes `now` in seconds on a monotonic clock of the caller's choice.
"""

from toska_mesh.resilience.breaker import Breaker, BreakerPolicy, Circuit, Outcome, Permit, State, Transition
from toska_mesh.resilience.budget import RetryBudget
from toska_mesh.resilience.deadline import NEVER, Deadline
from toska_mesh.resilience.limits import ConcurrencyLimit
from toska_mesh.resilience.ratelimit import Decision, RateLimiter
from toska_mesh.resilience.retry import (
    IDEMPOTENT_METHODS,
    RETRYABLE_STATUSES,
    Failure,
    RetryPolicy,
    Try,
    is_idempotent,
    may_repeat,
)
from toska_mesh.resilience.suspicion import RecentLatency, SuspicionPolicy, is_suspect

__all__ = [
    "IDEMPOTENT_METHODS",
    "NEVER",
    "RETRYABLE_STATUSES",
    "Breaker",
    "BreakerPolicy",
    "Circuit",
    "ConcurrencyLimit",
    "Deadline",
    "Decision",
    "Failure",
    "Outcome",
    "Permit",
    "RateLimiter",
    "RecentLatency",
    "RetryBudget",
    "RetryPolicy",
    "State",
    "SuspicionPolicy",
    "Transition",
    "Try",
    "is_idempotent",
    "is_suspect",
    "may_repeat",
]
