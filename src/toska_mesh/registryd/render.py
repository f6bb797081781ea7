"""State as Consul's JSON. Pure.

Answers with 10,000 checks are built again at every change, so the JSON of each value is kept beside the value it was
made from and answers are joined from these pieces. A value is never altered, so identity tells whether a piece is good.
"""

from base64 import b64encode
from collections.abc import Iterable

import orjson

from toska_mesh.registryd.node import Node
from toska_mesh.registryd.state import State
from toska_mesh.registryd.values import Check, Entry, Service, Session

JsonObject = dict[str, object]


def tagged_addresses(service: Service) -> JsonObject:
    return {name: {"Address": address, "Port": port} for name, (address, port) in service.tagged_addresses.items()}


def _weights(service: Service) -> JsonObject:
    return {"Passing": service.weights[0], "Warning": service.weights[1]}


def agent_service(service: Service) -> JsonObject:
    """As the agent knows it: `/v1/agent/services`."""
    shown: JsonObject = {
        "ID": service.id,
        "Service": service.name,
        "Tags": service.tags,
        "Meta": service.meta or {},
        "Port": service.port,
        "Address": service.address,
    }
    if service.tagged_addresses:
        shown["TaggedAddresses"] = tagged_addresses(service)
    return shown | {"Weights": _weights(service), "EnableTagOverride": service.enable_tag_override}


def health_service(service: Service) -> JsonObject:
    """The `Service` of `/v1/health/service` and `/v1/catalog/node`."""
    shown: JsonObject = {"ID": service.id, "Service": service.name, "Tags": service.tags, "Address": service.address}
    if service.tagged_addresses:
        shown["TaggedAddresses"] = tagged_addresses(service)
    return shown | {
        "Meta": service.meta,
        "Port": service.port,
        "Weights": _weights(service),
        "EnableTagOverride": service.enable_tag_override,
        "Proxy": {"MeshGateway": {}, "Expose": {}},
        "Connect": {},
        "CreateIndex": service.create_index,
        "ModifyIndex": service.modify_index,
    }


def catalog_service(service: Service, node: Node) -> JsonObject:
    """One item of `/v1/catalog/service`."""
    shown: JsonObject = {
        "ID": node.id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": node.datacenter,
        "TaggedAddresses": node.tagged_addresses,
        "NodeMeta": {"consul-network-segment": ""},
        "ServiceKind": "",
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": service.tags,
        "ServiceAddress": service.address,
    }
    if service.tagged_addresses:
        shown["ServiceTaggedAddresses"] = tagged_addresses(service)
    return shown | {
        "ServiceWeights": _weights(service),
        "ServiceMeta": service.meta or {},
        "ServicePort": service.port,
        "ServiceEnableTagOverride": service.enable_tag_override,
        "ServiceProxy": {"MeshGateway": {}, "Expose": {}},
        "ServiceConnect": {},
        "CreateIndex": service.create_index,
        "ModifyIndex": service.modify_index,
    }


def check(value: Check, node: Node) -> JsonObject:
    return {
        "Node": node.name,
        "CheckID": value.id,
        "Name": value.name,
        "Status": value.status,
        "Notes": value.notes,
        "Output": value.output,
        "ServiceID": value.service_id,
        "ServiceName": value.service_name,
        "ServiceTags": value.service_tags,
        "Type": value.kind,
        "Definition": {},
        "CreateIndex": value.create_index,
        "ModifyIndex": value.modify_index,
    }


def agent_check(value: Check, node: Node, output: str) -> JsonObject:
    """As the agent knows it: with the newest output and without the catalog's indexes."""
    return check(value, node) | {"Output": output, "CreateIndex": 0, "ModifyIndex": 0}


def entry(value: Entry) -> JsonObject:
    shown: JsonObject = {
        "LockIndex": value.lock_index,
        "Key": value.key,
        "Flags": value.flags,
        "Value": b64encode(value.value).decode() if value.value else None,
    }
    if value.session:
        shown["Session"] = value.session
    return shown | {"CreateIndex": value.create_index, "ModifyIndex": value.modify_index}


def session(value: Session, node: Node) -> JsonObject:
    checks = value.service_checks
    return {
        "ID": value.id,
        "Name": value.name,
        "Node": node.name,
        "LockDelay": value.lock_delay_ns,
        "Behavior": value.behavior,
        "TTL": value.ttl,
        "NodeChecks": value.node_checks,
        "ServiceChecks": None if checks is None else [{"ID": id_, "Namespace": ""} for id_ in checks],
        "CreateIndex": value.create_index,
        "ModifyIndex": value.modify_index,
    }


def services_by_name(services: Iterable[Service]) -> dict[str, list[str]]:
    """`/v1/catalog/services`: every name with the tags of all its instances."""
    tags: dict[str, dict[str, None]] = {}
    for service in services:
        tags.setdefault(service.name, {}).update(dict.fromkeys(service.tags))
    return {name: list(tags[name]) for name in sorted(tags)}


class Pieces:
    """Keeps the JSON of checks and services. Its memory follows the catalog's."""

    def __init__(self, state: State, node: Node, node_json: bytes) -> None:
        self._state = state
        self._node = node
        self._node_json = node_json
        self._checks: dict[str, tuple[Check, bytes]] = {}
        self._services: dict[str, tuple[Service, bytes]] = {}

    def check(self, value: Check) -> bytes:
        kept = self._checks.get(value.id)
        if kept is not None and kept[0] is value:
            return kept[1]
        made = orjson.dumps(check(value, self._node))
        self._checks[value.id] = (value, made)
        if len(self._checks) > 2 * self._state.catalog.check_count + 64:
            for id_ in [id_ for id_ in self._checks if self._state.catalog.check(id_) is None]:
                del self._checks[id_]
        return made

    def _service(self, value: Service) -> bytes:
        kept = self._services.get(value.id)
        if kept is not None and kept[0] is value:
            return kept[1]
        made = orjson.dumps(health_service(value))
        self._services[value.id] = (value, made)
        if len(self._services) > 2 * self._state.catalog.service_count + 64:
            self._services = {id_: pair for id_, pair in self._services.items() if self._state.catalog.service(id_)}
        return made

    def checks(self, values: Iterable[Check]) -> bytes:
        kept, pieces = self._checks, []
        for value in values:  # written out: this loop runs for every check at every change of any
            pair = kept.get(value.id)
            pieces.append(pair[1] if pair is not None and pair[0] is value else self.check(value))
        return b"[%b]" % b",".join(pieces)

    def instance(self, service: Service, checks: Iterable[Check]) -> bytes:
        """One item of `/v1/health/service`."""
        return b'{"Node":%b,"Service":%b,"Checks":%b}' % (
            self._node_json,
            self._service(service),
            self.checks(checks),
        )
