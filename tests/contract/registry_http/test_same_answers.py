"""One request, both registries, the same answer: status, kind of content and body."""

import json
import uuid
from typing import Any

import pytest
from tests.contract.registry_http.client import Answer, Registry, comparable

REGISTER = "/v1/agent/service/register"
CHECK = "/v1/agent/check/register"
SESSION = "/v1/session/create"
NOBODY = "00000000-0000-0000-0000-000000000000"


def service(**fields: Any) -> dict[str, Any]:
    return {"Name": "bad-input", **fields}


def ttl_check(**fields: Any) -> dict[str, Any]:
    return service(Check={"TTL": "30s", **fields})


REFUSED = [
    pytest.param("PUT", REGISTER, "", id="register nothing"),
    pytest.param("PUT", REGISTER, "{", id="register broken JSON"),
    pytest.param("PUT", REGISTER, "xx", id="register no JSON"),
    pytest.param("PUT", REGISTER, '{"Name":"a",}', id="register trailing comma"),
    pytest.param("PUT", REGISTER, '{"Name" "a"}', id="register missing colon"),
    pytest.param("PUT", REGISTER, "{'Name':1}", id="register single quotes"),
    pytest.param("PUT", REGISTER, '{"Name":"a" "b"}', id="register missing comma"),
    pytest.param("PUT", REGISTER, '{"Tags":["a" "b"]}', id="register missing comma in array"),
    pytest.param("PUT", REGISTER, '{"Name":tru}', id="register broken literal"),
    pytest.param("PUT", REGISTER, '{"Name":"\\x"}', id="register bad escape"),
    pytest.param("PUT", REGISTER, '{"Name":"a\nb"}', id="register line feed in string"),
    pytest.param("PUT", REGISTER, '{"Name":"a', id="register open string"),
    pytest.param("PUT", REGISTER, '{"Port":-x}', id="register broken number"),
    pytest.param("PUT", REGISTER, "null", id="register null"),
    pytest.param("PUT", REGISTER, {}, id="register without a name"),
    pytest.param("PUT", REGISTER, {"Name": None}, id="register null name"),
    pytest.param("PUT", REGISTER, {"ID": "x"}, id="register only an id"),
    pytest.param("PUT", REGISTER, {"Name": 5}, id="register numeric name"),
    pytest.param("PUT", REGISTER, service(Address="0.0.0.0"), id="register any address"),
    pytest.param("PUT", REGISTER, service(Address="::"), id="register any IPv6 address"),
    pytest.param("PUT", REGISTER, service(Address="[::]"), id="register any IPv6 address in brackets"),
    pytest.param("PUT", REGISTER, service(Port="80"), id="register text port"),
    pytest.param("PUT", REGISTER, service(Port=1.5), id="register broken port"),
    pytest.param("PUT", REGISTER, service(Port=2**70), id="register huge port"),
    pytest.param("PUT", REGISTER, service(Port=True), id="register boolean port"),
    pytest.param("PUT", REGISTER, service(Tags="a"), id="register tags no list"),
    pytest.param("PUT", REGISTER, service(Tags=[1]), id="register numeric tag"),
    pytest.param("PUT", REGISTER, service(Meta=[]), id="register meta no map"),
    pytest.param("PUT", REGISTER, service(Meta={"a": 1}), id="register numeric meta"),
    pytest.param("PUT", REGISTER, service(Meta={"a.b": "c"}), id="register meta key with a dot"),
    pytest.param("PUT", REGISTER, service(Meta={"": "c"}), id="register blank meta key"),
    pytest.param("PUT", REGISTER, service(Meta={"consul-x": "c"}), id="register reserved meta key"),
    pytest.param("PUT", REGISTER, service(Meta={"k" * 129: "c"}), id="register long meta key"),
    pytest.param("PUT", REGISTER, service(Meta={"k": "v" * 513}), id="register long meta value"),
    pytest.param("PUT", REGISTER, service(Meta={f"k{n}": "" for n in range(65)}), id="register 65 meta pairs"),
    pytest.param("PUT", REGISTER, service(Nope=1), id="register unknown field"),
    pytest.param("PUT", REGISTER, service(EnableTagOverride="yes"), id="register text for a boolean"),
    pytest.param("PUT", REGISTER, service(TaggedAddresses={"lan": "x"}), id="register tagged address no object"),
    pytest.param("PUT", REGISTER, service(Weights=5), id="register weights no object"),
    pytest.param("PUT", REGISTER, service(Weights={"Passing": 0}), id="register weight zero"),
    pytest.param("PUT", REGISTER, service(Weights={"Passing": 1, "Warning": -1}), id="register negative weight"),
    pytest.param("PUT", REGISTER, service(Weights={"Passing": 70000}), id="register large weight"),
    pytest.param("PUT", REGISTER, service(Checks={}), id="register checks no list"),
    pytest.param("PUT", REGISTER, ttl_check(TTL="abc"), id="register TTL no duration"),
    pytest.param("PUT", REGISTER, ttl_check(TTL="10"), id="register TTL without unit"),
    pytest.param("PUT", REGISTER, ttl_check(TTL="10x"), id="register TTL with unknown unit"),
    pytest.param("PUT", REGISTER, ttl_check(TTL="-1s"), id="register negative TTL"),
    pytest.param("PUT", REGISTER, ttl_check(Nope=1), id="register unknown field of a check"),
    pytest.param("PUT", REGISTER, ttl_check(Status="bogus"), id="register unknown status"),
    pytest.param("PUT", REGISTER, ttl_check(Interval="5s"), id="register TTL and interval"),
    pytest.param("PUT", REGISTER, service(Check={"Status": "passing"}), id="register check without TTL"),
    pytest.param("PUT", REGISTER, service(Check={"Interval": "5s"}), id="register interval of nothing"),
    pytest.param("PUT", REGISTER, service(Check={"HTTP": "http://127.0.0.1:1"}), id="register probe without interval"),
    pytest.param("PUT", REGISTER, service(Check={"AliasService": "x", "TTL": "1s"}), id="register alias with TTL"),
    pytest.param("PUT", REGISTER, ttl_check(DeregisterCriticalServiceAfter="zz"), id="register bad grace"),
    pytest.param("PUT", f"{REGISTER}?ns=x", service(), id="register in a namespace"),
    pytest.param("GET", REGISTER, None, id="register by GET"),
    pytest.param("PUT", "/v1/agent/service/deregister/", None, id="deregister nothing"),
    pytest.param("PUT", "/v1/agent/service/deregister/never-there", None, id="deregister an unknown service"),
    pytest.param("PUT", "/v1/agent/service/maintenance/?enable=true", None, id="maintenance of nothing"),
    pytest.param("PUT", "/v1/agent/service/maintenance/never-there?enable=true", None, id="maintenance of unknown"),
    pytest.param("PUT", "/v1/agent/service/maintenance/never-there", None, id="maintenance without enable"),
    pytest.param("PUT", "/v1/agent/service/maintenance/never-there?enable=zz", None, id="maintenance enable=zz"),
    pytest.param("PUT", "/v1/agent/maintenance", None, id="node maintenance without enable"),
    pytest.param("PUT", "/v1/agent/maintenance?enable=x", None, id="node maintenance enable=x"),
    pytest.param("GET", "/v1/agent/service/never-there", None, id="an unknown service"),
    pytest.param("GET", "/v1/agent/service/", None, id="a service without id"),
    pytest.param("PUT", CHECK, "", id="check nothing"),
    pytest.param("PUT", CHECK, "{", id="check broken JSON"),
    pytest.param("PUT", CHECK, {}, id="check without a name"),
    pytest.param("PUT", CHECK, {"ID": "i", "TTL": "10s"}, id="check with an id alone"),
    pytest.param("PUT", CHECK, {"Name": "n"}, id="check without TTL"),
    pytest.param("PUT", CHECK, {"Name": "n", "TTL": "-1s"}, id="check with negative TTL"),
    pytest.param("PUT", CHECK, {"Name": "n", "TTL": "1s", "Status": "bad"}, id="check with unknown status"),
    pytest.param("PUT", CHECK, {"Name": "n", "TTL": "1s", "Output": "o"}, id="check with unknown field"),
    pytest.param("PUT", CHECK, {"Name": "n", "TTL": "1s", "CheckID": "i"}, id="check with the other form's id"),
    pytest.param("PUT", CHECK, {"Name": "n", "TTL": "1s", "ServiceID": "never"}, id="check of an unknown service"),
    pytest.param("PUT", "/v1/agent/check/deregister/", None, id="deregister no check"),
    pytest.param("PUT", "/v1/agent/check/deregister/never-there", None, id="deregister an unknown check"),
    pytest.param("PUT", "/v1/agent/check/pass/never-there", None, id="pass an unknown check"),
    pytest.param("PUT", "/v1/agent/check/warn/never-there?note=x", None, id="warn an unknown check"),
    pytest.param("PUT", "/v1/agent/check/fail/never-there", None, id="fail an unknown check"),
    pytest.param("PUT", "/v1/agent/check/pass/", None, id="pass nothing"),
    pytest.param("GET", "/v1/agent/check/pass/never-there", None, id="pass by GET"),
    pytest.param("PUT", "/v1/agent/check/update/never-there", {"Status": "passing"}, id="update an unknown check"),
    pytest.param("PUT", "/v1/agent/check/update/x", {}, id="update without status"),
    pytest.param("PUT", "/v1/agent/check/update/x", {"Status": "maintenance"}, id="update to no status"),
    pytest.param("PUT", "/v1/agent/check/update/x", {"Status": "passing", "X": 1}, id="update with unknown field"),
    pytest.param("PUT", "/v1/agent/check/update/x", "", id="update with nothing"),
    pytest.param("PUT", "/v1/agent/check/update/x", [], id="update with an array"),
    pytest.param("GET", "/v1/agent/services?filter=Nope==1", None, id="agent filter by unknown field"),
    pytest.param("GET", "/v1/health/service/", None, id="health of nothing"),
    pytest.param("GET", "/v1/health/node/", None, id="health of no node"),
    pytest.param("GET", "/v1/health/checks/", None, id="checks of nothing"),
    pytest.param("GET", "/v1/health/state/", None, id="no state"),
    pytest.param("GET", "/v1/health/state/bogus", None, id="an unknown state"),
    pytest.param("GET", "/v1/health/service/never-there", None, id="health of unknown"),
    pytest.param("GET", "/v1/health/checks/never-there", None, id="checks of unknown"),
    pytest.param("GET", "/v1/health/node/never-there", None, id="health of an unknown node"),
    pytest.param("GET", "/v1/health/service/x?passing=zz", None, id="passing=zz"),
    pytest.param("GET", "/v1/health/service/x?index=abc", None, id="index no number"),
    pytest.param("GET", "/v1/health/service/x?index=-1", None, id="negative index"),
    pytest.param("GET", "/v1/health/service/x?index=1&wait=zz", None, id="wait no duration"),
    pytest.param("GET", "/v1/health/service/x?wait=10", None, id="wait without unit"),
    pytest.param("GET", "/v1/health/service/x?stale&consistent", None, id="stale and consistent"),
    pytest.param("GET", "/v1/health/service/x?ns=x", None, id="a namespace"),
    pytest.param("GET", "/v1/health/service/x?dc=elsewhere", None, id="an unknown datacenter"),
    pytest.param("GET", "/v1/health/service/x?filter=Service.Bad==v", None, id="filter by unknown field"),
    pytest.param("GET", "/v1/health/service/x?filter=Service.Port==v", None, id="filter a number by a text"),
    pytest.param("GET", "/v1/health/service/x?filter=Service.Tags==v", None, id="filter a list by equality"),
    pytest.param("GET", "/v1/health/service/x?filter=Service.ID+is+empty", None, id="filter a text by emptiness"),
    pytest.param("POST", "/v1/catalog/services", None, id="catalog by POST"),
    pytest.param("GET", "/v1/catalog/service/", None, id="catalog of nothing"),
    pytest.param("GET", "/v1/catalog/service/never-there", None, id="catalog of unknown"),
    pytest.param("GET", "/v1/catalog/node/", None, id="no node"),
    pytest.param("GET", "/v1/catalog/node/never-there", None, id="an unknown node"),
    pytest.param("GET", "/v1/catalog/node-services/never-there", None, id="services of an unknown node"),
    pytest.param("GET", "/v1/catalog/services?node-meta=a:b", None, id="services of nodes with unknown metadata"),
    pytest.param("GET", "/v1/catalog/nodes?node-meta=a:b", None, id="nodes with unknown metadata"),
    pytest.param("GET", "/v1/catalog/nodes?filter=Meta.k==v", None, id="nodes with filtered metadata"),
    pytest.param("GET", "/v1/catalog/datacenters", None, id="datacenters"),
    pytest.param("GET", "/v1/kv/", None, id="no key"),
    pytest.param("GET", "/v1/kv/never-there", None, id="an unknown key"),
    pytest.param("GET", "/v1/kv/never-there?raw", None, id="an unknown key raw"),
    pytest.param("GET", "/v1/kv/never-there?recurse", None, id="an unknown prefix"),
    pytest.param("GET", "/v1/kv/never-there?keys", None, id="keys of an unknown prefix"),
    pytest.param("GET", "/v1/kv", None, id="the folder without its slash"),
    pytest.param("GET", "/v1/health/service", None, id="health without its slash"),
    pytest.param("PUT", "/v1/agent/service/deregister", None, id="deregister without its slash"),
    pytest.param("GET", "/v1/kv//a", None, id="two slashes"),
    pytest.param("PUT", "/v1/kv/a/../b", "x", id="dot segments"),
    pytest.param("GET", "/v1/kv/x?index=abc", None, id="key with index no number"),
    pytest.param("GET", "/v1/kv/x?dc=elsewhere", None, id="key in an unknown datacenter"),
    pytest.param("PUT", "/v1/kv/", "x", id="put no key"),
    pytest.param("PUT", "/v1/kv/x?flags=zz", "x", id="flags no number"),
    pytest.param("PUT", "/v1/kv/x?flags=-1", "x", id="negative flags"),
    pytest.param("PUT", "/v1/kv/x?flags=99999999999999999999", "x", id="flags out of range"),
    pytest.param("PUT", "/v1/kv/x?cas=zz", "x", id="cas no number"),
    pytest.param("PUT", "/v1/kv/x?cas=", "x", id="cas empty"),
    pytest.param("PUT", "/v1/kv/x?acquire=x&release=y", "x", id="acquire and release"),
    pytest.param("PUT", "/v1/kv/x?acquire=x&cas=1", "x", id="acquire and cas"),
    pytest.param("PUT", "/v1/kv/x?release=x&cas=1", "x", id="release and cas"),
    pytest.param("PUT", "/v1/kv/x?acquire=nope", "x", id="acquire with no session's id"),
    pytest.param("PUT", "/v1/kv/x?acquire=", "x", id="acquire with an empty id"),
    pytest.param("PUT", f"/v1/kv/x?acquire={NOBODY}", "x", id="acquire with an unknown session"),
    pytest.param("PUT", f"/v1/kv/x?release={NOBODY}", "x", id="release with an unknown session"),
    pytest.param("PUT", "/v1/kv/x?release=nope", "x", id="release with no session's id"),
    pytest.param("PUT", "/v1/kv/x?ns=a", "x", id="put in a namespace"),
    pytest.param("POST", "/v1/kv/x", "x", id="post a key"),
    pytest.param("HEAD", "/v1/kv/x", None, id="head of a key"),
    pytest.param("OPTIONS", "/v1/kv/x", None, id="options of a key"),
    pytest.param("OPTIONS", REGISTER, None, id="options of register"),
    pytest.param("DELETE", "/v1/kv/", None, id="delete no key"),
    pytest.param("DELETE", "/v1/kv/never-there", None, id="delete an unknown key"),
    pytest.param("DELETE", "/v1/kv/never-there?recurse", None, id="delete an unknown prefix"),
    pytest.param("DELETE", "/v1/kv/never-there?cas=5", None, id="delete an unknown key by cas"),
    pytest.param("DELETE", "/v1/kv/x?cas=x", None, id="delete by cas no number"),
    pytest.param("DELETE", "/v1/kv/x?recurse&cas=1", None, id="delete a prefix by cas"),
    pytest.param("PUT", SESSION, "{", id="session broken JSON"),
    pytest.param("PUT", SESSION, {"TTL": "5s"}, id="session TTL too short"),
    pytest.param("PUT", SESSION, {"TTL": "25h"}, id="session TTL too long"),
    pytest.param("PUT", SESSION, {"TTL": "zz"}, id="session TTL no duration"),
    pytest.param("PUT", SESSION, {"TTL": 10}, id="session TTL a number"),
    pytest.param("PUT", SESSION, {"Behavior": "zz"}, id="session of unknown behavior"),
    pytest.param("PUT", SESSION, {"LockDelay": "zz"}, id="session lock delay no duration"),
    pytest.param("PUT", SESSION, {"Node": "nope"}, id="session of an unknown node"),
    pytest.param("PUT", SESSION, {"Checks": ["nope"]}, id="session on an unknown check"),
    pytest.param("PUT", SESSION, {"NodeChecks": ["nope"]}, id="session on an unknown node check"),
    pytest.param("PUT", SESSION, {"NodeChecks": "x"}, id="session checks no list"),
    pytest.param("PUT", SESSION, {"ServiceChecks": [{"ID": "nope"}]}, id="session on an unknown service check"),
    pytest.param("GET", SESSION, None, id="session by GET"),
    pytest.param("GET", "/v1/session/info/", None, id="info of no session"),
    pytest.param("GET", "/v1/session/info/nope", None, id="info of no session's id"),
    pytest.param("GET", f"/v1/session/info/{NOBODY}", None, id="info of an unknown session"),
    pytest.param("GET", "/v1/session/node/", None, id="sessions of no node"),
    pytest.param("GET", "/v1/session/node/nope", None, id="sessions of an unknown node"),
    pytest.param("PUT", "/v1/session/renew/", None, id="renew nothing"),
    pytest.param("PUT", "/v1/session/renew/nope", None, id="renew no session's id"),
    pytest.param("PUT", f"/v1/session/renew/{NOBODY}", None, id="renew an unknown session"),
    pytest.param("PUT", "/v1/session/destroy/", None, id="destroy nothing"),
    pytest.param("PUT", "/v1/session/destroy/nope", None, id="destroy no session's id"),
    pytest.param("PUT", f"/v1/session/destroy/{NOBODY}", None, id="destroy an unknown session"),
]


def shown(answer: Answer, node: str) -> dict[str, Any]:
    kind = answer.headers.get("content-type", "") if answer.raw else ""
    body = comparable(json.loads(answer.raw), node) if kind == "application/json" else answer.text
    kept = {name: answer.headers.get(name) for name in ("location", "allow", "x-consul-effective-consistency")}
    return {"status": answer.status, "kind": kind, "body": body, **kept, "indexed": "x-consul-index" in answer.headers}


@pytest.mark.parametrize(("method", "path", "body"), REFUSED)
def test_what_is_wrong_or_missing_is_answered_alike(
    reference: Registry, embedded: Registry, method: str, path: str, body: Any
) -> None:
    wanted = shown(reference.ask(method, path, body), reference.node)
    got = shown(embedded.ask(method, path, body), embedded.node)
    if wanted["status"] >= 400:
        wanted.pop("indexed"), got.pop("indexed")  # an error's index means nothing
    assert got == wanted


SHAPES = [
    pytest.param({}, id="only a name"),
    pytest.param({"ID": "own-id"}, id="an id of its own"),
    pytest.param({"Address": "10.1.2.3", "Port": 80}, id="IPv4 address"),
    pytest.param({"Address": "2001:db8::1", "Port": 80}, id="IPv6 address"),
    pytest.param({"Address": "host.example", "Port": 80}, id="host name"),
    pytest.param({"Port": -1}, id="negative port"),
    pytest.param({"Port": 70000}, id="port above 65535"),
    pytest.param({"Tags": ["b", "a", "b"]}, id="tags"),
    pytest.param({"Tags": None, "Meta": None, "Check": None, "Checks": None, "Weights": None}, id="nulls"),
    pytest.param({"Meta": {}}, id="empty metadata"),
    pytest.param({"Meta": {"scheme": "http", "weight": "3", "k": "v" * 512}}, id="metadata"),
    pytest.param({"Weights": {"Passing": 3, "Warning": 2}}, id="weights"),
    pytest.param({"Weights": {"Passing": 3}}, id="half the weights"),
    pytest.param({"EnableTagOverride": True}, id="tag override"),
    pytest.param({"TaggedAddresses": {"lan": {"Address": "1.2.3.4", "Port": 5}}}, id="tagged addresses"),
    pytest.param(
        {"Address": "10.0.0.9", "Port": 9, "TaggedAddresses": {"lan_ipv4": {"Address": "1.1.1.1"}}},
        id="tagged addresses beside an address",
    ),
    pytest.param({"Check": {}}, id="an empty check"),
    pytest.param({"Check": {"TTL": "0s"}}, id="a check of zeros"),
    pytest.param({"Check": {"TTL": "40s"}}, id="a TTL check"),
    pytest.param({"Check": {"TTL": "40s", "Status": "passing", "Notes": "n", "Name": "c"}}, id="a passing check"),
    pytest.param({"Check": {"TTL": "1h30m", "DeregisterCriticalServiceAfter": "90m"}}, id="long durations"),
    pytest.param({"Check": {"TTL": 60_000_000_000}}, id="a duration in nanoseconds"),
    pytest.param({"Checks": [{"TTL": "40s"}, {"TTL": "50s", "Status": "warning"}]}, id="two checks"),
    pytest.param({"check": {"ttl": "40s", "deregister_critical_service_after": "2m"}, "port": 7}, id="lower case"),
    pytest.param({"enable_tag_override": True, "tagged_addresses": {"wan": {"address": "a"}}}, id="snake case"),
    pytest.param({"Token": "x", "Connect": {}, "Proxy": {}, "Kind": ""}, id="what only a cluster needs, empty"),
]


@pytest.mark.parametrize("fields", SHAPES)
def test_a_registration_is_shown_alike_everywhere(
    reference: Registry, embedded: Registry, fields: dict[str, Any], name: str
) -> None:
    body = {"Name": name, **fields}
    answers = []
    for registry in (reference, embedded):
        if "ID" in fields:
            body["ID"] = f"{name}-id"
        registry.register(body)
        id_ = body.get("ID", name)
        checks = registry.get("/v1/agent/checks").json
        answers.append(
            comparable(
                {
                    "agent": registry.get(f"/v1/agent/service/{id_}").json,
                    "services": registry.get("/v1/agent/services").json[id_],
                    "checks": {key: check for key, check in checks.items() if check["ServiceID"] == id_},
                    "health": registry.get(f"/v1/health/service/{name}").json,
                    "health node": [item["Node"]["Node"] for item in registry.get(f"/v1/health/service/{name}").json],
                    "health checks": registry.get(f"/v1/health/checks/{name}").json,
                    "passing": registry.get(f"/v1/health/service/{name}?passing").json,
                    "catalog": registry.get(f"/v1/catalog/service/{name}").json,
                    "node": registry.get(f"/v1/catalog/node/{registry.node}").json["Services"][id_],
                    "tags": sorted(registry.get("/v1/catalog/services").json[name]),
                },
                registry.node,
            )
        )
        registry.put(f"/v1/agent/service/deregister/{id_}")
    assert answers[1] == answers[0]


FILTERS = [
    'Service.ID == "{a}"',
    'Service.ID != "{a}"',
    "Service.Meta.color == red",
    'Service.Meta["color"] == red',
    "Service.Meta.missing == red",
    "Service.Meta.missing != red",
    "color in Service.Meta",
    "color not in Service.Meta",
    "Service.Meta is empty",
    "Service.Meta is not empty",
    "blue in Service.Tags",
    'Service.Tags contains "blue"',
    "Service.Tags not contains blue",
    "Service.Port == 80",
    "Service.EnableTagOverride == false",
    "Service.Weights.Passing == 1",
    "Service.TaggedAddresses.lan_ipv4.Port == 80",
    'not Service.ID == "{a}"',
    "Service.Port == 80 and red in Service.Tags",
    "Service.Port == 81 or red in Service.Tags",
    "not (Service.Port == 81 or red in Service.Tags)",
    "Checks.Status == warning",
    "Checks.Name == nothing",
    "Checks is empty",
    "Node.Datacenter == dc1",
    '"{a}" in Service.ID',
]


@pytest.fixture(scope="module")
def filtered(reference: Registry, embedded: Registry) -> str:
    """A service with two different instances, in both registries."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    one = {"ID": f"{name}-a", "Port": 80, "Address": "10.0.0.1", "Tags": ["red"], "Meta": {"color": "red"}}
    two = {"ID": f"{name}-b", "Port": 81, "Tags": ["blue"], "Check": {"TTL": "300s", "Status": "warning"}}
    for registry in (reference, embedded):
        for fields in (one, two):
            registry.register({"Name": name, **fields})
    return name


@pytest.mark.parametrize("expression", FILTERS)
def test_a_filter_keeps_the_same_instances(
    reference: Registry, embedded: Registry, filtered: str, expression: str
) -> None:
    query = "".join(f"%{byte:02x}" for byte in expression.format(a=f"{filtered}-a").encode())

    def kept(registry: Registry) -> list[str]:
        answer = registry.get(f"/v1/health/service/{filtered}?filter={query}")
        assert answer.status == 200, answer.text
        return [item["Service"]["ID"] for item in answer.json]

    assert kept(embedded) == kept(reference)


@pytest.mark.parametrize(
    "query", ["", "?tag=red", "?tag=RED", "?tag=red&tag=blue", "?passing", "?passing=1", "?passing=false", "?tag=none"]
)
def test_tags_and_passing_keep_the_same_instances(
    reference: Registry, embedded: Registry, filtered: str, query: str
) -> None:
    def kept(registry: Registry) -> list[str]:
        return [item["Service"]["ID"] for item in registry.get(f"/v1/health/service/{filtered}{query}").json]

    assert kept(embedded) == kept(reference)


def test_a_filter_on_the_agents_view_keeps_the_same(reference: Registry, embedded: Registry, filtered: str) -> None:
    def kept(registry: Registry) -> tuple[list[str], list[str]]:
        services = registry.get(f"/v1/agent/services?filter=Service==%22{filtered}%22%20and%20Port==81").json
        checks = registry.get(f"/v1/agent/checks?filter=ServiceName==%22{filtered}%22").json
        return sorted(services), sorted(checks)

    assert kept(embedded) == kept(reference) == ([f"{filtered}-b"], [f"service:{filtered}-b"])


def test_names_are_looked_up_whatever_their_case(registry: Registry, name: str) -> None:
    registry.register({"Name": name})
    assert [item["ServiceID"] for item in registry.get(f"/v1/catalog/service/{name.upper()}").json] == [name]


def test_what_is_registered_with_unusual_characters_is_found(registry: Registry, name: str) -> None:
    odd = f"{name} s/ä%"
    assert registry.put("/v1/agent/service/register", {"Name": name, "ID": odd}).status == 200
    path = "/v1/agent/service/" + "".join(f"%{byte:02X}" for byte in odd.encode())
    assert registry.get(path).json["ID"] == odd
    assert registry.put(path.replace("service/", "service/deregister/")).status == 200
    assert registry.get(path).status == 404


def test_the_agent_says_the_same_of_itself_where_clients_look(reference: Registry, embedded: Registry) -> None:
    wanted, got = (registry.get("/v1/agent/self").json for registry in (reference, embedded))
    assert got["Config"]["Datacenter"] == wanted["Config"]["Datacenter"]
    assert set(wanted["Config"]) == set(got["Config"])
    assert set(wanted["Member"]) == set(got["Member"])
    assert set(wanted) == set(got)
    member = embedded.get("/v1/agent/members").json
    assert [item["Status"] for item in member] == [1]
    assert set(member[0]) == set(reference.get("/v1/agent/members").json[0])


def test_the_node_is_listed_with_the_same_fields(reference: Registry, embedded: Registry) -> None:
    wanted, got = (registry.get("/v1/catalog/nodes").json for registry in (reference, embedded))
    assert len(wanted) == len(got) == 1
    assert {key: type(value) for key, value in got[0].items()} == {k: type(v) for k, v in wanted[0].items()}
    assert got[0]["TaggedAddresses"] == wanted[0]["TaggedAddresses"]


def test_the_leader_is_an_address(registry: Registry) -> None:
    host, _, port = registry.get("/v1/status/leader").json.rpartition(":")
    assert host == "127.0.0.1"
    assert port.isdigit()
    assert registry.get("/v1/status/peers").json == [f"{host}:{port}"]
