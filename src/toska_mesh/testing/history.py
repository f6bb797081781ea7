"""What happened in a fake mesh and when, for assertions and for the report of a failing test."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class Event:
    """`at`: seconds of the mesh's clock. `kind`: one word, such as `request`, `down`, `registered`. `subject`: whom it
    is about: an instance's id, `registry`, `gateway`. `text`: the rest, for people."""

    at: float
    kind: str
    subject: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.at:9.3f} s  {self.kind:<12} {self.subject:<20} {self.text}".rstrip()


class Events(Sequence[Event]):
    """Every event of one mesh, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: list[Event] = []

    def add(self, kind: str, subject: str, text: str = "") -> None:
        self._events.append(Event(self._clock(), kind, subject, text))

    def of(self, kind: str, subject: str | None = None) -> tuple[Event, ...]:
        """Those of one kind, of everybody or of one."""
        return tuple(one for one in self._events if one.kind == kind and subject in (None, one.subject))

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._events[index]
