"""Events out of the mesh: MassTransit's envelope, an outbox on disk, RabbitMQ."""

from toska_mesh.messaging.api import EventSink, SinkState
from toska_mesh.messaging.sink import SinkOptions, open_event_sink

__all__ = ["EventSink", "SinkOptions", "SinkState", "open_event_sink"]
