"""Keys: values, flags, check-and-set, prefixes, watches."""

import pytest
from tests.contract.registry_http.client import Registry, comparable

KV = "/v1/kv/"


def entry(registry: Registry, key: str) -> dict[str, object]:
    found: dict[str, object] = registry.get(KV + key).json[0]
    return found


def test_a_value_comes_back_with_its_fields(reference: Registry, embedded: Registry, name: str) -> None:
    answers = []
    for registry in (reference, embedded):
        assert registry.put(f"{KV}{name}?flags=42", "hello").json is True
        answers.append(comparable(registry.get(KV + name).json, registry.node))
    assert answers[0] == answers[1]
    assert answers[1][0]["Value"] == "aGVsbG8="


@pytest.mark.parametrize(
    "value", [b"", b"\x00\xff\x01", b"x" * 524_288, "ä€".encode()], ids=["empty", "binary", "largest", "utf-8"]
)
def test_any_bytes_are_kept(registry: Registry, name: str, value: bytes) -> None:
    assert registry.ask("PUT", KV + name, value).json is True
    answer = registry.get(f"{KV}{name}?raw")
    assert answer.raw == value
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_value_that_is_too_large_is_refused(registry: Registry, name: str) -> None:
    answer = registry.ask("PUT", KV + name, b"x" * 524_289)
    assert answer.status == 413
    assert answer.text == (
        "Request body(524289 bytes) too large, max size: 524288 bytes. "
        "See https://www.consul.io/docs/agent/options.html#kv_max_value_size."
    )
    assert registry.get(KV + name).status == 404


@pytest.mark.parametrize("key", ["a%2Fb", "%E2%82%AC%20x", "with%3Fmark", "k" * 600, "trailing/", "~.-_:@!$&'()*+,;="])
def test_keys_are_percent_decoded(reference: Registry, embedded: Registry, name: str, key: str) -> None:
    answers = []
    for registry in (reference, embedded):
        assert registry.put(f"{KV}{name}/{key}", "v").json is True
        answers.append([item["Key"] for item in registry.get(f"{KV}{name}/?recurse").json])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("flags", [0, 1, 2**63, 2**64 - 1])
def test_flags_are_64_bits(registry: Registry, name: str, flags: int) -> None:
    registry.put(f"{KV}{name}?flags={flags}", "v")
    assert entry(registry, name)["Flags"] == flags


def test_writing_the_same_again_changes_no_index(registry: Registry, name: str) -> None:
    registry.put(KV + name, "v")
    first = registry.get(KV + name)
    registry.put(KV + name, "v")
    assert registry.get(KV + name).raw == first.raw
    registry.put(KV + name, "w")
    changed = entry(registry, name)
    assert changed["ModifyIndex"] > first.json[0]["ModifyIndex"]  # type: ignore[operator]
    assert changed["CreateIndex"] == first.json[0]["CreateIndex"]


def test_check_and_set_writes_only_on_the_index_it_names(registry: Registry, name: str) -> None:
    assert registry.put(f"{KV}{name}?cas=0", "1").json is True
    assert registry.put(f"{KV}{name}?cas=0", "2").json is False
    index = entry(registry, name)["ModifyIndex"]
    assert registry.put(f"{KV}{name}?cas={index}", "3").json is True
    assert registry.put(f"{KV}{name}?cas={index}", "4").json is False
    assert registry.get(f"{KV}{name}?raw").text == "3"


def test_delete_by_check_and_set(registry: Registry, name: str) -> None:
    registry.put(KV + name, "v")
    index = entry(registry, name)["ModifyIndex"]
    assert registry.delete(f"{KV}{name}?cas=1").json is False
    assert registry.delete(f"{KV}{name}?cas=0").json is False
    assert registry.delete(f"{KV}{name}?cas={index}").json is True
    assert registry.get(KV + name).status == 404


@pytest.mark.parametrize(
    "query",
    [
        "?keys",
        "?keys&separator=/",
        "/?keys&separator=/",
        "/d?keys&separator=/",
        "/d/?keys",
        "?keys&separator=d",
        "?recurse",
        "/d?recurse",
        "/none?keys",
    ],
)
def test_prefixes_list_the_same(reference: Registry, embedded: Registry, name: str, query: str) -> None:
    answers = []
    for registry in (reference, embedded):
        for key in ("/b", "/a", "/d/1", "/d/2/x", "/d/2/y", "/dd", ""):
            registry.put(f"{KV}{name}{key}", "v")
        answer = registry.get(f"{KV}{name}{query}")
        answers.append((answer.status, comparable(answer.json, registry.node) if answer.raw else None))
    assert answers[0] == answers[1]


def test_a_tree_is_deleted_by_its_prefix(registry: Registry, name: str) -> None:
    for key in ("/1", "/2/x", "-beside"):
        registry.put(f"{KV}{name}{key}", "v")
    assert registry.delete(f"{KV}{name}/?recurse").json is True
    assert registry.get(f"{KV}{name}?keys").json == [f"{name}-beside"]


@pytest.mark.parametrize("query", ["", "?raw", "?recurse", "?keys"])
def test_a_watched_key_wakes_on_each_change(registry: Registry, name: str, query: str) -> None:
    path = f"{KV}{name}{query}"
    registry.put(f"{KV}{name}", "0")
    for act in ("put", "delete", "put"):
        with registry.watching(path) as watch:
            if act == "put":
                registry.put(KV + name, "1")
            else:
                registry.delete(KV + name)
            answer = watch.result()
        assert answer.index > watch.index
        assert answer.status == (404 if act == "delete" else 200)


def test_another_key_wakes_nobody(registry: Registry, name: str) -> None:
    registry.put(f"{KV}{name}/a", "v")
    registry.put(f"{KV}{name}-b/a", "v")
    for path in (f"{KV}{name}/a", f"{KV}{name}/?recurse"):
        with registry.watching(path, wait="300ms") as watch:
            registry.put(f"{KV}{name}-b/a", f"changed for {path}")
            watch.result()
        assert watch.seconds >= 0.3


def test_a_prefix_has_the_index_of_its_newest_change(registry: Registry, name: str) -> None:
    registry.put(f"{KV}{name}/1", "v")
    registry.put(f"{KV}{name}/2", "v")
    second = entry(registry, f"{name}/2")["ModifyIndex"]
    registry.put(f"{KV}{name}-other", "v")
    assert registry.get(f"{KV}{name}/?recurse").index == second
    registry.delete(f"{KV}{name}/1")
    deleted = registry.get(f"{KV}{name}/?keys")
    assert deleted.index > entry(registry, f"{name}-other")["ModifyIndex"]  # type: ignore[operator]
    assert deleted.json == [f"{name}/2"]


def test_pretty_is_the_same_json(registry: Registry, name: str) -> None:
    registry.put(KV + name, "v")
    assert registry.get(f"{KV}{name}?pretty").json == registry.get(KV + name).json
