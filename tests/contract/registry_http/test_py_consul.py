"""The main flows through py-consul, the client our daemons use."""

import consul as py_consul
import pytest
from consul import Check
from consul.exceptions import BadRequest, ConsulException
from tests.contract.registry_http.client import Registry, until


@pytest.fixture
def client(registry: Registry) -> py_consul.Consul:
    with py_consul.Consul(host="127.0.0.1", port=registry.port) as found:
        yield found


def test_a_service_registers_beats_and_leaves(client: py_consul.Consul, name: str) -> None:
    registered = client.agent.service.register(
        name,
        service_id=f"{name}-1",
        address="10.0.0.1",
        port=80,
        tags=["a"],
        meta={"scheme": "http"},
        check=Check.ttl("60s"),
    )
    assert registered is True
    until(lambda: len(client.health.service(name)[1]) == 1)
    assert client.health.service(name, passing=True)[1] == []
    assert client.agent.check.ttl_pass(f"service:{name}-1", notes="fine") is True
    until(lambda: len(client.health.service(name, passing=True)[1]) == 1)
    index, found = client.health.service(name, passing=True)
    assert int(index) > 0
    assert found[0]["Service"]["Meta"] == {"scheme": "http"}
    assert found[0]["Checks"][-1]["Output"] == "fine"
    assert client.agent.check.ttl_fail(f"service:{name}-1") is True
    assert client.agent.check.ttl_warn(f"service:{name}-1") is True
    assert name in client.catalog.services()[1]
    assert client.catalog.service(name)[1][0]["ServiceAddress"] == "10.0.0.1"
    assert f"{name}-1" in client.agent.services()
    assert client.agent.service.maintenance(f"{name}-1", "true", "why") is True
    assert client.agent.service.maintenance(f"{name}-1", "false") is True
    assert client.agent.service.deregister(f"{name}-1") is True
    until(lambda: client.health.service(name)[1] == [])


def test_a_blocking_query_returns_after_its_wait(client: py_consul.Consul, name: str) -> None:
    index, _ = client.health.service(name)
    later, found = client.health.service(name, index=index, wait="200ms")
    assert (later, found) == (index, [])


def test_keys_and_locks(client: py_consul.Consul, name: str) -> None:
    assert client.kv.put(name, "v", flags=3) is True
    _, entry = client.kv.get(name)
    assert (entry["Value"], entry["Flags"]) == (b"v", 3)
    assert client.kv.put(name, "w", cas=entry["ModifyIndex"]) is True
    assert client.kv.put(name, "x", cas=entry["ModifyIndex"]) is False
    session = client.session.create(name="s", ttl=60, behavior="delete", lock_delay=0)
    assert client.kv.put(name, "locked", acquire=session) is True
    assert client.kv.get(name)[1]["Session"] == session
    assert client.session.renew(session)["ID"] == session
    assert client.session.info(session)[1]["Behavior"] == "delete"
    assert client.session.destroy(session) is True
    assert client.kv.get(name)[1] is None
    client.kv.put(f"{name}/1", "a")
    assert client.kv.get(f"{name}/", keys=True)[1] == [f"{name}/1"]
    assert client.kv.delete(f"{name}/", recurse=True) is True


def test_refusals_are_the_clients_exceptions(client: py_consul.Consul, name: str) -> None:
    with pytest.raises(ConsulException, match="does not have associated TTL"):
        client.agent.check.ttl_pass(f"service:{name}")
    with pytest.raises(BadRequest, match="Invalid service address"):
        client.agent.service.register(name, address="0.0.0.0")


def test_the_cluster_is_one_node(client: py_consul.Consul) -> None:
    assert ":" in client.status.leader()
    assert client.catalog.datacenters() == ["dc1"]
    node = client.catalog.nodes()[1][0]["Node"]
    assert client.agent.self()["Config"]["NodeName"] == node
    assert [check["CheckID"] for check in client.health.node(node)[1] if check["CheckID"] == "serfHealth"]
    assert client.catalog.node(node)[1]["Node"]["Node"] == node
    assert client.health.state("passing")[1]
