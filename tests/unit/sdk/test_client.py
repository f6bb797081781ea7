"""What a client makes of a call before it is sent: path, headers, limits, and whether it may be repeated."""

import inspect
from typing import Any

import aiohttp
import pytest
from tests.unit.router.build import instance, snapshot

from toska_mesh.guard.patience import Patience
from toska_mesh.model import ServiceName
from toska_mesh.router import RouteTable, Service
from toska_mesh.sdk import client as clients
from toska_mesh.sdk.client import CallArguments, CallOptions, Client, WireOptions
from toska_mesh.sdk.transport import Request


class Sent:
    """One request as the call was given it, with its limits for a service whose metadata is this."""

    def __init__(self, request: Request, key: str | None, of: Any, own_seconds: float) -> None:
        self.request = request
        self.key = key
        self._of = of
        self.own_seconds = own_seconds

    def patience(self, **metadata: str) -> Patience:
        found: Patience = self._of(service(**metadata))
        return found


class RecordedCall:
    """Stands where `calls.Call` stands, and keeps what it got."""

    last: Sent

    def __init__(self, sender: Any, name: str, request: Request, key: str | None) -> None:
        self._given = (request, key)

    async def run(self, of: Any, own_seconds: float) -> Any:
        RecordedCall.last = Sent(*self._given, of, own_seconds)
        return RefusedAnswer()


class RefusedAnswer:
    """An answer that says 404."""

    def raise_for_status(self) -> None:
        raise LookupError("404")


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "Call", RecordedCall)


def make(**options: Any) -> Client:
    defaults = options.pop("calls", CallOptions())
    return Client(None, ServiceName("orders"), defaults, **options)  # type: ignore[arg-type]  # nothing is sent


def service(**metadata: str) -> Service:
    found = RouteTable.build(snapshot(instance("a", **metadata))).service("orders")
    assert found is not None
    return found


async def ask(client: Client, method: str, path: str = "/items/1", **options: Any) -> Sent:
    await client.request(method, path, **options)
    return RecordedCall.last


@pytest.mark.parametrize(("path", "expected"), [("/items/1", "/items/1"), ("items/1", "/items/1"), ("", "/")])
async def test_paths_are_the_service_s(path: str, expected: str) -> None:
    assert (await ask(make(), "GET", path)).request.path == expected


def test_a_url_is_no_path() -> None:
    with pytest.raises(ValueError, match="is a URL; a call names a path"):
        make().get("http://orders/items/1")


@pytest.mark.parametrize(
    ("method", "said", "expected"),
    [
        ("GET", None, True),
        ("get", None, True),
        ("PUT", None, True),
        ("DELETE", None, True),
        ("POST", None, False),
        ("PATCH", None, False),
        ("POST", True, True),
        ("GET", False, False),
    ],
)
async def test_whether_it_may_be_repeated(method: str, said: bool | None, expected: bool) -> None:
    assert (await ask(make(), method, idempotent=said)).request.is_idempotent is expected


async def test_a_call_s_headers_come_before_the_client_s() -> None:
    client = make(headers={"X-A": "client", "X-B": "client"})
    sent = await ask(client, "GET", headers={"X-B": "call"})
    assert sent.request.headers == {"X-A": "client", "X-B": "call"}


async def test_a_body_says_its_kind_and_length_unless_the_caller_does() -> None:
    sent = await ask(make(), "POST", json=[1])
    assert sent.request.headers == {"Content-Type": "application/json", "Content-Length": "3"}
    said = await ask(make(), "POST", data=b"{}", headers={"content-type": "application/json"})
    assert said.request.headers == {"content-type": "application/json", "Content-Length": "2"}


async def test_redirects_are_not_followed_unless_asked_for() -> None:
    assert (await ask(make(), "GET")).request.options == {"allow_redirects": False}
    sent = await ask(make(), "GET", allow_redirects=True, params={"a": "1"})
    assert sent.request.options == {"allow_redirects": True, "params": {"a": "1"}}


async def test_keys_and_checks_have_defaults_that_a_call_may_change() -> None:
    client = make(key="user-1", raise_for_status=True)
    assert (await ask(client, "GET", raise_for_status=False)).key == "user-1"
    assert (await ask(client, "GET", key="user-2", raise_for_status=False)).key == "user-2"
    with pytest.raises(LookupError):
        await client.get("/")


async def test_limits_of_the_call_before_those_of_the_client() -> None:
    client = make(calls=CallOptions(timeout_seconds=10.0, try_timeout_seconds=4.0, retries=2))
    sent = await ask(client, "GET")
    found = sent.patience()
    assert (found.response_timeout, found.total_timeout, found.retry.count) == (4.0, 10.0, 2)
    sent = await ask(client, "GET", timeout_seconds=1.0, retries=0)
    found = sent.patience()
    assert (found.response_timeout, found.total_timeout, found.retry.count) == (1.0, 1.0, 0)
    assert sent.own_seconds == 1.0
    sent = await ask(client, "GET", try_timeout_seconds=8.0)
    assert (sent.patience().response_timeout, sent.own_seconds) == (8.0, 10.0)
    sent = await ask(client, "GET", timeout_seconds=None)
    assert sent.own_seconds == float("inf")
    assert sent.patience().response_timeout == 4.0


async def test_metadata_tightens_what_the_caller_set_and_loosens_nothing() -> None:
    sent = await ask(make(calls=CallOptions(timeout_seconds=10.0)), "GET")
    found = sent.patience(**{"toska-timeout-ms": "500", "toska-retries": "1"})
    assert (found.response_timeout, found.total_timeout, found.retry.count) == (0.5, 0.5, 1)
    found = sent.patience(**{"toska-timeout-ms": "60000", "toska-retries": "9"})
    assert (found.total_timeout, found.retry.count) == (10.0, 3)
    assert {note.key for note in found.ignored} == {"toska-timeout-ms", "toska-retries"}


async def test_what_holds_is_worked_out_once_per_service() -> None:
    sent = await ask(make(), "GET", timeout_seconds=5.0)
    of = sent._of
    same = service()
    assert of(same) is of(same)


@pytest.mark.parametrize("options", [{"timeout_seconds": 0}, {"try_timeout_seconds": -1.0}, {"retries": -1}])
def test_limits_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} "):
        CallOptions(**options)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("timeout", "timeout is no option of a call; did you mean timeout_seconds?"),
        ("timout_seconds", "did you mean timeout_seconds?"),
        ("header", "did you mean headers?"),
        ("retry", "did you mean retries?"),
        ("parms", "did you mean params?"),
        ("ssl", r"`Mesh\(tls=...\)` says whom to believe"),
        ("proxy", "instances are asked directly"),
        ("xyzzy", "Client.request says which there are"),
    ],
)
@pytest.mark.parametrize("method", ["get", "post", "request"])
def test_what_is_no_option_is_refused_before_anything_is_sent(method: str, said: str, words: str) -> None:
    path = ("GET", "/") if method == "request" else ("/",)
    with pytest.raises(TypeError, match=words):
        getattr(make(), method)(*path, **{said: 0.5})


def test_what_is_typed_is_what_is_taken() -> None:
    taken = {
        name
        for name, parameter in inspect.signature(Client.request).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(WireOptions.__annotations__) <= set(CallArguments.__annotations__)
    assert taken == set(CallArguments.__annotations__) - set(WireOptions.__annotations__)
    known_to_aiohttp = set(inspect.signature(aiohttp.ClientSession._request).parameters)
    assert set(WireOptions.__annotations__) <= known_to_aiohttp


@pytest.mark.parametrize("method", ["get", "head", "options", "post", "put", "patch", "delete"])
def test_every_method_takes_what_is_typed(method: str) -> None:
    made = getattr(make(), method)
    assert inspect.get_annotations(made)["options"].__args__ == (CallArguments,)
