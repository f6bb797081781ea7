"""Sessions and locks: who holds a key, and what happens when the holder is gone."""

import time

import pytest
from tests.contract.registry_http.client import Registry, comparable, until

KV = "/v1/kv/"


def holder(registry: Registry, key: str) -> tuple[str | None, int]:
    entry = registry.get(KV + key).json[0]
    return entry.get("Session"), entry["LockIndex"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"Name": "n", "TTL": "10s", "Behavior": "delete", "LockDelay": "1s"},
        {"LockDelay": 5},
        {"LockDelay": 5000},
        {"LockDelay": "0s"},
        {"LockDelay": "90s"},
        {"LockDelay": True},
        {"Checks": []},
        {"NodeChecks": ["serfHealth"]},
        {"NodeChecks": [], "TTL": "24h"},
        {"TTL": "", "Behavior": ""},
        {"Unknown": 1, "ID": "ignored"},
    ],
    ids=str,
)
def test_a_session_is_shown_as_it_was_made(
    reference: Registry, embedded: Registry, body: dict[str, object] | None
) -> None:
    shown = []
    for registry in (reference, embedded):
        made = registry.put("/v1/session/create", body)
        session = made.json["ID"]
        info = registry.get(f"/v1/session/info/{session}").json
        listed = [item for item in registry.get("/v1/session/list").json if item["ID"] == session]
        of_node = [item for item in registry.get(f"/v1/session/node/{registry.node}").json if item["ID"] == session]
        renewed = registry.put(f"/v1/session/renew/{session}").json
        assert info == listed == of_node == renewed
        shown.append(comparable(info, registry.node))
        assert registry.put(f"/v1/session/destroy/{session}").json is True
        assert registry.get(f"/v1/session/info/{session}").json == []
    assert shown[0] == shown[1]


def test_a_lock_has_one_holder(registry: Registry, name: str) -> None:
    one, two = registry.session(LockDelay="0s"), registry.session(LockDelay="0s")
    assert registry.put(f"{KV}{name}?acquire={one}", "1").json is True
    assert registry.put(f"{KV}{name}?acquire={two}", "2").json is False
    assert registry.put(f"{KV}{name}?release={two}", "2").json is False
    assert registry.put(f"{KV}{name}?acquire={one}", "again").json is True
    assert holder(registry, name) == (one, 1)
    assert registry.get(f"{KV}{name}?raw").text == "again"
    assert registry.put(f"{KV}{name}?release={one}", "free").json is True
    assert holder(registry, name) == (None, 1)
    assert registry.put(f"{KV}{name}?acquire={two}", "2").json is True
    assert holder(registry, name) == (two, 2)


def test_a_plain_write_keeps_the_holder(registry: Registry, name: str) -> None:
    session = registry.session()
    registry.put(f"{KV}{name}?acquire={session}", "1")
    assert registry.put(KV + name, "2").json is True
    assert holder(registry, name) == (session, 0)


def test_acquiring_sets_flags_too(registry: Registry, name: str) -> None:
    registry.put(f"{KV}{name}?acquire={registry.session()}&flags=7", "1")
    assert registry.get(KV + name).json[0]["Flags"] == 7


def test_a_key_that_never_was_cannot_be_released(registry: Registry, name: str) -> None:
    assert registry.put(f"{KV}{name}?release={registry.session()}", "1").json is False


@pytest.mark.parametrize("behavior", ["release", "delete"])
def test_the_end_of_a_session_frees_its_keys_and_wakes(registry: Registry, name: str, behavior: str) -> None:
    session = registry.session(Behavior=behavior, LockDelay="0s")
    registry.put(f"{KV}{name}?acquire={session}", "1")
    with registry.watching(KV + name) as watch:
        registry.put(f"/v1/session/destroy/{session}")
        answer = watch.result()
    assert answer.index > watch.index
    if behavior == "delete":
        assert answer.status == 404
    else:
        assert holder(registry, name) == (None, 1)


def test_after_an_invalidation_the_lock_delay_keeps_others_out(registry: Registry, name: str) -> None:
    one, two = registry.session(LockDelay="1500ms"), registry.session()
    registry.put(f"{KV}{name}?acquire={one}", "1")
    registry.put(f"/v1/session/destroy/{one}")
    assert registry.put(f"{KV}{name}?acquire={two}", "2").json is False
    until(lambda: registry.put(f"{KV}{name}?acquire={two}", "2").json is True)


def test_a_release_starts_no_lock_delay(registry: Registry, name: str) -> None:
    one, two = registry.session(LockDelay="60s"), registry.session()
    registry.put(f"{KV}{name}?acquire={one}", "1")
    registry.put(f"{KV}{name}?release={one}", "1")
    assert registry.put(f"{KV}{name}?acquire={two}", "2").json is True


@pytest.mark.parametrize("field", ["Checks", "NodeChecks", "ServiceChecks"])
def test_a_session_ends_with_its_check(registry: Registry, name: str, field: str) -> None:
    registry.register({"Name": name, "Check": {"TTL": "300s", "Status": "passing"}})
    check = f"service:{name}"
    session = registry.session(**{field: [{"ID": check}] if field == "ServiceChecks" else [check]})
    registry.put(f"{KV}{name}?acquire={session}", "1")
    registry.put(f"/v1/agent/check/warn/{check}")
    registry.settled_index(f"/v1/health/service/{name}")
    assert len(registry.get(f"/v1/session/info/{session}").json) == 1
    registry.put(f"/v1/agent/check/fail/{check}")
    until(lambda: registry.get(f"/v1/session/info/{session}").json == [])
    assert holder(registry, name)[0] is None
    refused = registry.put("/v1/session/create", {"Checks": [check]})
    assert (refused.status, refused.text) == (500, f"Check '{check}' is in critical state")


def test_a_session_ends_with_the_service_it_hangs_on(registry: Registry, name: str) -> None:
    registry.register({"Name": name, "Check": {"TTL": "300s", "Status": "passing"}})
    session = registry.session(Checks=[f"service:{name}"])
    registry.put(f"/v1/agent/service/deregister/{name}")
    until(lambda: registry.get(f"/v1/session/info/{session}").json == [])


def test_sessions_wake_their_watchers_but_renewing_does_not(registry: Registry) -> None:
    session = registry.session(TTL="60s")
    with registry.watching("/v1/session/list", wait="300ms") as watch:
        registry.put(f"/v1/session/renew/{session}")
        watch.result()
    assert watch.seconds >= 0.3
    with registry.watching("/v1/session/list") as watch:
        registry.put(f"/v1/session/destroy/{session}")
        answer = watch.result()
    assert answer.index > watch.index
    assert session not in answer.text


def test_without_renewal_a_session_lives_for_about_twice_its_ttl(
    reference: Registry, embedded: Registry, name: str
) -> None:
    both = (reference, embedded)
    sessions = [registry.session(TTL="10s", Behavior="delete", LockDelay="0s") for registry in both]
    for registry, session in zip(both, sessions, strict=True):
        registry.put(f"{KV}{name}?acquire={session}", "1")
    started = time.monotonic()
    until(lambda: any(registry.get(f"{KV}{name}").status == 404 for registry in both), seconds=40)
    assert time.monotonic() - started >= 10
    until(lambda: all(registry.get(f"{KV}{name}").status == 404 for registry in both), seconds=20)
    for registry, session in zip(both, sessions, strict=True):
        assert registry.get(f"/v1/session/info/{session}").json == []
