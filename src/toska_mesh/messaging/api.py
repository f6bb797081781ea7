"""What the daemons ask of messaging: take an event and never lose it. Delivery to a broker is not their concern."""

from dataclasses import dataclass
from typing import Protocol

from toska_mesh.model import MeshMessage


@dataclass(frozen=True, slots=True)
class SinkState:
    """How delivery stands, for `/health` and people. Events wait on the disk; waiting ones are late, not lost."""

    is_enabled: bool
    """False when no broker is configured: events are logged and that is all."""
    is_connected: bool = False
    is_blocked: bool = False
    """The broker is connected but takes nothing for now (its memory or disk alarm)."""
    waiting: int = 0
    waiting_bytes: int = 0
    oldest_age_seconds: float = 0.0
    trouble: str = ""
    """Why nothing is delivered, empty while all is well."""


class EventSink(Protocol):
    """Takes events for delivery at least once, in order per service."""

    async def publish(self, message: MeshMessage) -> None:
        """Return when the message is safe against a crash of this process (on disk), not when it is delivered.

        Never waits for the broker. Raises PublishError when the message could not be made safe.
        """

    @property
    def state(self) -> SinkState: ...
