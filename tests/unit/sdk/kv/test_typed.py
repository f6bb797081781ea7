"""Stored text read as the type that the caller names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, NewType, NotRequired, TypedDict
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.errors import KeyValueFormatError
from toska_mesh.sdk.kv.codec import encode
from toska_mesh.sdk.kv.typed import decode

UserId = NewType("UserId", str)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Colour(Enum):
    RED = "red"


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@dataclass(frozen=True)
class Item:
    name: str
    price: Decimal
    weight_kg: float = 1.0


@dataclass(frozen=True)
class Order:
    order_id: UUID
    user_id: UserId
    created_at: datetime
    items: tuple[Item, ...]
    level: Level = Level.LOW
    note: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    total: int = field(default=0, init=False)


@dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError("number should be positive")


ORDER = Order(
    UUID(int=7),
    UserId("ada"),
    datetime(2024, 1, 2, tzinfo=UTC),
    (Item("tea", Decimal("1.10")), Item("cup", Decimal(3), 0.25)),
    Level.HIGH,
    extra={"a": [1, 2.5]},
)


def test_a_dataclass_comes_back_as_it_went() -> None:
    assert decode(encode(ORDER), Order) == ORDER
    assert decode(encode([ORDER]), list[Order]) == [ORDER]


def test_what_a_dataclass_does_not_know_is_passed_over_and_defaults_fill_the_rest() -> None:
    assert decode('{"name":"tea","price":1.10,"colour":"green"}', Item) == Item("tea", Decimal("1.10"))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        pytest.param('{ "a" : [1, 2.50, "\\u00e9é"] }\n', Any, {"a": [1, 2.5, "éé"]}, id="any json"),
        pytest.param("3", float, 3.0, id="integer as float"),
        pytest.param("-0", int, 0, id="minus zero"),
        pytest.param("1E+16", float, 1e16, id="exponent"),
        pytest.param("1.10", Decimal, Decimal("1.10"), id="decimal"),
        pytest.param("0.1234567890123456789", Decimal, Decimal("0.1234567890123456789"), id="long decimal"),
        pytest.param("2", Level, Level.HIGH, id="enum"),
        pytest.param('"red"', Colour, Colour.RED, id="text enum"),
        pytest.param('"+/8A"', bytes, b"\xfb\xff\x00", id="bytes"),
        pytest.param(r'"\u002B/8A"', bytes, b"\xfb\xff\x00", id="bytes with an escape"),
        pytest.param(
            '"2019-07-26T16:59:57.1234567-05:00"',
            datetime,
            datetime(2019, 7, 26, 16, 59, 57, 123456, tzinfo=timezone(-timedelta(hours=5))),
            id="datetime of .NET",
        ),
        pytest.param('"2024-01-02"', date, date(2024, 1, 2), id="date"),
        pytest.param('"03:04:05.0000070"', time, time(3, 4, 5, 7), id="time"),
        pytest.param('"-1.06:00:00.0000050"', timedelta, -timedelta(hours=30, microseconds=5), id="time span"),
        pytest.param('{"1":[2]}', dict[int, list[int]], {1: [2]}, id="dict of integers"),
        pytest.param('{"red":1.5}', Mapping[Colour, float], {Colour.RED: 1.5}, id="mapping of enums"),
        pytest.param("[1,2,2]", set[int], {1, 2}, id="set"),
        pytest.param("[1,2]", Sequence[int], [1, 2], id="sequence"),
        pytest.param('[1,"a"]', tuple[int, str], (1, "a"), id="pair"),
        pytest.param("[1.5]", list, [1.5], id="bare list"),
        pytest.param('{"a":1.5}', dict, {"a": 1.5}, id="bare dict"),
        pytest.param("null", int | None, None, id="optional"),
        pytest.param('"7"', int | str, "7", id="union"),
        pytest.param('"b"', Literal["a", "b"], "b", id="literal"),
        pytest.param('"x"', UserId, "x", id="new type"),
        pytest.param('{"title":"x","more":1.5}', Movie, {"title": "x", "more": 1.5}, id="typed dict"),
    ],
)
def test_a_value_is_built_as_the_type(text: str, kind: Any, value: object) -> None:
    built = decode(text, kind)
    assert built == value
    assert type(built) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        pytest.param("1", str, "the stored value is 1; text was asked for", id="number for text"),
        pytest.param('"1"', int, "'1'; a whole number", id="text for number"),
        pytest.param("true", int, "True; a whole number", id="bool for number"),
        pytest.param("1.0", int, "1.0; a whole number", id="float for integer"),
        pytest.param("1", bool, "true or false", id="number for bool"),
        pytest.param('"yesterday"', datetime, "ISO 8601", id="no date"),
        pytest.param('"1:2"', timedelta, "time span", id="no time span"),
        pytest.param('"*"', bytes, "base64", id="no base64"),
        pytest.param("7", Level, "a value of Level", id="no such enum"),
        pytest.param(
            '[{"name":"tea"}]', list[Item], r"stored value\[0\] has no 'price', which Item needs", id="missing"
        ),
        pytest.param('{"name":"tea","price":"a"}', Item, r"stored value\.price is 'a'; a number", id="path"),
        pytest.param("[]", Item, r"an object \(Item\)", id="array for object"),
        pytest.param('{"number":0}', Positive, "makes no Positive: number should be positive", id="own check"),
        pytest.param("[1]", tuple[int, int], "has 1 items; 2", id="length"),
        pytest.param('"c"', Literal["a", "b"], "one of 'a', 'b'", id="literal"),
        pytest.param("[]", int | str, "a whole number was asked for.*text was asked for", id="union"),
        pytest.param("1", complex, "cannot be read as complex", id="a type without a reading"),
        pytest.param("{}", Movie, "no 'title', which Movie needs", id="typed dict"),
        pytest.param('{"a":1}', dict[int, int], "whole number as key", id="key"),
    ],
)
def test_what_does_not_fit_says_where_and_what_was_asked_for(text: str, kind: Any, said: str) -> None:
    with pytest.raises(KeyValueFormatError, match=said):
        decode(text, kind)


@pytest.mark.parametrize("text", ["", "{", "hello", "NaN", "[Infinity]", "1 2", "[" * 100_000, "9" * 5000])
def test_what_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(KeyValueFormatError):
        decode(text)


def test_a_model_that_validates_reads_itself() -> None:
    class Model:
        @classmethod
        def model_validate(cls, data: dict[str, float]) -> float:
            if data["a"] < 0:
                raise ValueError("a is negative")
            return data["a"]

    assert decode('{"a":1.5}', Model) == 1.5
    with pytest.raises(KeyValueFormatError, match="no Model: a is negative"):
        decode('{"a":-1.5}', Model)


def test_a_pydantic_model_comes_back_as_it_went() -> None:
    from pydantic import BaseModel, ConfigDict
    from pydantic.alias_generators import to_camel

    class Todo(BaseModel):
        model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
        created_at: datetime
        tags: list[str] = []

    todo = Todo(created_at=datetime(2024, 1, 2, tzinfo=UTC), tags=["ö"])
    assert encode(todo) == r'{"createdAt":"2024-01-02T00:00:00Z","tags":["\u00F6"]}'
    assert decode(encode(todo), Todo) == todo
    assert decode(encode([todo]), list[Todo]) == [todo]


@given(st.datetimes(timezones=st.just(UTC)) | st.datetimes())
def test_every_datetime_is_read_back(value: datetime) -> None:
    assert decode(encode(value), datetime) == value


@given(st.timedeltas())
def test_every_time_span_is_read_back(value: timedelta) -> None:
    assert decode(encode(value), timedelta) == value


@given(st.binary())
def test_all_bytes_are_read_back(value: bytes) -> None:
    assert decode(encode(value), bytes) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_decimal_is_read_back(value: Decimal) -> None:
    assert decode(encode(value), Decimal) == value
