"""The envelope to the letter: golden documents, and any content at all against a consumer's acceptance rules."""

import json
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.messaging.acceptance import accept
from tests.unit.messaging.examples import (
    ALERT,
    ALL_MESSAGES,
    CONFIGURATION_CHANGED,
    CONVERSATION,
    DEREGISTERED,
    EVENT_ID,
    HEALTH_CHANGED,
    HOST,
    MESSAGE_ID,
    NOW,
    REGISTERED,
    RESPONSE,
    RESTART,
    SENDER,
)

from toska_mesh.messaging.address import parse_broker_url
from toska_mesh.messaging.contracts import contract_of, distinct_keys, lane_of, well_formed
from toska_mesh.messaging.envelope import Outgoing, Sender, encode
from toska_mesh.model import InstanceId, MeshMessage, ServiceName


def written(message: MeshMessage, sender: Sender = SENDER) -> Outgoing:
    return encode(message, sender, message_id=MESSAGE_ID, new_conversation=CONVERSATION, now=NOW)


def document(message: MeshMessage, sender: Sender = SENDER) -> dict:
    return json.loads(written(message, sender).body)


def test_a_registration_is_written_exactly_as_masstransit_writes_it():
    assert document(REGISTERED) == {
        "messageId": "11111111-2222-4333-8444-555555555555",
        "requestId": None,
        "correlationId": "0b6c5a51-8d0e-4a1c-9f2e-5f3c1d2e4b6a",
        "conversationId": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
        "initiatorId": None,
        "sourceAddress": "rabbitmq://broker.example/node-1_discovery_bus_qrstuvwxyz?temporary=true",
        "destinationAddress": "rabbitmq://broker.example/ToskaMesh.Common.Messaging:ServiceRegisteredEvent",
        "responseAddress": None,
        "faultAddress": None,
        "messageType": [
            "urn:message:ToskaMesh.Common.Messaging:ServiceRegisteredEvent",
            "urn:message:ToskaMesh.Common.Messaging:IMeshEvent",
        ],
        "message": {
            "eventId": "0b6c5a51-8d0e-4a1c-9f2e-5f3c1d2e4b6a",
            "timestamp": "2026-03-04T05:06:07.000089+00:00",
            "correlationId": "req-7",
            "serviceId": "orders-1",
            "serviceName": "orders",
            "address": "10.0.0.7",
            "port": 8080,
            "metadata": {"scheme": "http", "weight": "2"},
        },
        "expirationTime": None,
        "sentTime": "2026-03-04T05:06:07.000089+00:00",
        "headers": {},
        "host": {
            "machineName": "node-1",
            "processName": "discovery",
            "processId": 4711,
            "assembly": "toska-mesh",
            "assemblyVersion": "0.1.0",
            "frameworkVersion": "3.11.7",
            "massTransitVersion": "8.1.0",
            "operatingSystemVersion": "Linux 6.1",
        },
    }


EVENT_HEAD = {"eventId": str(EVENT_ID), "timestamp": "2026-03-04T05:06:07.000089+00:00", "correlationId": None}


@pytest.mark.parametrize(
    ("message", "body"),
    [
        pytest.param(
            DEREGISTERED,
            EVENT_HEAD | {"serviceId": "orders-1", "serviceName": "orders", "reason": "Manual deregistration"},
            id="deregistered",
        ),
        pytest.param(
            HEALTH_CHANGED,
            EVENT_HEAD
            | {
                "timestamp": "2026-03-04T07:06:07.000089+02:00",
                "serviceId": "orders-1",
                "serviceName": "orders",
                "previousStatus": "Healthy",
                "currentStatus": "Unhealthy",
                "healthCheckOutput": None,
            },
            id="health changed",
        ),
        pytest.param(
            CONFIGURATION_CHANGED,
            EVENT_HEAD | {"configKey": "log.level", "previousValue": None, "newValue": "debug", "changedBy": "ops"},
            id="configuration changed",
        ),
        pytest.param(
            ALERT,
            EVENT_HEAD
            | {
                "alertName": "down",
                "severity": "critical",
                "message": "orders is down",
                "source": "healthmonitor",
                "tags": {"service": "orders"},
            },
            id="alert",
        ),
        pytest.param(
            RESTART,
            {
                "commandId": str(EVENT_ID),
                "timestamp": "2026-03-04T05:06:07.000089+00:00",
                "correlationId": None,
                "serviceId": "orders-1",
                "reason": "stuck",
                "force": True,
            },
            id="restart",
        ),
        pytest.param(
            RESPONSE,
            {"commandId": str(EVENT_ID), "success": True, "message": None, "data": {"took": 1.5, "nested": {"a": [1]}}},
            id="response",
        ),
    ],
)
def test_each_body_has_every_field_of_its_contract(message, body):
    assert document(message)["message"] == body


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=lambda message: type(message).__name__)
def test_a_masstransit_consumer_accepts_every_message(message):
    accept(written(message).body, contract_of(message).name)


@pytest.mark.parametrize("message", [RESTART, RESPONSE], ids=["command", "response"])
def test_a_command_carries_only_its_own_urn_and_its_command_id(message):
    name = contract_of(message).name
    assert document(message)["messageType"] == [f"urn:message:ToskaMesh.Common.Messaging:{name}"]
    assert document(message)["correlationId"] == str(message.command_id)
    assert written(message).exchange == f"ToskaMesh.Common.Messaging:{name}"


def test_ids_on_the_wire_and_in_the_properties_are_the_same():
    outgoing = written(REGISTERED)
    assert (outgoing.message_id, outgoing.correlation_id) == (MESSAGE_ID, EVENT_ID)


@pytest.mark.parametrize(
    ("correlation_id", "conversation"),
    [
        pytest.param("5f0c6d4e-0000-4000-8000-000000000001", "5f0c6d4e-0000-4000-8000-000000000001", id="a uuid"),
        pytest.param("5F0C6D4E000040008000000000000001", "5f0c6d4e-0000-4000-8000-000000000001", id="undashed"),
        pytest.param("req-7", str(CONVERSATION), id="free text"),
        pytest.param("", str(CONVERSATION), id="empty"),
        pytest.param(None, str(CONVERSATION), id="none"),
    ],
)
def test_a_uuid_as_correlation_id_is_the_conversation(correlation_id, conversation):
    envelope = document(replace(REGISTERED, correlation_id=correlation_id))
    assert envelope["conversationId"] == conversation
    assert envelope["message"]["correlationId"] == correlation_id


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        pytest.param("amqp://h/", "rabbitmq://h/", id="default vhost"),
        pytest.param("amqp://h:5672", "rabbitmq://h/", id="default port is left out"),
        pytest.param("amqp://h:5673/mesh", "rabbitmq://h:5673/mesh/", id="port and vhost"),
        pytest.param("amqp://h/a%2Fb", "rabbitmq://h/a%2Fb/", id="slash in the vhost"),
        pytest.param("amqps://h", "rabbitmqs://h/", id="tls"),
        pytest.param("amqps://h:5672/", "rabbitmqs://h:5672/", id="tls on another port"),
        pytest.param("amqp://[::1]:5672/", "rabbitmq://[::1]/", id="ipv6"),
    ],
)
def test_addresses_follow_the_broker_url(url, prefix):
    envelope = document(REGISTERED, Sender(HOST, parse_broker_url(url), "id"))
    assert envelope["destinationAddress"] == f"{prefix}ToskaMesh.Common.Messaging:ServiceRegisteredEvent"
    assert envelope["sourceAddress"] == f"{prefix}node-1_discovery_bus_id?temporary=true"


def test_names_that_no_uri_takes_are_made_safe():
    sender = replace(SENDER, host=replace(HOST, machine_name="Jörg's laptop", process_name="a/b?c"))
    assert document(REGISTERED, sender)["sourceAddress"].endswith("/J_rg_s_laptop_a_b_c_bus_qrstuvwxyz?temporary=true")
    assert document(REGISTERED, sender)["host"]["machineName"] == "Jörg's laptop"


def test_required_fields_are_empty_rather_than_null():
    body = document(replace(REGISTERED, service=None, address=None))["message"]
    assert (body["serviceName"], body["address"]) == ("", "")


def test_keys_that_differ_only_by_case_are_sent_once_and_blank_ones_never():
    assert distinct_keys({"Zone": "a", "zone": "b", "": "c", " \t": "d", "ZONE": "e", "x": "f"}) == {
        "Zone": "a",
        "x": "f",
    }


def test_keys_that_become_equal_by_mending_are_sent_once():
    assert distinct_keys({"\ud800a": "1", "\ud801A": "2"}) == {"\ufffda": "1"}


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        written(replace(REGISTERED, timestamp=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_what_is_not_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        written(replace(RESPONSE, data={"x": object()}))


def test_not_a_number_is_written_as_null():
    assert document(replace(RESPONSE, data={"x": float("nan")}))["message"]["data"] == {"x": None}


ANY_TEXT = st.text(st.characters(), max_size=20)  # control characters, emoji and lone surrogates included


@given(
    service=ANY_TEXT,
    instance=ANY_TEXT,
    address=ANY_TEXT,
    correlation_id=st.none() | ANY_TEXT | st.uuids().map(str),
    port=st.integers(0, 65535),
    metadata=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=8),
)
def test_whatever_a_service_registers_a_consumer_accepts_it(service, instance, address, correlation_id, port, metadata):
    event = replace(
        REGISTERED,
        service=ServiceName(service),
        instance_id=InstanceId(instance),
        address=address,
        port=port,
        metadata=metadata,
        correlation_id=correlation_id,
    )
    body = accept(written(event).body, "ServiceRegisteredEvent")
    assert set(body["metadata"]) <= {well_formed(key) for key in metadata}


@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=8), ANY_TEXT)
def test_whatever_an_alert_says_a_consumer_accepts_it(tags, text):
    accept(written(replace(ALERT, tags=tags, message=text, alert_name=text)).body, "AlertTriggeredEvent")


@given(
    st.dictionaries(
        ANY_TEXT,
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63) | ANY_TEXT,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_whatever_a_response_carries_a_consumer_accepts_it(data):
    accept(written(replace(RESPONSE, data=data)).body, "CommandResponse")


@pytest.mark.parametrize("message", [REGISTERED, DEREGISTERED, HEALTH_CHANGED], ids=lambda m: type(m).__name__)
def test_all_events_of_a_service_share_one_lane(message):
    assert lane_of(message) == "service:orders"


def test_an_event_without_a_service_name_keeps_to_its_instance():
    assert lane_of(replace(DEREGISTERED, service=ServiceName(""))) == "service:orders-1"


def test_messages_about_other_things_do_not_wait_for_a_service():
    lanes = {lane_of(message) for message in (REGISTERED, CONFIGURATION_CHANGED, ALERT, RESTART, RESPONSE)}
    assert len(lanes) == 5
    assert UUID(lane_of(RESPONSE).removeprefix("response:")) == EVENT_ID
