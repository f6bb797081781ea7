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
    """A call failed on the upstream's side. `instance` is the last one asked, empty when there was none."""

    def __init__(self, message: str, *, service: str = "", instance: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.service = service
        self.instance = instance
        self.attempts = attempts


class NoInstanceError(UpstreamError):
    """No instance of the service may be asked, or there is no such service."""


class CircuitOpenError(UpstreamError):
    """Every instance that could be asked is behind an open breaker. `retry_after_seconds` says when to come back."""

    def __init__(
        self, message: str, retry_after_seconds: float, *, service: str = "", instance: str = "", attempts: int = 0
    ) -> None:
        super().__init__(message, service=service, instance=instance, attempts=attempts)
        self.retry_after_seconds = retry_after_seconds


class UpstreamConnectError(UpstreamError):
    """No connection to the upstream, or it broke before an answer began."""


class UpstreamTimeoutError(UpstreamError):
    """The upstream did not answer in time."""


class KeyValueError(MeshError):
    """The key-value store refused a request; asking again unchanged will not help. The text names store and key."""


class KeyValueUnavailableError(KeyValueError):
    """The key-value store did not answer, or said that it cannot serve now. Asking again later may help.

    Never to be read as "no such key". `may_have_happened`: a write may have taken effect all the same, because its
    answer was lost; False is a promise that it did not.
    """

    def __init__(self, message: str, may_have_happened: bool = True) -> None:
        super().__init__(message)
        self.may_have_happened = may_have_happened


class KeyValueFormatError(KeyValueError):
    """A value has no JSON form, or what is stored is not what the caller asked for. The text says where in it."""
