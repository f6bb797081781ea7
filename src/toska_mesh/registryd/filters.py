"""Consul's `?filter=` expressions (go-bexpr): parsed once, then asked of each item. Pure.

Covers `==`, `!=`, `in`, `not in`, `contains`, `not contains`, `is empty`, `is not empty`, joined by `and`, `or`, `not`
and parentheses; `matches` is refused. A selector that an item of that kind cannot have is an error, as in Consul; a
missing key of a map is no match.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Predicate = Callable[[Mapping[str, Any]], bool]

TEXT, NUMBER, BOOLEAN, TEXTS, TEXT_MAP = "text", "number", "boolean", "texts", "text map"


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of structures: `Checks.Status == passing` asks whether any of them is."""

    item: Mapping[str, Any]


Shape = Mapping[str, Any]
"""Field to one of the kinds above, a nested shape, `ListOf`, or `MapOf`."""


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map from any key to structures of one shape."""

    item: Mapping[str, Any]


CHECK: Shape = {
    **dict.fromkeys(("Node", "CheckID", "Name", "Status", "Notes", "Output"), TEXT),
    **dict.fromkeys(("ServiceID", "ServiceName", "Type"), TEXT),
    "ServiceTags": TEXTS,
}
NODE: Shape = {
    **dict.fromkeys(("ID", "Node", "Address", "Datacenter"), TEXT),
    "TaggedAddresses": TEXT_MAP,
    "Meta": TEXT_MAP,
}
_ADDRESSES = MapOf({"Address": TEXT, "Port": NUMBER})
_WEIGHTS = {"Passing": NUMBER, "Warning": NUMBER}
SERVICE: Shape = {
    **dict.fromkeys(("Kind", "ID", "Service", "Address"), TEXT),
    "Tags": TEXTS,
    "Meta": TEXT_MAP,
    "Port": NUMBER,
    "TaggedAddresses": _ADDRESSES,
    "Weights": _WEIGHTS,
    "EnableTagOverride": BOOLEAN,
    "Proxy": {"DestinationServiceName": TEXT, "DestinationServiceID": TEXT},
    "Connect": {"Native": BOOLEAN},
}
INSTANCE: Shape = {"Node": NODE, "Service": SERVICE, "Checks": ListOf(CHECK)}
CATALOG_SERVICE: Shape = {
    **dict.fromkeys(("ID", "Node", "Address", "Datacenter"), TEXT),
    **dict.fromkeys(("ServiceKind", "ServiceID", "ServiceName", "ServiceAddress"), TEXT),
    "TaggedAddresses": TEXT_MAP,
    "NodeMeta": TEXT_MAP,
    "ServiceTags": TEXTS,
    "ServiceTaggedAddresses": _ADDRESSES,
    "ServiceWeights": _WEIGHTS,
    "ServiceMeta": TEXT_MAP,
    "ServicePort": NUMBER,
    "ServiceEnableTagOverride": BOOLEAN,
}


class FilterError(ValueError):
    """The expression is not understood. The text follows Consul's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Failed to create boolean expression evaluator: {reason}")


_TOKEN = re.compile(
    r"""\s*(?:(?P<op>==|!=|\(|\))|(?P<quoted>"(?:[^"\\]|\\.)*"|`[^`]*`)"""
    r"""|(?P<word>[A-Za-z][A-Za-z0-9_/]*(?:\.[A-Za-z0-9_/]+|\["(?:[^"\\]|\\.)*"\])*|-?\d+(?:\.\d+)?))"""
)
_OPERATORS = {
    ("==",): "Equal",
    ("!=",): "Not Equal",
    ("contains",): "Contains",
    ("not", "contains"): "Not Contains",
    ("is", "empty"): "Is Empty",
    ("is", "not", "empty"): "Is Not Empty",
    ("matches",): "Matches",
    ("not", "matches"): "Not Matches",
    ("in",): "In",
    ("not", "in"): "Not In",
}
_ALLOWED = {
    TEXT: ("Equal", "In", "Matches"),
    NUMBER: ("Equal",),
    BOOLEAN: ("Equal",),
    TEXTS: ("In", "Is Empty"),
    TEXT_MAP: ("In", "Is Empty"),
}
_MAX_LENGTH = 4096
_MAX_DEPTH = 64


def parse(expression: str, shape: Shape) -> Predicate:
    """A test for items of that shape. Raises FilterError."""
    if len(expression) > _MAX_LENGTH:
        raise FilterError(f"the expression is longer than {_MAX_LENGTH} characters")
    parser = _Parser(_tokens(expression), shape)
    test = parser.either(0)
    parser.expect_end()
    return test


def _tokens(expression: str) -> list[str]:
    tokens, position, end = [], 0, len(expression.rstrip())
    while position < end:
        match = _TOKEN.match(expression, position)
        if match is None:
            raise FilterError(f"1:{position + 1} ({position}): no match found")
        tokens.append(match.group(match.lastgroup or 0))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[str], shape: Shape) -> None:
        self._tokens = tokens
        self._shape = shape
        self._at = 0

    def _peek(self, ahead: int = 0) -> str:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise FilterError(f"1:{self._at + 1}: no match found, the expression ends too early")
        self._at += 1
        return token

    def expect_end(self) -> None:
        if self._peek():
            raise FilterError(f'no match found, did not expect "{self._peek()}"')

    def either(self, depth: int) -> Predicate:
        test = self._both(depth)
        while self._peek() == "or":
            self._take()
            test = _or(test, self._both(depth))
        return test

    def _both(self, depth: int) -> Predicate:
        test = self._one(depth)
        while self._peek() == "and":
            self._take()
            test = _and(test, self._one(depth))
        return test

    def _one(self, depth: int) -> Predicate:
        if depth > _MAX_DEPTH:
            raise FilterError("too many nested expressions")
        if self._peek() == "not":
            self._take()
            return _not(self._one(depth + 1))
        if self._peek() == "(":
            self._take()
            test = self.either(depth + 1)
            if self._take() != ")":
                raise FilterError('no match found, expected ")"')
            return test
        return self._match()

    def _match(self) -> Predicate:
        first = self._take()
        operator = self._operator()
        if operator in ("In", "Not In"):
            return self._test(self._take(), operator, _literal(first))
        if operator in ("Contains", "Not Contains"):
            return self._test(first, operator.replace("Contains", "In"), _literal(self._take()))
        if operator.endswith("Empty"):
            return self._test(first, operator, "")
        return self._test(first, operator, _literal(self._take()))

    def _operator(self) -> str:
        for length in (3, 2, 1):
            words = tuple(self._peek(ahead) for ahead in range(length))
            if words in _OPERATORS:
                self._at += length
                return _OPERATORS[words]
        raise FilterError(f'no match found, expected an operator instead of "{self._peek()}"')

    def _test(self, selector: str, operator: str, literal: str) -> Predicate:
        path = _path(selector)
        kind = _kind_of(self._shape, path, selector)
        is_negated = "Not " in operator
        positive = operator.replace("Not ", "")
        if positive not in _ALLOWED.get(kind, ("Is Empty",)):
            raise FilterError(f'Invalid match operator "{operator}" for selector "{selector}"')
        test = _value_test(kind, positive, literal, selector)

        def ask(item: Mapping[str, Any]) -> bool:
            return any(test(value) for value in _values(item, path)) is not is_negated

        return ask


def _literal(token: str) -> str:
    if token[:1] == "`":
        return token[1:-1]
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token[:1] == '"' else token


def _path(selector: str) -> list[str]:
    parts = re.findall(r'\["((?:[^"\\]|\\.)*)"\]|([^.\[\]]+)', selector)
    return [re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for quoted, plain in parts]


def _kind_of(shape: Any, path: list[str], selector: str) -> str:
    for step in path:
        if isinstance(shape, ListOf):
            shape = shape.item
        if isinstance(shape, MapOf):
            shape = shape.item
        elif shape == TEXT_MAP:
            shape = TEXT
        elif isinstance(shape, Mapping) and step in shape:
            shape = shape[step]
        else:
            raise FilterError(f'Selector "{selector}" is not valid')
    return shape if isinstance(shape, str) else "structure" if isinstance(shape, Mapping) else "collection"


def _value_test(kind: str, operator: str, literal: str, selector: str) -> Callable[[Any], bool]:
    if operator == "Is Empty":
        return lambda value: not value
    if operator == "Matches":
        # Python's regular expressions can be made to run for ever, Go's cannot; a query must not stop the registry.
        raise FilterError("the embedded registry has no regular expressions, so no `matches`")
    if operator == "In":
        return lambda value: value is not None and literal in value
    wanted = _coerced(kind, literal, selector)
    return lambda value: bool(value == wanted)


def _coerced(kind: str, literal: str, selector: str) -> object:
    if kind == NUMBER:
        try:
            return int(literal)
        except ValueError as exc:
            raise FilterError(
                f'Failed to coerce value "{literal}" for selector "{selector}": '
                f'strconv.ParseInt: parsing "{literal}": invalid syntax'
            ) from exc
    if kind == BOOLEAN:
        if literal.lower() not in ("true", "false", "t", "f", "1", "0"):
            raise FilterError(
                f'Failed to coerce value "{literal}" for selector "{selector}": '
                f'strconv.ParseBool: parsing "{literal}": invalid syntax'
            )
        return literal.lower() in ("true", "t", "1")
    return literal


def _values(item: Any, path: list[str]) -> list[Any]:
    """What the selector finds: one value, or one for each item of the lists on the way, or none."""
    found = [item]
    for step in path:
        spread = [inner for value in found for inner in (value if isinstance(value, list | tuple) else [value])]
        found = [value[step] for value in spread if isinstance(value, Mapping) and step in value]
    return found


def _or(left: Predicate, right: Predicate) -> Predicate:
    return lambda item: left(item) or right(item)


def _and(left: Predicate, right: Predicate) -> Predicate:
    return lambda item: left(item) and right(item)


def _not(test: Predicate) -> Predicate:
    return lambda item: not test(item)
