"""Events to publish, and what a test wants to know of those that arrived."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import uuid4

from toska_mesh.messaging.decode import Received
from toska_mesh.messaging.delivery import DeliveryPolicy
from toska_mesh.messaging.rabbitmq import RabbitTimeouts
from toska_mesh.messaging.sink import SinkOptions
from toska_mesh.model import InstanceId, InstanceRegistered, ServiceName

QUICK = SinkOptions(
    delivery=DeliveryPolicy(base_seconds=0.05, max_seconds=0.5),
    timeouts=RabbitTimeouts(connect=3.0, confirm=1.0, watch_interval=0.1, close=1.0),
)
"""Short times, so that tests need not wait for what operators would."""


def registered(number: int, services: int = 10) -> InstanceRegistered:
    """The `number`-th event; its port carries the number, its service is one of `services`."""
    return InstanceRegistered(
        event_id=uuid4(),
        timestamp=datetime.now(UTC),
        service=ServiceName(f"service-{number % services}"),
        instance_id=InstanceId(f"instance-{number}"),
        address="10.0.0.1",
        port=number,
        metadata={"scheme": "http"},
    )


def numbers_by_service(received: Iterable[Received]) -> dict[str, list[int]]:
    """First arrivals of each service's events, in order of arrival; repetitions left out."""
    lanes: dict[str, list[int]] = defaultdict(list)
    for one in received:
        assert isinstance(one.message, InstanceRegistered)
        if one.message.port not in lanes[one.message.service]:
            lanes[one.message.service].append(one.message.port)
    return dict(lanes)


def expected_numbers(count: int, services: int = 10) -> dict[str, list[int]]:
    return {f"service-{lane}": list(range(lane, count, services)) for lane in range(min(services, count))}
