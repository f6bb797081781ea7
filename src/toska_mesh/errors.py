"""The error tree of the whole project.

A type exists here when some caller branches on it; everything else is a message. Foreign exceptions are translated
into these once, at the seam that met them, with `raise ... from exc`. Status codes are not known here: the table from
error to HTTP or gRPC status belongs to each daemon's edge.
"""


class MeshError(Exception):
    """Anything that goes wrong for a reason we know."""


class ConfigError(MeshError):
    """A setting is wrong. The text names the variable, its value and what would be right."""


class RegistryError(MeshError):
    """The registry refused a request; asking again unchanged will not help. The text is the registry's own."""


class RegistryUnavailableError(RegistryError):
    """The registry did not answer, or answered that it cannot serve now. Asking again later may help.

    Never to be read as "no such service": an outage is not an empty answer.
    """


class InstanceNotFoundError(RegistryError):
    """The registry knows no instance of that id (never registered, deregistered, reaped or wiped)."""


class MessagingError(MeshError):
    """Events cannot be handed over."""


class PublishError(MessagingError):
    """The outbox could not take an event (disk full, file unusable, bound reached)."""


class UpstreamError(MeshError):
    """A proxied call failed on the upstream's side."""


class NoInstanceError(UpstreamError):
    """The service is known but no instance of it may be asked."""


class CircuitOpenError(UpstreamError):
    """Every instance that could be asked is behind an open breaker. `retry_after_seconds` says when to come back."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UpstreamConnectError(UpstreamError):
    """No connection to the upstream, or it broke before an answer began."""


class UpstreamTimeoutError(UpstreamError):
    """The upstream did not answer in time."""
