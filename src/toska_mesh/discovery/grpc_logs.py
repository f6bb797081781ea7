"""Keeps gRPC from calling an answer that reached nobody an error of ours.

A caller that gives up while its answer is being sent leaves a send that fails. gRPC knows that as a rule, but when it
hears of the failed send before it hears of the caller, it logs an error with a traceback, about ten for a thousand
calls that end at their deadlines. Nothing in our reach comes between the two.
"""

import logging

from toska_mesh.telemetry import event_log

GRPC_LOGGER = "grpc._cython.cygrpc"
_FAILED_SEND = "ExecuteBatchError"
log = event_log("discovery")


class AbandonedCalls(logging.Filter):
    """For gRPC's logger: such a record becomes a debug event. Everything else passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        if kind is None or kind.__name__ != _FAILED_SEND:
            return True
        log.debug("caller_gone", reason=record.getMessage())
        return False
