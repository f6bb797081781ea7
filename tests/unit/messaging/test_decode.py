"""Reading envelopes: our own, MassTransit's, and those of the family's Go daemons."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.messaging.examples import (
    ALL_MESSAGES,
    CONVERSATION,
    EVENT_ID,
    MESSAGE_ID,
    NOW,
    REGISTERED,
    SENDER,
)

from toska_mesh.errors import MessagingError
from toska_mesh.messaging.decode import decode
from toska_mesh.messaging.envelope import encode
from toska_mesh.model import InstanceRegistered

FROM_GO = {
    "messageId": "1760000000000000000-12",
    "messageType": ["urn:message:ToskaMesh.Common.Messaging:ServiceRegisteredEvent"],
    "message": {
        "eventId": "1760000000000000000",
        "timestamp": "2025-10-09T08:53:20.123456789Z",
        "serviceId": "orders-1",
        "serviceName": "",
        "address": "10.0.0.7",
        "port": 8080,
    },
    "sentTime": "2025-10-09T08:53:20Z",
    "headers": {},
    "host": {"machineName": "toska-mesh", "processName": "discovery", "processId": 0},
}


def payload(**changes: object) -> bytes:
    return json.dumps(FROM_GO | changes).encode()


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=lambda message: type(message).__name__)
def test_what_we_write_we_read_back(message):
    body = encode(message, SENDER, message_id=MESSAGE_ID, new_conversation=CONVERSATION, now=NOW).body
    received = decode(body)
    assert received.message == message
    assert received.message_id == str(MESSAGE_ID)
    assert received.correlation_id == str(EVENT_ID)
    assert received.conversation_id == str(CONVERSATION)
    assert received.sent_at == NOW


def test_a_go_daemons_event_is_read_with_a_stable_id():
    first, again = decode(payload()).message, decode(payload()).message
    assert first == again
    assert isinstance(first, InstanceRegistered)
    assert (first.service, first.port, dict(first.metadata)) == ("", 8080, {})
    assert first.timestamp == datetime(2025, 10, 9, 8, 53, 20, 123456, UTC)


def test_different_foreign_ids_stay_different():
    other = payload(message=FROM_GO["message"] | {"eventId": "1760000000000000001"})
    assert decode(other).message.event_id != decode(payload()).message.event_id


def test_names_and_urns_are_read_in_any_case_and_a_byte_order_mark_is_skipped():
    shouting = {
        "MESSAGETYPE": ["URN:MESSAGE:TOSKAMESH.COMMON.MESSAGING:SERVICEREGISTEREDEVENT"],
        "Message": {name.upper(): value for name, value in FROM_GO["message"].items()},
    }
    message = decode(b"\xef\xbb\xbf" + json.dumps(shouting).encode()).message
    assert message == decode(payload()).message


def test_defaults_of_the_contract_come_from_the_envelope():
    body = {"serviceId": "a", "serviceName": "b", "address": "c"}
    message = decode(payload(correlationId=str(EVENT_ID), message=body)).message
    assert (message.event_id, message.timestamp) == (EVENT_ID, datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC))


def test_the_interface_urn_alone_is_not_enough_but_may_come_first():
    urns = ["urn:message:ToskaMesh.Common.Messaging:IMeshEvent", *FROM_GO["messageType"]]
    assert decode(payload(messageType=urns)).message == decode(payload()).message
    with pytest.raises(MessagingError, match="no known message type"):
        decode(payload(messageType=urns[:1]))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param(b"\xff", "not JSON", id="not json"),
        pytest.param(b"[]", "not a JSON object", id="not an object"),
        pytest.param(b"{}", "no message", id="no message"),
        pytest.param(payload(message=None), "no message", id="null message"),
        pytest.param(payload(message=[]), "no message", id="message is a list"),
        pytest.param(payload(messageType="text"), "no known message type", id="type is no list"),
        pytest.param(payload(message={"serviceId": "a"}), "lacks serviceName", id="required field missing"),
        pytest.param(payload(message=FROM_GO["message"] | {"port": "80"}), "not an integer", id="port as text"),
        pytest.param(payload(message=FROM_GO["message"] | {"serviceId": 3}), "not a string", id="number for text"),
        pytest.param(payload(message=FROM_GO["message"] | {"timestamp": "soon"}), "no ISO 8601", id="no time"),
        pytest.param(payload(message=FROM_GO["message"] | {"timestamp": "2025-01-01T00:00:00"}), "offset", id="naive"),
        pytest.param(payload(message=FROM_GO["message"] | {"metadata": []}), "not an object", id="metadata as list"),
        pytest.param(payload(messageId=3), "messageId is 3", id="message id as number"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(broken, reason):
    with pytest.raises(MessagingError, match=reason):
        decode(broken)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(FROM_GO["message"])), JSON)
def test_a_wrong_value_anywhere_is_a_messaging_error_and_nothing_else(field, value):
    try:
        decode(payload(message=FROM_GO["message"] | {field: value}))
    except MessagingError:
        pass  # the only error a consumer has to know


def test_the_round_trip_keeps_the_model_value_equal():
    body = encode(REGISTERED, SENDER, message_id=MESSAGE_ID, new_conversation=CONVERSATION, now=NOW).body
    assert dict(decode(body).message.metadata) == dict(REGISTERED.metadata)
