"""`toska-registry`: builds the parts, wires them, runs until stopped. The one module that knows them all."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Never

from toska_mesh.admin.health import Health, HealthState
from toska_mesh.admin.process import run_daemon
from toska_mesh.admin.server import AdminServer
from toska_mesh.registryd.changes import RowKey
from toska_mesh.registryd.engine import Engine, keep_time
from toska_mesh.registryd.metrics import RegistryMetrics
from toska_mesh.registryd.node import Node
from toska_mesh.registryd.server import ApiServer
from toska_mesh.registryd.settings import RegistrySettings
from toska_mesh.registryd.state import State
from toska_mesh.registryd.store import Store
from toska_mesh.registryd.writer import GroupWriter
from toska_mesh.telemetry import event_log
from toska_mesh.telemetry.metrics import new_metrics_registry

log = event_log("registry")

DATABASE = "registry.sqlite3"
_LAST_COMMIT_SECONDS = 5.0


def main() -> Never:
    run_daemon("toska-registry", RegistrySettings, run, "the embedded registry; speaks Consul's HTTP API")


async def run(settings: RegistrySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    clock = asyncio.get_running_loop().time
    health = Health()
    metrics = new_metrics_registry("toska-registry")
    figures = RegistryMetrics(metrics)
    store = Store(settings.data_path / DATABASE)
    with _writing(store, health, figures) as writer:
        stored = store.load()
        node = Node(store.node_id, socket.gethostname(), settings.advertised_address, settings.port)
        engine = Engine.build(stored, node, clock, writer.add, writer.durable, token=settings.token.get_secret_value())
        state = engine.state
        server = ApiServer(engine.api)
        figures.watch(state, engine.watches, server)
        try:
            async with (
                AdminServer(
                    settings.host,
                    settings.port,
                    variable="REGISTRY_PORT",
                    health=health,
                    metrics=metrics,
                    routes=server.routes(),
                    cancel_on_disconnect=True,
                ),
                asyncio.TaskGroup() as tasks,
            ):
                expiry = tasks.create_task(keep_time(state, clock, figures.count_expired), name="expire")
                _say_started(settings, state)
                await stop.wait()
                health.start_draining()
                engine.watches.close()  # blocked queries answer now, with what there is
                expiry.cancel()
        finally:
            written = await writer.close(_LAST_COMMIT_SECONDS)
            if written:
                store.close(state.index)
            else:
                log.error("stopped_with_unwritten_changes")


@contextmanager
def _writing(store: Store, health: Health, figures: RegistryMetrics) -> Iterator[GroupWriter]:
    """A writer with its thread; one, because SQLite has one writer."""
    health.set("store", HealthState.HEALTHY)

    def report(failure: str | None) -> None:
        if failure is None:
            health.set("store", HealthState.HEALTHY)
        else:
            health.set("store", HealthState.UNHEALTHY, f"the disk refuses to write: {failure}")

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry-store") as thread:

        def submit(work: Callable[[], None]) -> "asyncio.Future[None]":
            return asyncio.get_running_loop().run_in_executor(thread, work)

        def apply(rows: Mapping[RowKey, bytes | None], index: int) -> None:
            store.apply(rows, index)

        yield GroupWriter(apply, submit, report, figures.count_commit)


def _say_started(settings: RegistrySettings, state: State) -> None:
    log.info(
        "started",
        url=f"http://{settings.advertised_address}:{settings.port}",
        data_dir=str(settings.data_path),
        services=state.catalog.service_count,
        keys=state.kv.count,
        token_required=bool(settings.token.get_secret_value()),
    )
    if not settings.token.get_secret_value() and settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("open_to_the_network", host=settings.host, advice="set REGISTRY_TOKEN")


if __name__ == "__main__":
    main()
