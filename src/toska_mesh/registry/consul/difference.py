"""What changed between two large answers of the registry, without parsing or even cutting what did not.

Consul resends a whole list at every wake-up: 10,000 checks are some 4 MB, of which one object differs. JSON parsers
hold the interpreter for the whole of it, so a thread would not help the event loop. Here the raw bytes of both answers
are laid side by side: what is equal is passed over at the speed of memory, and where they differ both are cut into
their objects until they are equal again; only objects that differ are parsed. Long work takes a breath for the loop now
and then.

Cutting is safe: every object begins with the same key (`{"Node":`), and inside a JSON string those quotes would be
escaped, so these bytes stand nowhere else. What does not look so is parsed whole.
"""

import asyncio
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from toska_mesh.errors import RegistryError

_SLICE_PIECES = 500
"""Objects handled between two breaths of the loop: some 0.2 ms."""
_SLICE_WALK = 50
"""The same where each may be looked for in the other answer."""
_SMALL_STEP, _LARGE_STEP = 1 << 10, 1 << 16
"""Bytes compared at once: few where a difference was just met, many where there was none for long."""
_SLICE_BYTES = 1 << 20
"""Equal bytes passed over between two breaths: some 0.1 ms."""
_NEAR_BYTES = 1 << 15
"""How far on an object is looked for that does not stand where it stood: some 80 objects."""
_MAX_STEPS = 500
"""After so many differences the rest is cut and compared as sets: where nearly all differs that is cheaper."""
_MAX_LOST = 20
"""After so many that were not found, all that follows is cut and compared as sets."""
_LIST_HEAD = re.compile(rb'\s*\[(\s*\{\s*"[^"\\]{1,64}"\s*:)')
_MAP_HEAD = re.compile(rb'"Services"\s*:\s*\{\s*"(?:[^"\\]|\\.)*("\s*:\s*\{\s*"ID"\s*:)')
_SPACE = b" \t\r\n"

_Object = dict[str, Any]


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """One body; its objects begin with `mark`, the first of them at `start`. No objects: no mark."""

    body: bytes = b""
    mark: bytes = b""
    start: int = 0


class PieceSet:
    """The last answer of one endpoint. Owned by one watch."""

    def __init__(self) -> None:
        self.answer = _Answer()
        self.parsed: set[bytes] = set()
        """Every object in one form, instead of `answer`, when that is of no use."""
        self.is_cuttable = True
        """False once an answer turned out to be laid out differently; from then on answers are parsed whole."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """How the answers of one endpoint are laid out, and what tells their objects apart."""

    locate: Callable[[bytes], _Answer]
    trim: Callable[[bytes], bytes]
    """An object from the bytes between its mark and the next."""
    trim_last: Callable[[bytes], bytes]
    lead: Callable[[bytes], int]
    """Where in the mark the trimmed object begins."""
    key: Callable[[dict[str, Any]], object]
    parse: Callable[[bytes], list[bytes]]
    """The objects of a body, each in one form, without cutting. Raises RegistryError."""


async def changed_checks(known: PieceSet, body: bytes) -> set[CheckOwner]:
    """Compare `health/state/any` with the answer before; give whose checks were added, removed or altered.

    Raises RegistryError when the body is no list of checks; `known` then stays as it was.
    """
    added, removed = await _difference(known, _CHECKS, body)
    owners = set()
    for count, check in enumerate(chain(added, removed), 1):
        owners.add(CheckOwner(str(check.get("Node") or ""), str(check.get("ServiceName") or "")))
        if count % _SLICE_PIECES == 0:
            await asyncio.sleep(0)
    return owners


async def changed_services(known: PieceSet, node: str, body: bytes) -> tuple[set[ServiceMark], set[ServiceMark]]:
    """Compare `catalog/node/<node>` with the answer before; give the marks added and those removed."""
    added, removed = await _difference(known, _NODE, body)
    marks: tuple[set[ServiceMark], set[ServiceMark]] = (set(), set())
    for entries, found in zip((added, removed), marks, strict=True):
        for count, entry in enumerate(entries, 1):
            found.add(_mark_of(node, entry))
            if count % _SLICE_PIECES == 0:
                await asyncio.sleep(0)
    return marks


def _mark_of(node: str, entry: dict[str, Any]) -> ServiceMark:
    index = entry.get("ModifyIndex")
    name, instance_id = str(entry.get("Service") or ""), str(entry.get("ID") or "")
    return ServiceMark(node, name, instance_id, index if isinstance(index, int) else 0)


async def _difference(known: PieceSet, endpoint: _Endpoint, body: bytes) -> tuple[list[_Object], list[_Object]]:
    """Objects that were added and that were removed; an altered one is both. A body is kept once it is understood."""
    if known.is_cuttable:
        try:
            answer = endpoint.locate(body)
            added, removed = await _compare(endpoint, known.answer, answer)
            changes = await _load_all(added), await _load_all(removed)
        except _UncuttableError:
            after = set(endpoint.parse(body))
            # Each of these was loaded when it was new, so it can be again.
            before = await _cut(endpoint, known.answer, known.answer.start, len(known.answer.body))
            known.parsed = {orjson.dumps(entry) for entry in await _load_all(before)}
            known.answer, known.is_cuttable = _Answer(), False
        else:
            known.answer = answer
            return changes
    else:
        after = set(endpoint.parse(body))
    changes = await _load_all(after - known.parsed), await _load_all(known.parsed - after)
    known.parsed = after
    return changes


async def _compare(endpoint: _Endpoint, old: _Answer, new: _Answer) -> tuple[set[bytes], set[bytes]]:
    if old.mark == new.mark:
        added, removed = await _walk(endpoint, old, new)
    else:
        added = await _cut(endpoint, new, new.start, len(new.body))
        removed = await _cut(endpoint, old, old.start, len(old.body))
    # What merely stands elsewhere, or beside something else, was found on both sides.
    after, before = await _as_set(added), await _as_set(removed)
    return after - before, before - after


async def _as_set(pieces: list[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for start in range(0, len(pieces), _SLICE_PIECES):
        found.update(pieces[start : start + _SLICE_PIECES])
        if len(pieces) > _SLICE_PIECES:
            await asyncio.sleep(0)
    return found


async def _walk(endpoint: _Endpoint, old: _Answer, new: _Answer) -> tuple[list[bytes], list[bytes]]:
    """Pieces that have no counterpart where it was looked for: with all that differ, perhaps some that do not."""
    added: list[bytes] = []
    removed: list[bytes] = []
    before, after, mark = old.body, new.body, new.mark
    there, here = old.start, new.start
    lost = steps = 0
    while there < len(before) and here < len(after):
        run = await _equal_run(before, there, after, here)
        if there + run == len(before) and here + run == len(after):
            return added, removed
        back = after.rfind(mark, here, here + run)
        there, here = there + back - here, back
        old_piece, old_next = _piece(endpoint, old, there)
        new_piece, new_next = _piece(endpoint, new, here)
        if old_piece != new_piece and endpoint.key(_load(old_piece)) != endpoint.key(_load(new_piece)):
            inserted_until = _find(endpoint, old_piece, new, new_next)
            removed_until = _find(endpoint, new_piece, old, old_next) if inserted_until < 0 else -1
            if inserted_until >= 0:
                added += await _cut(endpoint, new, here, inserted_until)
                here = inserted_until
                continue
            if removed_until >= 0:
                removed += await _cut(endpoint, old, there, removed_until)
                there = removed_until
                continue
            lost += 1
            if lost > _MAX_LOST:  # another order altogether
                break
        if old_piece != new_piece:
            added.append(new_piece)
            removed.append(old_piece)
        there, here = old_next, new_next
        steps += 1
        if steps == _MAX_STEPS:
            break
        if steps % _SLICE_WALK == 0:
            await asyncio.sleep(0)
    added += await _cut(endpoint, new, here, len(after))
    removed += await _cut(endpoint, old, there, len(before))
    return added, removed


async def _equal_run(before: bytes, there: int, after: bytes, here: int) -> int:
    """How many bytes from these places on are the same."""
    run, step = 0, _SMALL_STEP
    while True:
        part = before[there + run : there + run + step]
        if not after.startswith(part, here + run):
            break
        run += len(part)
        if len(part) < step:
            return run
        if step < _LARGE_STEP:
            step *= 2
        elif run % _SLICE_BYTES < step:
            await asyncio.sleep(0)
    while step > 1:
        step //= 2
        part = before[there + run : there + run + step]
        if after.startswith(part, here + run):
            run += len(part)
    return run


def _piece(endpoint: _Endpoint, answer: _Answer, start: int) -> tuple[bytes, int]:
    """The object whose mark is at `start`, and where the next one's is."""
    end = answer.body.find(answer.mark, start + len(answer.mark))
    if end < 0:
        return endpoint.trim_last(answer.body[start:]), len(answer.body)
    return endpoint.trim(answer.body[start:end]), end


def _find(endpoint: _Endpoint, piece: bytes, answer: _Answer, start: int) -> int:
    """Where the same piece begins in an answer, if it does so soon; else -1."""
    found = answer.body.find(piece, start, start + _NEAR_BYTES) - endpoint.lead(answer.mark)
    return found if found >= start and answer.body.startswith(answer.mark, found) else -1


async def _cut(endpoint: _Endpoint, answer: _Answer, start: int, stop: int) -> list[bytes]:
    """The objects whose marks are from `start` (where one is) to before `stop`."""
    pieces: list[bytes] = []
    if not answer.mark:
        return pieces
    while start < stop:
        piece, start = _piece(endpoint, answer, start)
        pieces.append(piece)
        if len(pieces) % _SLICE_PIECES == 0:
            await asyncio.sleep(0)
    return pieces


async def _load_all(pieces: Collection[bytes]) -> list[_Object]:
    loaded = []
    for piece in pieces:
        loaded.append(_load(piece))
        if len(loaded) % _SLICE_PIECES == 0:
            await asyncio.sleep(0)
    return loaded


def _load(piece: bytes) -> _Object:
    try:
        loaded = orjson.loads(piece)
    except orjson.JSONDecodeError as error:
        raise _UncuttableError from error
    if not isinstance(loaded, dict):
        raise _UncuttableError
    return loaded


def _locate_checks(body: bytes) -> _Answer:
    head = _LIST_HEAD.match(body)
    if head is not None:
        return _Answer(body, head.group(1), head.start(1))
    if _parse_checks(body):
        raise _UncuttableError
    return _Answer()


def _locate_services(body: bytes) -> _Answer:
    head = _MAP_HEAD.search(body)
    if head is not None:
        return _Answer(body, head.group(1), head.start(1))
    if _parse_services(body):
        raise _UncuttableError
    return _Answer()


def _without_comma(piece: bytes) -> bytes:
    return piece.rstrip(b"," + _SPACE)


def _without_end_of_list(piece: bytes) -> bytes:
    return piece.rstrip(b"]" + _SPACE)


def _without_next_key(piece: bytes) -> bytes:
    """The entry's object. A piece runs from `":{"ID":` to the key of the next entry, whose opening quote is the last
    one that is not escaped.
    """
    quote = piece.rfind(b'"')
    while quote > 0 and piece[quote - 1] == 0x5C:
        quote = piece.rfind(b'"', 0, quote)
    return piece[piece.index(b"{") : piece.rfind(b"}", 0, quote) + 1]


def _without_end_of_node(piece: bytes) -> bytes:
    """The last one runs to the end of the document, past the ends of `Services` and of the whole."""
    inner = piece[piece.index(b"{") :].rstrip(_SPACE).removesuffix(b"}").rstrip(_SPACE).removesuffix(b"}")
    return inner.rstrip(_SPACE)


def _parse_checks(body: bytes) -> list[bytes]:
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


_CHECKS = _Endpoint(
    _locate_checks,
    _without_comma,
    _without_end_of_list,
    lambda mark: 0,
    lambda check: (check.get("Node"), check.get("CheckID")),
    _parse_checks,
)
_NODE = _Endpoint(
    _locate_services,
    _without_next_key,
    _without_end_of_node,
    lambda mark: mark.index(b"{"),
    lambda entry: entry.get("ID"),
    _parse_services,
)
