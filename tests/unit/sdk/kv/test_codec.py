"""The JSON text, character by character as .NET's System.Text.Json writes it."""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.errors import KeyValueFormatError
from toska_mesh.sdk.kv.codec import camel_case, encode
from toska_mesh.sdk.kv.typed import decode


class Level(IntEnum):
    HIGH = 2


class Colour(StrEnum):
    RED = "red"


class Odd(Enum):
    PAIR = (1, 2)


@dataclass
class Address:
    street_name: str
    zip: str = "1000"


@dataclass
class Person:
    first_name: str
    address: Address
    user_id: int = field(default=1, metadata={"json": "ID"})
    tags: tuple[str, ...] = ()


ISTANBUL = timezone(timedelta(hours=3))
OLD_AMSTERDAM = timezone(timedelta(minutes=19, seconds=32))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "null", id="none"),
        pytest.param(True, "true", id="true"),
        pytest.param(-7, "-7", id="integer"),
        pytest.param(2**63, "9223372036854775808", id="larger than 64 bits"),
        pytest.param(1.0, "1", id="whole float"),
        pytest.param(-0.0, "-0", id="negative zero"),
        pytest.param(0.1, "0.1", id="tenth"),
        pytest.param(120.5, "120.5", id="fraction"),
        pytest.param(0.0001, "0.0001", id="small"),
        pytest.param(0.00001, "1E-05", id="smaller"),
        pytest.param(1.5e-7, "1.5E-07", id="small with digits"),
        pytest.param(100000000000000.0, "100000000000000", id="fifteen digits"),
        pytest.param(1e15, "1E+15", id="sixteen"),
        pytest.param(1234567890123456.0, "1234567890123456", id="sixteen that all count"),
        pytest.param(1.2345678901234568e17, "1.2345678901234568E+17", id="large with digits"),
        pytest.param(1.7976931348623157e308, "1.7976931348623157E+308", id="largest"),
        pytest.param(5e-324, "5E-324", id="smallest"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal keeps its zeros"),
        pytest.param(Decimal("1E+3"), "1000", id="decimal without exponent"),
        pytest.param("a b/c", '"a b/c"', id="plain text"),
        pytest.param('"', r'"\u0022"', id="quote"),
        pytest.param("\\", r'"\\"', id="backslash"),
        pytest.param("\b\t\n\f\r", r'"\b\t\n\f\r"', id="short escapes"),
        pytest.param("\x00\x0b\x1f\x7f", r'"\u0000\u000B\u001F\u007F"', id="other controls"),
        pytest.param("<>&'+`", r'"\u003C\u003E\u0026\u0027\u002B\u0060"', id="what html minds"),
        pytest.param("!#$%()*,-.:;=?@[]^_{|}~", '"!#$%()*,-.:;=?@[]^_{|}~"', id="what it does not"),
        pytest.param("é\xa0\u2028€", r'"\u00E9\u00A0\u2028\u20AC"', id="outside ascii"),
        pytest.param("😀", r'"\uD83D\uDE00"', id="outside the basic plane"),
        pytest.param([1, (2, [3])], "[1,[2,[3]]]", id="arrays"),
        pytest.param({"a_b": 1, "C d": {"é": []}}, r'{"a_b":1,"C d":{"\u00E9":[]}}', id="dict keys stay"),
        pytest.param({1: 2, UUID(int=5): 3}, '{"1":2,"00000000-0000-0000-0000-000000000005":3}', id="other keys"),
        pytest.param(OrderedDict(b=1, a=2), '{"b":1,"a":2}', id="order stays"),
        pytest.param({5}, "[5]", id="set"),
        pytest.param(
            Person("Ada", Address("Main")),
            '{"firstName":"Ada","address":{"streetName":"Main","zip":"1000"},"ID":1,"tags":[]}',
            id="dataclass",
        ),
        pytest.param([Level.HIGH, Colour.RED], '[2,"red"]', id="enums"),
        pytest.param(UUID("12345678-1234-5678-1234-56781234ABCD"), '"12345678-1234-5678-1234-56781234abcd"', id="uuid"),
        pytest.param(b"\xfb\xff\x00", '"+/8A"', id="bytes"),
        pytest.param(
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC).replace(tzinfo=None), '"2024-01-02T03:04:05"', id="naive datetime"
        ),
        pytest.param(datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), '"2024-01-02T03:04:05Z"', id="utc"),
        pytest.param(
            datetime(2024, 1, 2, 3, 4, 5, 120, tzinfo=ISTANBUL), '"2024-01-02T03:04:05.00012+03:00"', id="offset"
        ),
        pytest.param(
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=OLD_AMSTERDAM), '"2024-01-02T02:44:33Z"', id="offset with seconds"
        ),
        pytest.param(date(2024, 1, 2), '"2024-01-02"', id="date"),
        pytest.param(time(3, 4, 5), '"03:04:05"', id="time"),
        pytest.param(time(3, 4, 5, 7), '"03:04:05.0000070"', id="time with fraction"),
        pytest.param(timedelta(hours=30, microseconds=5), '"1.06:00:00.0000050"', id="time span"),
        pytest.param(-timedelta(minutes=1), '"-00:01:00"', id="negative time span"),
    ],
)
def test_the_text_is_that_of_dotnet(value: object, text: str) -> None:
    assert encode(value) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param({"a": [1.0, float("nan")]}, r"value\.a\[1\] is nan", id="nan"),
        pytest.param(float("-inf"), "the value is -inf", id="infinity"),
        pytest.param(Decimal("NaN"), "NaN, which JSON cannot say", id="decimal nan"),
        pytest.param({"a": "x\ud800"}, r"value\.a has the lone surrogate U\+D800", id="lone surrogate"),
        pytest.param({"\udfff": 1}, r"lone surrogate U\+DFFF", id="lone surrogate in a key"),
        pytest.param([object()], r"value\[0\] is a object", id="no form"),
        pytest.param(Person, "is a type", id="a class"),
        pytest.param(Odd.PAIR, "Odd.PAIR", id="enum of tuples"),
        pytest.param({(1, 2): 3}, r"the key \(1, 2\)", id="tuple as key"),
        pytest.param({True: 3}, "the key True", id="bool as key"),
        pytest.param(time(1, tzinfo=UTC), "time zone", id="time with zone"),
        pytest.param(10**5000, "no JSON form", id="endless integer"),
    ],
)
def test_what_has_no_json_form_is_named(value: object, said: str) -> None:
    with pytest.raises(KeyValueFormatError, match=said):
        encode(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(KeyValueFormatError, match="contains itself"):
        encode(value)


def test_two_fields_of_one_name_are_refused() -> None:
    @dataclass
    class Twins:
        a_b: int = 1
        aB: int = 2

    with pytest.raises(KeyValueFormatError, match="both called 'aB'"):
        encode(Twins())


@pytest.mark.parametrize(
    ("name", "camel"),
    [
        ("created_at", "createdAt"),
        ("a", "a"),
        ("line_2", "line2"),
        ("_x_y", "_xY"),
        ("aB", "aB"),
        ("X_y", "xY"),
        ("_", "_"),
    ],
)
def test_names_are_camel_case(name: str, camel: str) -> None:
    assert camel_case(name) == camel


def test_a_model_that_dumps_itself_says_how_it_is_written() -> None:
    class Model:
        def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, object]:
            return {"createdAt": mode, "byAlias": by_alias}

    assert encode([Model()]) == '[{"createdAt":"json","byAlias":true}]'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_is_read_back_and_its_text_is_ascii(value: object) -> None:
    text = encode(value)
    assert text.isascii()
    assert text.isprintable()
    assert decode(text) == value
    assert json.loads(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_to_the_last_bit(value: float) -> None:
    assert decode(encode(value), float).hex() == value.hex()
