"""What changed between two large answers of the registry, without parsing what did not.

Consul resends a whole list at every wake-up: 10,000 checks are some 4 MB, of which one object differs. JSON parsers
hold the interpreter for the whole of it, so a thread would not help the event loop. Here the raw bytes are cut into
one piece per object and compared as sets, in slices with a breath for the loop between them; only pieces that differ
are parsed.

Cutting is safe: every object begins with the same key (`{"Node":`), and inside a JSON string those quotes would be
escaped, so these bytes stand nowhere else. What does not look so is parsed whole.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from toska_mesh.errors import RegistryError

_SLICE_PIECES = 500
"""Objects handled between two breaths of the loop: some 0.2 ms."""
_LIST_HEAD = re.compile(rb'\s*\[(\s*\{\s*"[^"\\]{1,64}"\s*:)')
_MAP_HEAD = re.compile(rb'"Services"\s*:\s*\{\s*"(?:[^"\\]|\\.)*("\s*:\s*\{\s*"ID"\s*:)')
_SPACE = b" \t\r\n"


class _UncuttableError(Exception):
    """The text is not laid out as expected; it has to be parsed whole."""


@dataclass(frozen=True, slots=True)
class CheckOwner:
    """Whose check it is. `service` is empty for a check of the node itself."""

    node: str
    service: str


@dataclass(frozen=True, slots=True)
class ServiceMark:
    """One registered instance and the index of its last change."""

    node: str
    service: str
    instance_id: str
    modify_index: int


class PieceSet:
    """The last answer of one endpoint, as a set of raw objects. Owned by one watch."""

    def __init__(self) -> None:
        self._pieces: set[bytes] = set()
        self.is_cuttable = True
        """False once an answer turned out to be laid out differently; from then on answers are parsed whole."""

    async def compare(self, pieces: list[bytes]) -> "Comparison":
        """Compare with the newest pieces; they are taken by `accept`, once their changes were understood."""
        before, after, added = self._pieces, set[bytes](), list[bytes]()
        for start in range(0, len(pieces), _SLICE_PIECES):
            some = pieces[start : start + _SLICE_PIECES]
            after.update(some)
            added += [piece for piece in some if piece not in before]
            if len(pieces) > _SLICE_PIECES:
                await asyncio.sleep(0)
        removed = list(before - after) if len(after) - len(set(added)) != len(before) else []
        return Comparison(after, added, removed)

    def accept(self, comparison: "Comparison") -> None:
        self._pieces = comparison.pieces


@dataclass(frozen=True, slots=True)
class Comparison:
    pieces: set[bytes]
    added: list[bytes]
    removed: list[bytes]


async def changed_checks(known: PieceSet, body: bytes) -> set[CheckOwner]:
    """Compare `health/state/any` with the answer before; give whose checks were added, removed or altered.

    Raises RegistryError when the body is no list of checks; `known` then stays as it was.
    """
    if known.is_cuttable:
        try:
            return await _owners(known, await _cut_list(body))
        except _UncuttableError:
            known.is_cuttable = False
    return await _owners(known, _parse_list(body))


async def _owners(known: PieceSet, pieces: list[bytes]) -> set[CheckOwner]:
    comparison = await known.compare(pieces)
    owners = set()
    for count, piece in enumerate(chain(comparison.added, comparison.removed)):
        check = _load(piece)
        owners.add(CheckOwner(str(check.get("Node") or ""), str(check.get("ServiceName") or "")))
        if count % _SLICE_PIECES == _SLICE_PIECES - 1:
            await asyncio.sleep(0)
    known.accept(comparison)
    return owners


async def changed_services(known: PieceSet, node: str, body: bytes) -> tuple[set[ServiceMark], set[ServiceMark]]:
    """Compare `catalog/node/<node>` with the answer before; give the marks added and those removed."""
    if known.is_cuttable:
        try:
            return await _marks(known, node, await _cut_services(body))
        except _UncuttableError:
            known.is_cuttable = False
    return await _marks(known, node, _parse_services(body))


async def _marks(known: PieceSet, node: str, pieces: list[bytes]) -> tuple[set[ServiceMark], set[ServiceMark]]:
    comparison = await known.compare(pieces)
    marks: tuple[set[ServiceMark], set[ServiceMark]] = (set(), set())
    for group, found in zip((comparison.added, comparison.removed), marks, strict=True):
        for count, piece in enumerate(group):
            entry = _load(piece)
            index = entry.get("ModifyIndex")
            name, instance_id = str(entry.get("Service") or ""), str(entry.get("ID") or "")
            found.add(ServiceMark(node, name, instance_id, index if isinstance(index, int) else 0))
            if count % _SLICE_PIECES == _SLICE_PIECES - 1:
                await asyncio.sleep(0)
    known.accept(comparison)
    return marks


def _load(piece: bytes) -> dict[str, Any]:
    try:
        loaded = orjson.loads(piece)
    except orjson.JSONDecodeError as error:
        raise _UncuttableError from error
    if not isinstance(loaded, dict):
        raise _UncuttableError
    return loaded


async def _cut_list(body: bytes) -> list[bytes]:
    head = _LIST_HEAD.match(body)
    if head is None:
        return _parse_list(body)
    pieces = await _cut(body, head.group(1), head.start(1), _without_comma)
    pieces[-1] = pieces[-1].rstrip(b"]" + _SPACE)
    return pieces


def _without_comma(piece: bytes) -> bytes:
    return piece.rstrip(b"," + _SPACE)


async def _cut_services(body: bytes) -> list[bytes]:
    head = _MAP_HEAD.search(body)
    if head is None:
        return _parse_services(body)
    infix = head.group(1)
    pieces = await _cut(body, infix, head.start(1), _without_next_key)
    # The last one runs to the end of the document, past the ends of `Services` and of the whole.
    last = pieces[-1][pieces[-1].index(b"{") :].rstrip(_SPACE).removesuffix(b"}").rstrip(_SPACE).removesuffix(b"}")
    pieces[-1] = last.rstrip(_SPACE)
    return pieces


def _without_next_key(piece: bytes) -> bytes:
    """The entry's object. A piece runs from `":{"ID":` to the key of the next entry, whose opening quote is the last
    one that is not escaped.
    """
    quote = piece.rfind(b'"')
    while quote > 0 and piece[quote - 1] == 0x5C:
        quote = piece.rfind(b'"', 0, quote)
    return piece[piece.index(b"{") : piece.rfind(b"}", 0, quote) + 1]


async def _cut(body: bytes, mark: bytes, start: int, trim: Callable[[bytes], bytes]) -> list[bytes]:
    """Pieces of `body` that begin with `mark`, each but the last one trimmed."""
    pieces = []
    while True:
        end = body.find(mark, start + len(mark))
        if end < 0:
            pieces.append(body[start:])
            return pieces
        pieces.append(trim(body[start:end]))
        start = end
        if len(pieces) % _SLICE_PIECES == 0:
            await asyncio.sleep(0)


def _parse_list(body: bytes) -> list[bytes]:
    checks = _parse(body, "health/state/any")
    if checks is None:
        return []
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise RegistryError("the registry's answer to health/state/any is no list of checks")
    return [orjson.dumps(check) for check in checks]


def _parse_services(body: bytes) -> list[bytes]:
    answer = _parse(body, "catalog/node")
    services = answer.get("Services") if isinstance(answer, dict) else None
    if not services:  # an unknown node is `null`, an empty one has no services
        return []
    if not isinstance(services, dict) or not all(isinstance(entry, dict) for entry in services.values()):
        raise RegistryError("the registry's answer to catalog/node is no node with services")
    return [orjson.dumps(entry) for entry in services.values()]


def _parse(body: bytes, what: str) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RegistryError(f"the registry's answer to {what} is not JSON: {error}") from error
