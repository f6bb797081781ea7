"""JSON bodies read the way Consul's Go code reads them, with the same refusals. Pure.

Field names match whatever their case; what stands behind the first value is ignored; a wrong type or an unknown field
is refused with `encoding/json`'s sentence, so that a client developed against Consul sees what it expects.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from toska_mesh.registryd.durations import parse_duration

Reader = Callable[[object, str], Any]
"""Turns a JSON value into ours; the second argument is the path for the error text. `null` never gets here."""


_SHORTEST, _LONGEST = -(2**63), 2**63 - 1


class BodyError(ValueError):
    """The body is not what the endpoint takes. The text is what Consul would say."""


def decode(body: bytes) -> object:
    """The first JSON value of the body. Raises BodyError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _decode_leniently(body.decode("utf-8", "replace"))


def _decode_leniently(text: str) -> object:
    """For what orjson refuses: bytes behind the value, invalid UTF-8, huge numbers. And for the reason, if none."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise BodyError("EOF")
    try:
        return _without_lone_surrogates(_DECODER.raw_decode(text, start)[0])
    except json.JSONDecodeError as exc:
        raise BodyError(_go_syntax_error(text, exc)) from exc
    except RecursionError as exc:
        raise BodyError("exceeded max depth") from exc


def _without_lone_surrogates(value: object) -> object:
    """Go reads half a surrogate pair as U+FFFD; Python keeps it, and then cannot write it anywhere."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_lone_surrogates(item) for item in value]
        case dict():
            return {_without_lone_surrogates(name): _without_lone_surrogates(item) for name, item in value.items()}
        case _:
            return value


def _refuse_constant(name: str) -> object:
    raise BodyError(f"invalid character '{name.lstrip('-')[0]}' looking for beginning of value")


def _number(digits: str) -> int | float:
    """Beyond a length no field takes it, and reading it exactly takes quadratic time."""
    return int(digits) if len(digits) < 400 else float(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_number)


def _go_syntax_error(text: str, exc: json.JSONDecodeError) -> str:
    position, reason = exc.pos, exc.msg
    if reason.startswith("Unterminated string") or position >= len(text):
        return "unexpected EOF"
    if reason.startswith("Invalid control"):
        return f"invalid character {_quoted(text[position])} in string literal"
    if reason.startswith("Invalid \\u"):
        return "invalid character in \\u hexadecimal character escape"
    if reason.startswith("Invalid \\"):
        return f"invalid character {_quoted(text[position + 1 : position + 2])} in string escape code"
    # `json` points at the white space before the culprit in some versions.
    culprit = text[position:].lstrip(" \t\r\n")[:1]
    if not culprit:
        return "unexpected EOF"
    if reason.startswith("Expecting property name"):
        where = "looking for beginning of object key string"
    elif reason.startswith("Expecting ':'"):
        where = "after object key"
    elif reason.startswith("Expecting ','"):
        where = "after object key:value pair" if _is_in_object(text[:position]) else "after array element"
    elif reason.startswith("Illegal trailing comma"):
        culprit = text[position + 1 :].lstrip(" \t\r\n")[:1]
        where = "looking for beginning of object key string" if culprit == "}" else "looking for beginning of value"
    else:
        return _value_error(text[position:].lstrip(" \t\r\n"))
    return f"invalid character {_quoted(culprit)} {where}"


def _value_error(rest: str) -> str:
    for literal in ("true", "false", "null"):
        if rest[0] == literal[0]:
            good = next((i for i, letter in enumerate(literal) if rest[i : i + 1] != letter), len(literal) - 1)
            if good >= len(rest):
                return "unexpected EOF"
            return f"invalid character {_quoted(rest[good])} in literal {literal} (expecting {_quoted(literal[good])})"
    if rest[0] == "-":
        return f"invalid character {_quoted(rest[1])} in numeric literal" if len(rest) > 1 else "unexpected EOF"
    return f"invalid character {_quoted(rest[0])} looking for beginning of value"


def _is_in_object(prefix: str) -> bool:
    """Whether the innermost open bracket of a valid prefix is a brace."""
    open_brackets: list[str] = []
    is_string = is_escaped = False
    for letter in prefix:
        if is_escaped:
            is_escaped = False
        elif is_string:
            is_escaped, is_string = letter == "\\", letter != '"'
        elif letter == '"':
            is_string = True
        elif letter in "{[":
            open_brackets.append(letter)
        elif letter in "}]" and open_brackets:
            open_brackets.pop()
    return bool(open_brackets) and open_brackets[-1] == "{"


_ESCAPES = {"'": r"'\''", '"': "'\"'", "\n": r"'\n'", "\r": r"'\r'", "\t": r"'\t'"}


def _quoted(letter: str) -> str:
    return _ESCAPES.get(letter, f"'{letter}'")


def _kind(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case int():
            return "number"
        case float():
            return f"number {value:g}"
        case list():
            return "array"
        case _:
            return "object"


def _mismatch(value: object, path: str, go_type: str) -> BodyError:
    kind = _kind(value)
    if path:
        return BodyError(f"json: cannot unmarshal {kind} into Go struct field {path} of type {go_type}")
    return BodyError(f"json: cannot unmarshal {kind} into Go value of type {go_type}")


def text(value: object, path: str) -> str:
    if isinstance(value, str):
        return value
    raise _mismatch(value, path, "string")


def integer(value: object, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if -(2**63) <= value < 2**63:
            return value
        raise BodyError(f"json: cannot unmarshal number {value} into Go struct field {path} of type int")
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2**63:  # orjson reads large integers so
        value = int(value)
        raise BodyError(f"json: cannot unmarshal number {value} into Go struct field {path} of type int")
    raise _mismatch(value, path, "int")


def boolean(value: object, path: str) -> bool:
    if isinstance(value, bool):
        return value
    raise _mismatch(value, path, "bool")


def texts(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _mismatch(value, path, "[]string")
    return tuple("" if item is None else text(item, path) for item in value)


def text_map(value: object, path: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "map[string]string")
    return {str(key): "" if item is None else text(item, path) for key, item in value.items()}


def duration(value: object, path: str) -> int:
    """Nanoseconds of a Go duration, or of a number that already is one."""
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as exc:
            raise BodyError(str(exc)) from exc
    return nanoseconds(value) or 0


def nanoseconds(value: object) -> int | None:
    """A number that stands for a duration, within 64 bits; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(min(max(value, _SHORTEST), _LONGEST))


def anything(value: object, path: str) -> object:
    return value


@dataclass(frozen=True, slots=True)
class Struct:
    """The shape of a JSON object. `fields` maps a lower-case name to (our name, reader); `go_type` is for errors."""

    go_type: str
    fields: Mapping[str, tuple[str, Reader]]
    refuses_unknown: bool = True
    prefix: str = field(default="")

    def read(self, value: object, path: str = "") -> dict[str, Any]:
        """Our names to values; what is absent or null is left out. Raises BodyError."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _mismatch(value, path, self.go_type)
        found: dict[str, Any] = {}
        for name, item in value.items():
            known = self.fields.get(name.lower())
            if known is None:
                if self.refuses_unknown:
                    raise BodyError(f'json: unknown field "{name}"')
            elif item is not None:
                found[known[0]] = known[1](item, f"{self.prefix}.{name}")
        return found

    def read_list(self, value: object, path: str) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise _mismatch(value, path, f"{self.go_type}s")
        return [self.read(item, path) for item in value]

    def read_map(self, value: object, path: str) -> dict[str, dict[str, Any]]:
        if not isinstance(value, dict):
            raise _mismatch(value, path, f"map[string]{self.go_type}")
        return {str(name): self.read(item, path) for name, item in value.items()}


def named(**readers: Reader) -> dict[str, tuple[str, Reader]]:
    """Fields whose wire name is ours without the underscores, or ours itself (`service_id`: ServiceID, service_id)."""
    fields: dict[str, tuple[str, Reader]] = {}
    for name, reader in readers.items():
        fields[name] = fields[name.replace("_", "")] = (name, reader)
    return fields
