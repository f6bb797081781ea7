"""What all endpoints work on, handed to each of them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from toska_mesh.registryd.api.http import Call, Reply
from toska_mesh.registryd.api.reads import Reads
from toska_mesh.registryd.node import Node
from toska_mesh.registryd.render import Pieces
from toska_mesh.registryd.state import State
from toska_mesh.registryd.watches import Watches

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Backend:
    """`clock` is monotonic seconds; `durable` ends when all commands so far are on disk."""

    state: State
    node: Node
    node_index: int
    reads: Reads
    pieces: Pieces
    watches: Watches
    clock: Callable[[], float]
    durable: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of the API. One that ends in a slash takes the rest of the path as a name."""

    path: str
    methods: dict[str, Handler]
