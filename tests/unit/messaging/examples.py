"""Messages, senders and doubles shared by the unit tests of messaging."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

from prometheus_client import CollectorRegistry

from toska_mesh.messaging.address import parse_broker_url
from toska_mesh.messaging.envelope import HostInfo, Outgoing, Sender
from toska_mesh.messaging.metrics import MessagingMetrics
from toska_mesh.model import (
    AlertTriggered,
    CommandResponse,
    ConfigurationChanged,
    HealthStatus,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceId,
    InstanceRegistered,
    RestartService,
    ServiceName,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)
EVENT_ID = UUID("0b6c5a51-8d0e-4a1c-9f2e-5f3c1d2e4b6a")
MESSAGE_ID = UUID("11111111-2222-4333-8444-555555555555")
CONVERSATION = UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
ORDERS = ServiceName("orders")
ORDERS_1 = InstanceId("orders-1")

HOST = HostInfo(
    machine_name="node-1",
    process_name="discovery",
    process_id=4711,
    assembly="toska-mesh",
    assembly_version="0.1.0",
    framework_version="3.11.7",
    operating_system_version="Linux 6.1",
)
SENDER = Sender(HOST, parse_broker_url("amqp://user:secret@broker.example/"), "qrstuvwxyz")

REGISTERED = InstanceRegistered(
    event_id=EVENT_ID,
    timestamp=NOW,
    correlation_id="req-7",
    service=ORDERS,
    instance_id=ORDERS_1,
    address="10.0.0.7",
    port=8080,
    metadata={"scheme": "http", "weight": "2"},
)
DEREGISTERED = InstanceDeregistered(
    event_id=EVENT_ID, timestamp=NOW, service=ORDERS, instance_id=ORDERS_1, reason="Manual deregistration"
)
HEALTH_CHANGED = InstanceHealthChanged(
    event_id=EVENT_ID,
    timestamp=NOW.astimezone(timezone(timedelta(hours=2))),
    service=ORDERS,
    instance_id=ORDERS_1,
    previous=HealthStatus.HEALTHY,
    current=HealthStatus.UNHEALTHY,
    output=None,
)
CONFIGURATION_CHANGED = ConfigurationChanged(
    event_id=EVENT_ID, timestamp=NOW, key="log.level", previous_value=None, new_value="debug", changed_by="ops"
)
ALERT = AlertTriggered(
    event_id=EVENT_ID,
    timestamp=NOW,
    alert_name="down",
    severity="critical",
    message="orders is down",
    source="healthmonitor",
    tags={"service": "orders"},
)
RESTART = RestartService(command_id=EVENT_ID, timestamp=NOW, instance_id=ORDERS_1, reason="stuck", force=True)
RESPONSE = CommandResponse(command_id=EVENT_ID, success=True, message=None, data={"took": 1.5, "nested": {"a": [1]}})

ALL_MESSAGES = (
    REGISTERED,
    DEREGISTERED,
    HEALTH_CHANGED,
    CONFIGURATION_CHANGED,
    ALERT,
    RESTART,
    RESPONSE,
)


def outgoing(lane: str = "service:orders", body: bytes = b"{}") -> Outgoing:
    return Outgoing(uuid4(), uuid4(), lane, "ServiceRegisteredEvent", "ex:ServiceRegisteredEvent", body)


def metrics() -> MessagingMetrics:
    return MessagingMetrics(CollectorRegistry())


class InlineExecutor(Executor):
    """Does the work at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
