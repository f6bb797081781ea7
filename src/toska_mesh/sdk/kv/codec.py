"""Values as JSON text, written as .NET's System.Text.Json writes them for the C# runtime's key-value abstraction.

Services in both languages share a store, so the text is made the same, character by character: camelCase names for the
fields of an object, no white space, everything outside ASCII and all that HTML could stumble over as `\\uXXXX`. Pure
ASCII is also what ToskaStore needs: it loses other text when it restarts. Reading is in `typed.py`.

What is written for what: a dataclass is an object, its fields in camelCase (`created_at` becomes `createdAt`, as C#
names its property `CreatedAt`; `field(metadata={"json": "name"})` sets a name); a dict is data, so its keys stay as
they are, as .NET keeps those of a Dictionary; an enum is its value; `datetime`, `date`, `time`, `timedelta`, `UUID`,
`bytes` and `Decimal` look as DateTime, DateOnly, TimeOnly, TimeSpan, Guid, byte[] and decimal do. A pydantic model says
by itself how it is named (`model_dump`): give it the alias generator `to_camel` to share it with C#.
"""

import base64
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Set
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from toska_mesh.errors import KeyValueFormatError

JSON_NAME: Final = "json"
"""Key in a dataclass field's metadata that sets the name of the property."""

# JavaScriptEncoder.Default passes the printable ASCII characters, less the ones that HTML or JSON give a meaning.
_ESCAPED: Final = re.compile(r"[^ !#-%(-*,-;=?-\[\]-_a-~]")
_SHORT: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", "\\": "\\\\"}

_DOUBLE_DIGITS: Final = 15
"""A .NET double with more digits before the point than this, and than it has digits at all, is written as 1E+15."""


def encode(value: object) -> str:
    """The JSON text of a value. Raises KeyValueFormatError naming the place that has no JSON form."""
    parts: list[str] = []
    try:
        _write(value, "", parts.append)
    except RecursionError:
        raise KeyValueFormatError("the value contains itself, or is nested too deep for JSON") from None
    except (ValueError, OverflowError) as exc:  # an integer too long to be printed, a date at the end of the calendar
        raise KeyValueFormatError(f"the value has no JSON form: {exc}") from exc
    return "".join(parts)


def _write(value: object, path: str, put: Callable[[str], None]) -> None:
    # In order of how often they come; bool is an int, datetime a date, and an enum may be a str or an int.
    if isinstance(value, Enum):
        _write_enum(value, path, put)
    elif isinstance(value, str):
        put(_string(value, path))
    elif value is None:
        put("null")
    elif isinstance(value, bool):
        put("true" if value else "false")
    elif isinstance(value, int):
        put(int.__repr__(value))
    elif isinstance(value, float):
        put(_double(value, path))
    elif isinstance(value, Mapping):
        _write_object(((_key(key, path), item) for key, item in value.items()), path, put)
    elif isinstance(value, (list, tuple, Set)):
        _write_array(value, path, put)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _write_object(((name, getattr(value, field)) for field, name in json_names(type(value)).items()), path, put)
    elif (scalar := _scalar(value, path)) is not None:
        put(scalar)
    elif callable(dump := getattr(value, "model_dump", None)):
        _write(dump(mode="json", by_alias=True), path, put)
    else:
        raise KeyValueFormatError(f"{_at(path)} is a {type(value).__name__}, which has no JSON form")


def _write_enum(value: Enum, path: str, put: Callable[[str], None]) -> None:
    if not isinstance(value.value, (int, str)):
        raise KeyValueFormatError(f"{_at(path)} is {value}; an enum whose values are numbers or text has a JSON form")
    _write(value.value, path, put)


def _write_object(items: Any, path: str, put: Callable[[str], None]) -> None:
    put("{")
    separator = ""
    for name, item in items:
        put(f"{separator}{_string(name, path)}:")
        _write(item, f"{path}.{name}", put)
        separator = ","
    put("}")


def _write_array(items: Any, path: str, put: Callable[[str], None]) -> None:
    put("[")
    for index, item in enumerate(items):
        if index:
            put(",")
        _write(item, f"{path}[{index}]", put)
    put("]")


def _key(key: object, path: str) -> str:
    if isinstance(key, str) and not isinstance(key, Enum):
        return key
    if isinstance(key, int) and not isinstance(key, (bool, Enum)):
        return str(key)
    if isinstance(key, UUID):
        return str(key)
    raise KeyValueFormatError(f"{_at(path)} has the key {key!r}; keys are text, whole numbers or UUIDs")


def _string(text: str, path: str) -> str:
    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        code = ord(character)
        if 0xD800 <= code <= 0xDFFF:
            # .NET would store a replacement character in its place, and nobody would know that text was lost.
            raise KeyValueFormatError(f"{_at(path)} has the lone surrogate U+{code:04X}, which is no character")
        if code > 0xFFFF:
            high, low = divmod(code - 0x10000, 0x400)
            return f"\\u{0xD800 + high:04X}\\u{0xDC00 + low:04X}"
        return _SHORT.get(character) or f"\\u{code:04X}"

    return f'"{_ESCAPED.sub(escaped, text)}"'


def _double(value: float, path: str) -> str:
    """The shortest digits that read back as the same number, laid out as .NET does: 1, 0.1, 1E+16, 1E-05."""
    if not math.isfinite(value):
        raise KeyValueFormatError(f"{_at(path)} is {value}, which JSON cannot say; use None or text for it")
    shortest = Decimal(float.__repr__(value))
    text = "".join(map(str, shortest.as_tuple().digits)).rstrip("0")
    shown_sign = "-" if shortest.is_signed() else ""
    if not text:
        return f"{shown_sign}0"
    scale = shortest.adjusted() + 1  # the value is 0.<text> * 10 ** scale
    if scale > max(len(text), _DOUBLE_DIGITS) or scale < -3:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        return f"{shown_sign}{text[0]}{fraction}E{scale - 1:+03d}"
    if scale <= 0:
        return f"{shown_sign}0.{'0' * -scale}{text}"
    whole, fraction = text[:scale].ljust(scale, "0"), text[scale:]
    return f"{shown_sign}{whole}.{fraction}" if fraction else f"{shown_sign}{whole}"


def _scalar(value: object, path: str) -> str | None:
    """Types that are one JSON token; None for any other. These texts are not escaped: .NET leaves their `+` alone."""
    match value:
        case datetime():
            return f'"{_datetime(value)}"'
        case date():
            return f'"{value.isoformat()}"'
        case time():
            return f'"{_time(value, path)}"'
        case timedelta():
            return f'"{_timedelta(value)}"'
        case UUID():
            return f'"{value}"'
        case bytes() | bytearray() | memoryview():
            return f'"{base64.b64encode(value).decode()}"'
        case Decimal():
            if not value.is_finite():
                raise KeyValueFormatError(f"{_at(path)} is {value}, which JSON cannot say; use None or text for it")
            return f"{value:f}"
        case _:
            return None


def _datetime(value: datetime) -> str:
    offset = value.utcoffset()
    if offset is not None and (not offset or offset % timedelta(minutes=1)):
        # UTC is `Z`; .NET knows no offset with seconds, as places had before they took to whole hours.
        return f"{_datetime(value.astimezone(UTC).replace(tzinfo=None))}Z"
    shown = value.isoformat(timespec="seconds")
    if not value.microsecond:
        return shown
    return f"{shown[:19]}.{value.microsecond:06d}".rstrip("0") + shown[19:]


def _time(value: time, path: str) -> str:
    if value.tzinfo is not None:
        raise KeyValueFormatError(f"{_at(path)} is a time with a time zone; .NET's TimeOnly has none: use a datetime")
    shown = value.isoformat(timespec="seconds")
    return f"{shown}.{value.microsecond * 10:07d}" if value.microsecond else shown


def _timedelta(value: timedelta) -> str:
    """TimeSpan's constant format: [-][d.]hh:mm:ss[.fffffff]."""
    sign, length = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(length.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days = f"{length.days}." if length.days else ""
    fraction = f".{length.microseconds * 10:07d}" if length.microseconds else ""
    return f"{sign}{days}{hours:02d}:{minutes:02d}:{seconds:02d}{fraction}"


@functools.lru_cache(maxsize=1024)
def json_names(kind: type) -> Mapping[str, str]:
    """Field name to property name of a dataclass. Raises KeyValueFormatError for two fields of one name."""
    names: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        name = field.metadata.get(JSON_NAME) or camel_case(field.name)
        if name in names.values():
            raise KeyValueFormatError(f"two fields of {kind.__name__} are both called {name!r} in JSON")
        names[field.name] = name
    return names


def camel_case(name: str) -> str:
    """`created_at` as `createdAt`; leading and trailing underscores stay."""
    core = name.strip("_")
    if not core:
        return name
    lead, tail = name[: name.index(core)], name[name.index(core) + len(core) :]
    first, *rest = core.split("_")
    return lead + first[:1].lower() + first[1:] + "".join(word[:1].upper() + word[1:] for word in rest) + tail


def _at(path: str) -> str:
    return f"value{path}" if path else "the value"
