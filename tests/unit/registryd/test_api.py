"""The API as a function from request to answer: tokens, limits of the embedded registry, hostile input."""

import uuid
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.registryd.harness import Disk

from toska_mesh.registryd.api import Api
from toska_mesh.registryd.api.endpoint import Backend
from toska_mesh.registryd.api.http import Reply
from toska_mesh.registryd.api.reads import Reads
from toska_mesh.registryd.node import Node
from toska_mesh.registryd.render import Pieces
from toska_mesh.registryd.watches import Watches


async def durable() -> None:
    """The disk of these tests is always done."""


def make_api(token: str = "") -> Api:
    state = Disk().state()
    node = Node("00000000-0000-0000-0000-000000000001", "here", "127.0.0.1", 8500)
    watches = Watches()
    pieces = Pieces(state, node, orjson.dumps(node.as_listed(1)))
    backend = Backend(state, node, 1, Reads(watches, Random(1)), pieces, watches, lambda: 0.0, durable)
    return Api(backend, token, uuid.uuid4)


async def ask(api: Api, method: str, target: str, body: bytes = b"", token: str | None = None) -> Reply:
    return await api.answer(method, target, token, body)


@pytest.mark.parametrize(
    ("target", "token", "status", "text"),
    [
        ("/v1/catalog/services", None, 403, b"Permission denied"),
        ("/v1/catalog/services", "", 403, b"Permission denied"),
        ("/v1/catalog/services", "wrong", 403, b"ACL not found"),
        ("/v1/catalog/services?token=wrong", "secret", 403, b"ACL not found"),
        ("/v1/catalog/services", "secret", 200, b"{}"),
        ("/v1/catalog/services?token=secret", None, 200, b"{}"),
        ("/v1/status/leader", None, 200, b'"127.0.0.1:8500"'),
    ],
)
async def test_a_token_opens_everything_and_its_absence_nothing(
    target: str, token: str | None, status: int, text: bytes
) -> None:
    reply = await ask(make_api("secret"), "GET", target, token=token)
    assert (reply.status, reply.body) == (status, text)


@pytest.mark.parametrize(
    "target", ["/v1/txn", "/v1/event/fire/x", "/v1/acl/list", "/v1/query", "/v1/nope", "/v1/catalog/register", "/v1/"]
)
async def test_what_is_not_served_says_what_is(target: str) -> None:
    reply = await ask(make_api(), "PUT", target)
    assert reply.status == 404
    assert b"embedded registry" in reply.body
    assert b"Consul agent" in reply.body


@pytest.mark.parametrize(
    "check",
    [
        {"HTTP": "http://127.0.0.1", "Interval": "1s"},
        {"TCP": "127.0.0.1:1", "Interval": "1s"},
        {"GRPC": "127.0.0.1:1", "Interval": "1s"},
        {"ScriptArgs": ["true"], "Interval": "1s"},
        {"DockerContainerID": "x", "ScriptArgs": ["true"], "Interval": "1s"},
        {"AliasService": "web"},
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["/v1/agent/service/register", "/v1/agent/check/register"])
async def test_a_check_that_probes_is_refused_with_a_reason(check: dict[str, object], target: str) -> None:
    body = {"Name": "web", "Check": check} if "service" in target else {"Name": "c", **check}
    api = make_api()
    reply = await ask(api, "PUT", target, orjson.dumps(body))
    assert reply.status == 400
    assert reply.body.startswith(b"Invalid check: the embedded registry keeps TTL checks only")
    assert (await ask(api, "GET", "/v1/agent/checks")).body == b"{}"


async def test_connect_is_refused_with_a_reason() -> None:
    body = orjson.dumps({"Name": "web", "Connect": {"SidecarService": {"Port": 1}}})
    reply = await ask(make_api(), "PUT", "/v1/agent/service/register", body)
    assert (reply.status, b"no Connect" in reply.body) == (400, True)


async def test_regular_expressions_are_refused_because_they_may_never_end() -> None:
    target = "/v1/health/service/web?filter=Service.ID+matches+%22(a%2B)%2B%24%22"
    assert (await ask(make_api(), "GET", target)).status == 500


async def test_the_nodes_own_health_cannot_be_taken_away() -> None:
    api = make_api()
    await ask(api, "PUT", "/v1/agent/check/deregister/serfHealth")
    assert b"serfHealth" in (await ask(api, "GET", "/v1/health/state/any")).body
    assert (await ask(api, "PUT", "/v1/agent/check/fail/serfHealth")).status == 500


TARGETS = st.sampled_from(
    [
        "/v1/agent/service/register",
        "/v1/agent/check/register",
        "/v1/agent/check/update/x",
        "/v1/session/create",
        "/v1/kv/x",
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["Name", "ID", "Port", "Tags", "Meta", "Check", "Checks", "TTL", "Weights", "LockDelay"]),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


@given(TARGETS, st.binary(max_size=40))
async def test_no_bytes_make_it_fail(target: str, body: bytes) -> None:
    assert (await ask(make_api(), "PUT", target, body)).status in (200, 400, 500)


@given(TARGETS, JSON)
async def test_no_json_makes_it_fail(target: str, value: object) -> None:
    body = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME, default=str) if not _is_huge(value) else b"1"
    assert (await ask(make_api(), "PUT", target, body)).status in (200, 400, 500)


def _is_huge(value: object) -> bool:
    """orjson writes 64-bit integers only."""
    if isinstance(value, dict):
        return any(map(_is_huge, value.values()))
    if isinstance(value, list):
        return any(map(_is_huge, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


@given(st.sampled_from(["GET", "PUT", "DELETE", "OPTIONS"]), st.text("/v1kgent%20?&=.ä\udcff", max_size=30))
async def test_no_target_makes_it_fail(method: str, target: str) -> None:
    assert (await ask(make_api(), method, f"/v1/{target}")).status in (200, 301, 400, 403, 404, 405, 500)


@pytest.mark.parametrize(
    "body",
    [
        b'{"Name":"\\ud800","Meta":{"k":"\\udfff"}}',
        b'{"Name":"\xff"}',
        b'{"Name":"x","Check":{"TTL":1e400}}',
        b'{"Name":"x","Check":{"TTL":1e300,"DeregisterCriticalServiceAfter":1e300}}',
        b'{"Name":"x","Check":{"TTL":' + b"9" * 5000 + b"}}",
    ],
)
async def test_odd_texts_and_numbers_can_be_read_back(body: bytes) -> None:
    api = make_api()
    status = (await ask(api, "PUT", "/v1/agent/service/register", body)).status
    assert status in (200, 400)
    for target in ("/v1/agent/services", "/v1/agent/checks", "/v1/catalog/services", "/v1/health/state/any"):
        assert (await ask(api, "GET", target)).status == 200


@pytest.mark.parametrize("delay", [b"1e300", b"-1e300", b"9" * 400, b'"2562047h"'])
async def test_any_lock_delay_can_be_stored(delay: bytes) -> None:
    api = make_api()
    assert (await ask(api, "PUT", "/v1/session/create", b'{"LockDelay":' + delay + b"}")).status == 200
    assert (await ask(api, "GET", "/v1/session/list")).status == 200


async def test_deep_nesting_is_refused() -> None:
    reply = await ask(make_api(), "PUT", "/v1/agent/service/register", b'{"Meta":' + b"[" * 100_000)
    assert reply.status == 400


@given(st.text('()"=! abcnotirdempy.`[]', max_size=40))
async def test_no_filter_makes_it_fail(expression: str) -> None:
    api = make_api()
    await ask(api, "PUT", "/v1/agent/service/register", b'{"Name":"web","Meta":{"a":"b"}}')
    query = "".join(f"%{byte:02x}" for byte in expression.encode())
    assert (await ask(api, "GET", f"/v1/health/service/web?filter={query}")).status in (200, 500)
