"""What to do about a difference between the registry and what was announced.

Three kinds of cause look alike in the registry: a caller of this replica whose change was cut short (owed: ours to
announce), a caller of another replica or another control plane (theirs: adopt without an event), and the registry
itself, when a time to live runs out or a dead instance is reaped (the leader's to announce). Pure.
"""

from dataclasses import dataclass
from enum import Enum, auto

from toska_mesh.discovery.transitions import Difference
from toska_mesh.model import HealthStatus

SETTLE_SECONDS = 0.5
"""A difference younger than this may still be the two halves of one change."""

HOLD_SECONDS = 90.0
"""How long a replica that is not the leader keeps a difference in mind. Longer than a dead leader's lock lives, so
that the next leader can announce what the last one did not live to say."""


class Action(Enum):
    WAIT = auto()
    ADOPT = auto()
    ANNOUNCE = auto()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What has to be known besides the difference itself. `beat_lives_seconds`: how much longer the last beat taken
    here would have kept the instance alive; 0 when there was none."""

    age_seconds: float
    is_leader: bool
    is_owed: bool = False
    beat_lives_seconds: float = 0.0


def judge(difference: Difference, now: Circumstances) -> Action:
    """Decide; the same difference is judged again and again until it is adopted, announced or gone."""
    before, after = difference.before, difference.after
    if now.is_owed:
        return Action.ANNOUNCE
    if before is None:
        return Action.ADOPT  # whoever registered it has announced it
    if after is None:
        if before.status is not HealthStatus.UNHEALTHY and now.beat_lives_seconds > 0:
            return Action.WAIT  # lost by the registry while it beats: its next beat brings it back
        return _by_rank(now)
    if before.status is after.status:
        return Action.ADOPT
    return _by_rank(now)


def _by_rank(now: Circumstances) -> Action:
    if now.is_leader:
        return Action.ANNOUNCE if now.age_seconds >= SETTLE_SECONDS else Action.WAIT
    return Action.ADOPT if now.age_seconds >= HOLD_SECONDS else Action.WAIT
