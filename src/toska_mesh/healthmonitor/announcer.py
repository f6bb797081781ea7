"""Tells the world about changed verdicts, through the event sink, if this monitor is the one that leads.

The board's leader lock decides: with several monitors each probes, one speaks.
"""

import asyncio
from collections.abc import Callable
from typing import Never
from uuid import UUID

from toska_mesh.aio import Latest
from toska_mesh.errors import PublishError
from toska_mesh.healthmonitor.history import Announcements, Transition
from toska_mesh.messaging import EventSink
from toska_mesh.model import CatalogSnapshot, InstanceHealthChanged
from toska_mesh.registry.api import VerdictBoard
from toska_mesh.telemetry import event_log

log = event_log("healthmonitor")

LOOK_SECONDS = 0.25
"""How often is looked whether something waits and whether this monitor leads; also the delay of an event."""

RETRY_SECONDS = 5.0
"""Pause after the sink refused an event (its disk is full or its bound reached)."""


class Announcer:
    """Carries transitions from `Announcements` to the sink, in order; what the sink refuses is tried again."""

    def __init__(
        self,
        announcements: Announcements,
        sink: EventSink,
        board: VerdictBoard,
        catalog: Latest[CatalogSnapshot],
        new_id: Callable[[], UUID],
    ) -> None:
        self._announcements = announcements
        self._sink = sink
        self._board = board
        self._catalog = catalog
        self._new_id = new_id

    async def run(self) -> Never:
        while True:
            if self._board.is_leader:
                self._announcements.lead()
                is_stuck = not await self.publish_waiting()
            else:
                self._follow()
                is_stuck = False
            await asyncio.sleep(RETRY_SECONDS if is_stuck else LOOK_SECONDS)

    async def publish_waiting(self) -> bool:
        """Hand over what waits; False when the sink refused one, which stays first in line."""
        while (transition := self._announcements.next()) is not None:
            try:
                await self._sink.publish(self._event(transition))
            except PublishError as exc:
                log.error("event_refused", waiting=len(self._announcements), reason=str(exc))
                return False
            self._announcements.confirm(transition)
        return True

    def _follow(self) -> None:
        snapshot = self._catalog.peek()
        can_ask = snapshot is not None and not snapshot.is_stale
        self._announcements.follow(asyncio.get_running_loop().time(), is_leader_known=can_ask)

    def _event(self, transition: Transition) -> InstanceHealthChanged:
        return InstanceHealthChanged(
            event_id=self._new_id(),
            timestamp=transition.at,
            service=transition.service,
            instance_id=transition.instance_id,
            previous=transition.previous,
            current=transition.current,
            output=transition.message or None,
        )
