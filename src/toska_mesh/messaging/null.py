"""Without a broker, events are logged and that is all."""

from toska_mesh.errors import PublishError
from toska_mesh.messaging.api import SinkState
from toska_mesh.messaging.contracts import body_of, contract_of
from toska_mesh.messaging.envelope import to_json
from toska_mesh.messaging.metrics import MessagingMetrics
from toska_mesh.model import MeshMessage
from toska_mesh.telemetry import event_log

log = event_log("messaging")


class NullSink:
    """An EventSink for `RABBITMQ_URL` empty."""

    def __init__(self, metrics: MessagingMetrics) -> None:
        self._metrics = metrics
        metrics.follow(lambda: self.state)

    async def publish(self, message: MeshMessage) -> None:
        """Log the message's body. Raises PublishError for a message that no sink could send."""
        contract = contract_of(message)
        try:
            body = to_json(body_of(message)).decode()
        except ValueError as exc:
            self._metrics.refused.labels("invalid").inc()
            raise PublishError(str(exc)) from exc
        log.info("event", type=contract.name, body=body)
        self._metrics.published.labels(contract.name).inc()

    @property
    def state(self) -> SinkState:
        return SinkState(is_enabled=False)
