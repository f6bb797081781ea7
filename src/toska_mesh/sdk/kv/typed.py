"""JSON text read back, as plain values or as the type that the caller names.

Any JSON is accepted, whoever wrote it and however it is spaced and escaped. With a type the value is built from it:
dataclasses, TypedDicts, lists, dicts, unions, literals, enums and the scalars that `codec.py` writes; a pydantic model,
known by its `model_validate`, reads itself. Properties that a dataclass does not have are passed over, as .NET does,
so that a service may add a field before its neighbours know it; one that it needs and that is missing is an error.
"""

import base64
import binascii
import collections.abc
import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal, Never, Union, get_args, get_origin
from uuid import UUID

from toska_mesh.errors import KeyValueFormatError
from toska_mesh.sdk.kv.codec import json_names

_TIME_SPAN: Final = re.compile(r"(-)?(?:(\d+)\.)?(\d\d):(\d\d):(\d\d)(?:\.(\d{1,7}))?")
_SHOWN_CHARACTERS: Final = 60


def decode(text: str, as_type: object = None) -> Any:
    """The value of a JSON text. Raises KeyValueFormatError when it is no JSON or does not fit the type."""
    typed = as_type is not None
    try:
        # Decimal keeps every digit until it is known whether a float or a Decimal is wanted.
        data = json.loads(
            text, parse_float=Decimal if typed else float, parse_int=_integer, parse_constant=_refuse_constant
        )
        return _build(data, as_type, "") if typed else data
    except RecursionError:
        raise KeyValueFormatError("what is stored is nested too deep") from None
    except ValueError as exc:  # JSONDecodeError, or an integer of thousands of digits
        raise KeyValueFormatError(f"what is stored is no JSON: {exc}; it begins with {_shown(text)}") from exc


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # a float that lost its point; no integer is minus zero


def _refuse_constant(name: str) -> Never:
    raise KeyValueFormatError(f"what is stored is no JSON: it has the number {name}")


def _build(data: object, kind: Any, path: str) -> Any:
    if kind is Any or kind is object:
        return _plain(data)
    kind = getattr(kind, "__supertype__", kind)  # a NewType is what it stands for
    origin = get_origin(kind)
    if origin is not None:
        return _build_generic(data, kind, origin, path)
    if kind is None or kind is type(None):
        return data if data is None else _misfit(data, "null", path)
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return scalar(data, path)
    if isinstance(kind, type):
        return _build_class(data, kind, path)
    raise KeyValueFormatError(f"{_at(path)} cannot be read as {kind!r}")


def _build_class(data: object, kind: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(data, kind, path)
    if issubclass(kind, Enum):
        return _build_enum(data, kind, path)
    if callable(getattr(kind, "model_validate", None)):
        try:
            return kind.model_validate(_plain(data))
        except ValueError as exc:  # pydantic's ValidationError is one
            raise KeyValueFormatError(f"{_at(path)} is no {kind.__name__}: {exc}") from exc
    if typing.is_typeddict(kind):
        return _build_typed_dict(data, kind, path)
    if kind in (list, tuple, set, frozenset):
        return kind(_plain(_expect(data, list, "an array", path)))
    if kind is dict:
        return _plain(_expect(data, dict, "an object", path))
    raise KeyValueFormatError(f"{_at(path)} cannot be read as {kind.__name__}; a dataclass can")


def _build_dataclass(data: object, kind: Any, path: str) -> Any:
    properties = _expect(data, dict, f"an object ({kind.__name__})", path)
    hints = _hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        name = json_names(kind)[field.name]
        if not field.init:
            continue
        if name in properties:
            values[field.name] = _build(properties[name], hints[field.name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise KeyValueFormatError(f"{_at(path)} has no {name!r}, which {kind.__name__} needs")
    try:
        return kind(**values)
    except (TypeError, ValueError) as exc:  # its own __post_init__
        raise KeyValueFormatError(f"{_at(path)} makes no {kind.__name__}: {exc}") from exc


def _build_typed_dict(data: object, kind: Any, path: str) -> dict[str, Any]:
    properties = _expect(data, dict, f"an object ({kind.__name__})", path)
    for name in sorted(kind.__required_keys__ - properties.keys()):
        raise KeyValueFormatError(f"{_at(path)} has no {name!r}, which {kind.__name__} needs")
    hints = _hints(kind)
    return {
        name: _build(item, hints[name], f"{path}.{name}") if name in hints else _plain(item)
        for name, item in properties.items()
    }


@functools.lru_cache(maxsize=1024)
def _hints(kind: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError as exc:
        raise KeyValueFormatError(f"the field types of {kind.__name__} cannot be found: {exc}") from exc


def _build_enum(data: object, kind: type[Enum], path: str) -> Enum:
    try:
        return kind(_plain(data))
    except ValueError:
        return _misfit(data, f"a value of {kind.__name__}", path)


def _build_generic(data: object, kind: Any, origin: Any, path: str) -> Any:
    arguments = get_args(kind)
    if origin is typing.Annotated:
        return _build(data, arguments[0], path)
    if origin in (typing.Required, typing.NotRequired):
        return _build(data, arguments[0], path)
    if origin is Literal:
        if any(data == allowed and type(data) is type(allowed) for allowed in arguments):
            return data
        return _misfit(data, f"one of {', '.join(map(repr, arguments))}", path)
    if origin in (Union, types.UnionType):
        return _build_union(data, arguments, path)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _build_pair(data, arguments, path)
    container = _CONTAINERS.get(origin)
    if container is not None:
        items = _expect(data, list, "an array", path)
        return container(_build(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(items))
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        key, value = arguments
        properties = _expect(data, dict, "an object", path)
        return {_build_key(name, key, path): _build(item, value, f"{path}.{name}") for name, item in properties.items()}
    raise KeyValueFormatError(f"{_at(path)} cannot be read as {kind!r}")


def _build_union(data: object, options: tuple[Any, ...], path: str) -> Any:
    if data is None and type(None) in options:
        return None
    reasons = []
    for option in options:
        try:
            return _build(data, option, path)
        except KeyValueFormatError as exc:
            reasons.append(str(exc))
    raise KeyValueFormatError("; ".join(dict.fromkeys(reasons)))


def _build_pair(data: object, kinds: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    items = _expect(data, list, "an array", path)
    if len(items) != len(kinds):
        raise KeyValueFormatError(f"{_at(path)} has {len(items)} items; {len(kinds)} were asked for")
    return tuple(
        _build(item, kind, f"{path}[{index}]") for index, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )


def _build_key(name: str, kind: Any, path: str) -> Any:
    kind = getattr(kind, "__supertype__", kind)
    if kind is int:
        if not re.fullmatch(r"-?\d+", name):
            return _misfit(name, "a whole number as key", path)
        return int(name)
    return _build(name, kind, path)


def _plain(data: object) -> Any:
    """The same without Decimals."""
    if isinstance(data, Decimal):
        return float(data)
    if isinstance(data, list):
        return [_plain(item) for item in data]
    if isinstance(data, dict):
        return {name: _plain(item) for name, item in data.items()}
    return data


# Scalars


def _read_bool(data: object, path: str) -> bool:
    return data if isinstance(data, bool) else _misfit(data, "true or false", path)


def _read_int(data: object, path: str) -> int:
    if isinstance(data, float):  # the minus zero of `_integer`; every other one is a Decimal here
        return 0
    return data if isinstance(data, int) and not isinstance(data, bool) else _misfit(data, "a whole number", path)


def _read_float(data: object, path: str) -> float:
    if isinstance(data, (int, float, Decimal)) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            pass
    return _misfit(data, "a number", path)


def _read_decimal(data: object, path: str) -> Decimal:
    if isinstance(data, (int, float, Decimal)) and not isinstance(data, bool):
        return Decimal(data)
    return _misfit(data, "a number", path)


def _read_str(data: object, path: str) -> str:
    return data if isinstance(data, str) else _misfit(data, "text", path)


def _parsed(parse: Callable[[str], Any], expected: str) -> Callable[[object, str], Any]:
    def read(data: object, path: str) -> Any:
        try:
            return parse(data) if isinstance(data, str) else _misfit(data, expected, path)
        except (ValueError, OverflowError):
            return _misfit(data, expected, path)

    return read


def _parse_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError(text) from exc


def _parse_timedelta(text: str) -> timedelta:
    found = _TIME_SPAN.fullmatch(text)
    if not found:
        raise ValueError(text)
    sign, days, hours, minutes, seconds, fraction = found.groups()
    length = timedelta(
        days=int(days or 0),
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(seconds),
        microseconds=int((fraction or "").ljust(6, "0")[:6]),  # .NET counts in tenths of a microsecond
    )
    return -length if sign else length


_SCALARS: Final[Mapping[Any, Callable[[object, str], Any]]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    Decimal: _read_decimal,
    str: _read_str,
    bytes: _parsed(_parse_base64, "base64 text"),
    datetime: _parsed(datetime.fromisoformat, "an ISO 8601 date and time"),
    date: _parsed(date.fromisoformat, "an ISO 8601 date"),
    time: _parsed(time.fromisoformat, "an ISO 8601 time"),
    timedelta: _parsed(_parse_timedelta, "a time span as [-][d.]hh:mm:ss[.fffffff]"),
    UUID: _parsed(UUID, "a UUID"),
}

_CONTAINERS: Final[Mapping[Any, Callable[[Any], Any]]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Set: frozenset,
}


def _expect(data: object, kind: type, expected: str, path: str) -> Any:
    return data if isinstance(data, kind) else _misfit(data, expected, path)


def _misfit(data: object, expected: str, path: str) -> Never:
    raise KeyValueFormatError(f"{_at(path)} is {_shown(_plain(data))}; {expected} was asked for")


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _at(path: str) -> str:
    return f"stored value{path}" if path else "the stored value"
