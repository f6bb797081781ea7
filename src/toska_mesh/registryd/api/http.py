"""A request and an answer as the endpoints see them, and what query parameters mean. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import orjson

from toska_mesh.registryd.durations import parse_duration
from toska_mesh.registryd.gojson import BodyError, decode

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
DEFAULT_WAIT_SECONDS = 300.0
MAX_WAIT_SECONDS = 600.0

_TRUE = ("", "1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_MAX_UINT64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class ApiError(Exception):
    """An answer that ends the request: status and the sentence Consul would say."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.reply = Reply(status, text.encode("utf-8", "replace"), TEXT, headers or {})


DONE = Reply()
"""What the agent's commands answer: 200 and nothing."""


def json_reply(value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value), JSON, headers or {})


@dataclass(slots=True)
class Call:
    """One request. `name` is what follows the endpoint's path, percent-decoded; `local_dc` is our datacenter."""

    method: str
    path: str
    query: str
    body: bytes
    local_dc: str
    name: str = ""
    _params: dict[str, list[str]] | None = None

    @property
    def params(self) -> dict[str, list[str]]:
        if self._params is None:
            self._params = {}
            if self.query:
                try:
                    pairs = parse_qsl(self.query, keep_blank_values=True, errors="replace", max_num_fields=200)
                except ValueError as exc:
                    raise ApiError(400, "too many query parameters") from exc
                for name, value in pairs:
                    self._params.setdefault(name, []).append(value)
        return self._params

    def param(self, name: str) -> str:
        """The first value; empty when the parameter is absent."""
        values = self.params.get(name)
        return values[0] if values else ""

    def has(self, name: str) -> bool:
        return name in self.params

    def check_scope(self) -> None:
        """Refuse what only a cluster or Consul Enterprise has."""
        if self.param("ns"):
            text = 'Bad request: Invalid query parameter: "ns" - Namespaces are a Consul Enterprise feature'
            raise ApiError(400, text)
        if (self.param("dc") or self.local_dc) != self.local_dc:
            raise ApiError(500, "No path to datacenter")

    def flag(self, name: str) -> bool:
        """Whether a switch such as `?passing` is on. Present without a value is on."""
        if not self.has(name):
            return False
        value = self.param(name)
        if value not in _TRUE + _FALSE:
            raise ApiError(400, f"Invalid value for ?{name}")
        return value in _TRUE

    def unsigned(self, name: str) -> int:
        """A 64-bit number as Go's ParseUint takes it, with its complaint."""
        value = self.param(name)
        if not (value.isascii() and value.isdigit()):
            raise ApiError(500, f'strconv.ParseUint: parsing "{value}": invalid syntax')
        number = int(value[:40])
        if number > _MAX_UINT64:
            raise ApiError(500, f'strconv.ParseUint: parsing "{value}": value out of range')
        return number

    def decoded(self) -> object:
        try:
            return decode(self.body)
        except BodyError as exc:
            raise request_error(exc) from exc

    def blocking(self) -> "Blocking":
        """The parameters of a blocking query, checked in Consul's order."""
        wait, index = DEFAULT_WAIT_SECONDS, 0
        if text := self.param("wait"):
            try:
                wait = parse_duration(text) / 1e9
            except ValueError as exc:
                raise ApiError(400, "Invalid wait time") from exc
        if text := self.param("index"):
            if not (text.isascii() and text.isdigit() and int(text[:40]) <= _MAX_UINT64):
                raise ApiError(400, "Invalid index")
            index = int(text)
        if self.has("stale") and self.has("consistent"):
            raise ApiError(400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
        self.check_scope()
        consistency = "stale" if self.has("stale") else "consistent" if self.has("consistent") else "leader"
        return Blocking(index, min(wait, MAX_WAIT_SECONDS) if wait > 0 else DEFAULT_WAIT_SECONDS, consistency)


@dataclass(frozen=True, slots=True)
class Blocking:
    """Wait until the resource's index exceeds `index` (0 = do not wait), at most `wait_seconds` and a little."""

    index: int
    wait_seconds: float
    consistency: str


def request_error(exc: BodyError) -> ApiError:
    return ApiError(400, f"Request decode failed: {exc}")
